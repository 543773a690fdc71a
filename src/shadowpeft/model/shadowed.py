"""`ShadowedModel`: a base and its adapters as one transformers model. Attach, forward, generate, save, detach, unload."""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.decoder import sharded
from shadowpeft.decoder.cache import ShadowCache, dynamic_cache, filling_mask, static_cache
from shadowpeft.decoder.loan import Lent
from shadowpeft.decoder.view import StandIns, View
from shadowpeft.decoder.whole_rows import rows_are_whole
from shadowpeft.errors import CheckpointError, ConfigError, UserError
from shadowpeft.model import heads
from shadowpeft.model.adapters import AdapterSet
from shadowpeft.model.detach import detached
from shadowpeft.model.frame import ShadowedBlock, ShadowFrame, travelling
from shadowpeft.model.hf_generation import ShadowGeneration, require_shadow_cache
from shadowpeft.model.hf_surface import StockSurface
from shadowpeft.model.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder, base_facts

# What transformers' own callers of `save_pretrained` pass, and an adapter needs nothing of.
_WITHOUT_USE = ("max_shard_size", "safe_serialization", "save_peft_format", "token", "variant")


def attach(
    base: PreTrainedModel,
    config: ShadowConfig | None = None,
    shadow: PreTrainedModel | str | Path | None = None,
    adapter: str = "default",
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> "ShadowedModel":
    """Freeze a base and put a fresh shadow beside it; until it is trained, the result computes what the base computes.

    Args:
        base: a causal language model or sequence classifier of a supported family. It is lent: nothing on it changes but
            its `requires_grad` flags, and `unload()` gives it back as it was.
        config: the settings; `ShadowConfig()` by default.
        shadow: what to start from: a pretrained model whose decoder becomes an explicit shadow and is trained in place, or the folder of
            a pretrained shadow (of `shadowpeft pretrain`, or a projected model of the authors' package), whose sizes are taken; `None`
            builds a small random shadow of the base's own architecture. That a model has the base's tokenizer is for the caller to see
            to: none is at hand here to compare.
        adapter: the name of the adapter.
        dtype: type of the trained weights; the base's by default. Another type than the base's needs autocast.
        impl: what computes the boundaries: `auto`, `reference`, `compile` or `triton` (see `ShadowedModel.set_impl`).

    Returns:
        The shadowed model, its first adapter ready to train.

    Raises:
        UnsupportedModelError: base or shadow is not of a supported family, or the two do not fit.
        ConfigError: a setting does not fit the base, or contradicts the folder of the shadow.
        CheckpointError: the folder of the shadow is damaged, or it was pretrained beside another base.
    """
    model = ShadowedModel(base)
    try:
        model.set_impl(impl)
        model.add_adapter(adapter, config, shadow, dtype)
    except BaseException:
        model.unload()  # a refused base stays as it was
        raise
    return model


class ShadowedModel(AdapterSet, ShadowGeneration, StockSurface, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A frozen base with its adapters, as a transformers model. Made by `attach` or `from_pretrained`.

    Each call may name its adapter; otherwise the active one is used. A call keeps its state in arguments and locals alone,
    so calls from several threads do not meet.
    """

    config: PretrainedConfig

    def __init__(self, base: PreTrainedModel) -> None:
        self.task = arch.task_of(base)
        super().__init__(copy.deepcopy(base.config))
        self.config.keys_to_ignore_at_inference = [
            "past_key_values",
            "shadow_loss",
            "shadow_logits",
            "distil_loss",
            "attached_loss",
        ]
        if self.task == "causal-lm":
            self.generation_config = copy.deepcopy(base.generation_config)
            # The Trainer counts labels by this name: without it, the never predicted first token of a row counts too.
            self.loss_type = "ForCausalLM"
        self.all_tied_weights_keys: dict[str, str] = {}
        self._lent = Lent.freeze(base)
        self._facts = base_facts.BaseFacts.of(base)  # now, while every process has the whole base
        self.base: PreTrainedModel | None = base
        blocks = StandIns(ShadowedBlock, arch.blocks_of(base), base.config)
        self._decoder = View(arch.decoder_of(base), {arch.family_of(base).blocks: blocks})
        self.adapters = nn.ModuleDict()
        self.active_adapter = ""
        self.set_impl("auto")
        self._bare_threads: dict[int, int] = {}
        self.training = base.training

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let this thread's calls run the bare base, bit for bit, while the context lasts."""
        thread = threading.get_ident()
        self._bare_threads[thread] = self._bare_threads.get(thread, 0) + 1
        try:
            yield
        finally:
            self._bare_threads[thread] -= 1
            if not self._bare_threads[thread]:
                del self._bare_threads[thread]

    # Forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        adapter: str | None = None,
        output_shadow_logits: bool = False,
        num_items_in_batch: Tensor | None = None,
        skip_logits: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run base and shadow together (eq. 1 to 9).

        Args:
            input_ids: token ids, (B, T).
            attention_mask: 1 for tokens, 0 for padding, (B, cached + T).
            position_ids: positions of the tokens, (B, T).
            past_key_values: a cache made by `new_cache()`; written to.
            inputs_embeds: embeddings in place of ids, (B, T, D).
            labels: for a language model token ids, (B, T), -100 where no loss is wanted; for a classifier its targets.
            use_cache: give back a cache; by default the config's `use_cache` when evaluating without labels.
            logits_to_keep: compute only the last so many logits (or those at the given positions), as transformers does.
            adapter: the adapter to run under; the active one by default.
            output_shadow_logits: give back `head(s^(0))` too.
            num_items_in_batch: labelled items in the whole accumulated batch, as the Trainer passes it.
            skip_logits: of a language model give back the losses and no logits, which then are never held; by default when training with
                labels, unless shadow logits or a plain tuple are asked for.
            return_dict: `False` for a plain tuple.
            **kwargs: handed to the base's decoder (`output_hidden_states` and the like; `cu_seq_lens_q` and its kin to the shadow's, too);
                but for `shift_labels`, (B, T), which are labels already shifted, in place of `labels`.

        Returns:
            `ShadowedCausalLMOutput` or `ShadowedClassifierOutput`; the bare base's own output inside `disabled()`.

        Raises:
            UserError: there is no such adapter, the cache has no room for the shadow, or the model was unloaded.
        """
        base = self._base()
        # Not in the signature, from which the Trainer reads what must be in a batch for it to have labels.
        shift_labels = kwargs.pop("shift_labels", None)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if self._is_bare():
            if isinstance(past_key_values, ShadowCache):
                raise UserError(
                    "a cache of model.new_cache() holds base and shadow; inside disabled() give a cache of the base's own"
                )
            bare = {
                "past_key_values": past_key_values,
                "labels": labels,
                "use_cache": use_cache,
                "return_dict": return_dict,
                **kwargs,
            }
            keep = {"logits_to_keep": logits_to_keep} if self.task == "causal-lm" else {}
            losses = {"num_items_in_batch": num_items_in_batch, "shift_labels": shift_labels}
            return base(**_given(inputs), **bare, **keep, **_given(losses))
        chosen = self._adapter(adapter)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        if past_key_values is None and use_cache:
            past_key_values = self.new_cache(adapter)
        cache = (
            None
            if past_key_values is None
            else require_shadow_cache(past_key_values, chosen.shadow.backbone.config.num_hidden_layers)
        )
        out, first_state_BTD = self._run(chosen, inputs, cache, kwargs)
        targets = heads.Targets(labels, shift_labels, num_items_in_batch)
        if skip_logits is None:
            skip_logits = (
                self.training and targets.given and not output_shadow_logits and return_dict is not False
            )
        result: ShadowedCausalLMOutput | ShadowedClassifierOutput
        if self.task == "causal-lm":
            result = heads.language_output(
                base,
                chosen,
                out.last_hidden_state,
                first_state_BTD,
                targets,
                logits_to_keep,
                output_shadow_logits,
                skip_logits,
            )
        else:
            mask_BT = heads.padding_mask(self.config, input_ids, attention_mask)
            result = heads.classifier_output(
                self.config,
                chosen,
                out.last_hidden_state,
                first_state_BTD,
                targets,
                mask_BT,
                output_shadow_logits,
            )
        result.past_key_values = cache if use_cache else None
        result.hidden_states, result.attentions = out.hidden_states, out.attentions
        return result if return_dict is not False else result.to_tuple()

    def _run(
        self,
        adapter: Adapter,
        inputs: dict[str, Tensor | None],
        cache: ShadowCache | None,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor]:
        """Run the shadow, then the base's decoder through its view; return the decoder's output and s^(0)."""
        base = self._base()
        family, table = arch.family_of(base), arch.token_embedding_of(base).weight
        adapter.refuse_mixed_types(table)
        state_BTD = adapter.shadow(
            inputs["input_ids"],
            inputs["inputs_embeds"],
            inputs["attention_mask"],
            inputs["position_ids"],
            cache and cache.shadow,
            **kwargs,
        )
        frame = ShadowFrame(
            adapter, self._boundary, adapter.start(state_BTD), family, inputs["inputs_embeds"] is not None or table.requires_grad,
            rows_are_whole=rows_are_whole(inputs["attention_mask"], inputs["position_ids"], cache, *kwargs.values()),
        )  # fmt: skip
        if not family.takes_positions:
            inputs = {**inputs, "position_ids": None}
        if family.mask_fills_cache:
            inputs = {
                **inputs,
                "attention_mask": filling_mask(
                    inputs["attention_mask"], cache and cache.base, state_BTD.shape[1]
                ),
            }
        travel = nullcontext() if family.passes_kwargs else travelling(frame)
        carried = {"shadow_frame": frame} if family.passes_kwargs else {}
        with travel:
            out = self._decoder(
                **_given(inputs),
                past_key_values=cache and cache.base,
                use_cache=cache is not None,
                return_dict=True,
                **carried,
                **kwargs,
            )
        assert frame.crossed == len(arch.blocks_of(base)), (
            "the base's decoder ran blocks of its own: the shadow was not applied"
        )
        return out, state_BTD

    # Generation

    def new_cache(self, adapter: str | None = None, max_length: int | None = None) -> ShadowCache:
        """Make an empty cache for base and shadow; with `max_length` (tokens) a static one, else it grows."""
        chosen = self._adapter(adapter)
        configs = self._base().config, chosen.shadow.backbone.config
        return dynamic_cache(*configs) if max_length is None else static_cache(*configs, max_length)

    def cache_configs(self, adapter: str | None) -> tuple[PretrainedConfig, PretrainedConfig] | None:
        """Return the configurations a cache is made for, or `None` inside `disabled()`."""
        return (
            None if self._is_bare() else (self._base().config, self._adapter(adapter).shadow.backbone.config)
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate attached, as transformers' `generate` does; `adapter=` chooses the adapter (the active one beside an assistant).

        Raises:
            UserError: the model is a classifier, or the kind of cache asked for has no room for the shadow.
        """
        if self.task != "causal-lm":
            raise UserError("a sequence classifier cannot generate; attach to a causal language model")
        # Settle it once, since another thread may set_adapter() between two tokens. Not with an assistant: transformers hands
        # the same arguments to it, and a stock model knows no adapters.
        if not self._is_bare() and kwargs.get("assistant_model") is None:
            kwargs["adapter"] = self.active_adapter if kwargs.get("adapter") is None else kwargs["adapter"]
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    # Saving, detaching, unloading

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        adapter: str | None = None,
        run: Mapping[str, Any] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **stock: Any,
    ) -> None:
        """Write one adapter (never the base) to a folder: safetensors, JSON and a model card. Under FSDP every process must call it.

        Args:
            save_directory: the folder; files of an earlier save are replaced only once the new ones are complete.
            adapter: which one; the active one by default.
            run: what the model card tells of the training, by name.
            state_dict: this model's tensors gathered elsewhere, as sharded training passes them.
            is_main_process: write only if true, as distributed training passes it.
            **stock: what transformers' own callers pass and an adapter has no use for, such as `max_shard_size`.

        Raises:
            ConfigError: an argument is given that would not be applied, such as `push_to_hub=True`.
            CheckpointError: the files could not be written; those already there are unchanged.
        """
        unapplied = [key for key, value in stock.items() if key not in _WITHOUT_USE and value]
        if unapplied:
            raise ConfigError(
                f"save_pretrained writes an adapter and does not take {', '.join(unapplied)}; to publish call push_to_hub()"
            )
        name = self.active_adapter if adapter is None else adapter
        prefix = f"adapters.{name}."
        if state_dict is None:
            tensors = sharded.whole(self._adapter(name).state_dict())
        else:
            tensors = {
                key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
            }
        if not is_main_process:
            return
        if not tensors:
            raise CheckpointError(
                f"the given state_dict holds nothing of adapter {name!r} (no key starts with {prefix!r}); nothing was written"
            )
        adapter_folder.save(self._adapter(name), tensors, self._facts, save_directory, run or {})

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        base: PreTrainedModel,
        folder: str | Path,
        adapter: str = "default",
        dtype: torch.dtype | None = None,
        impl: str = "auto",
    ) -> "ShadowedModel":
        """Put a saved adapter beside the base it was trained on; `impl` as for `attach`.

        Raises:
            CheckpointError: the folder is damaged or was written for another base; the base is left as it was.
        """
        saved = adapter_folder.load(base, folder)
        model = cls(base)
        try:
            model.set_impl(impl)
            model._own(adapter, saved, dtype)
        except BaseException:
            model.unload()
            raise
        return model.eval()

    def detached(self, adapter: str | None = None) -> PreTrainedModel:
        """Return the shadow alone as a complete stock model, with weights of its own; it needs neither base nor this library."""
        return detached(self._base(), self._adapter(adapter), self.config)

    def unload(self) -> PreTrainedModel:
        """Give the base back as it was lent; this model cannot be used afterwards. Its device and type are the caller's."""
        base = self._base()
        self._lent.restore(base)
        self.base = None
        del self._decoder, self.adapters
        return base

    # Helpers

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not inherit this thread's `disabled()`."""
        return {**self.__dict__, "_bare_threads": {}}

    def _base(self) -> PreTrainedModel:
        if self.base is None:
            raise UserError("this model was unloaded; attach again to the base that unload() returned")
        return self.base

    def _is_bare(self) -> bool:
        return bool(self._bare_threads) and threading.get_ident() in self._bare_threads


def _given(inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if value is not None}
