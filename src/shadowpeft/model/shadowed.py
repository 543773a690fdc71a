"""`ShadowedModel`: a base and its adapters as one transformers model, from attaching to unloading."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.arch import versions
from shadowpeft.config import ShadowConfig
from shadowpeft.decoder.cache import ShadowCache, dynamic_cache, filling_mask, static_cache
from shadowpeft.decoder.loan import Loan, trained_weights
from shadowpeft.decoder.view import ModuleView, WrappedBlocks
from shadowpeft.decoder.whole_rows import rows_are_whole
from shadowpeft.errors import UserError
from shadowpeft.generate import drafting_of
from shadowpeft.model import arguments, heads, outside_loss
from shadowpeft.model.adapters import AdaptersMixin, check_type
from shadowpeft.model.bare import BareSwitch, bare_where_read
from shadowpeft.model.detach import detached
from shadowpeft.model.drafting import DraftingMixin
from shadowpeft.model.frame import ShadowedBlock, ShadowFrame, frame_in_context
from shadowpeft.model.hf_generation import HFGenerationMixin, require_shadow_cache
from shadowpeft.model.hf_saving import HFSavingMixin
from shadowpeft.model.hf_surface import HFSurfaceMixin
from shadowpeft.model.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput
from shadowpeft.model.refusals import (
    refuse_other_mode,
    refuse_resized,
    refuse_several_devices,
    require_gradient,
)
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.storage import adapter_folder, base_facts, hub_folder


def attach(
    base: PreTrainedModel,
    config: ShadowConfig | None = None,
    shadow: PreTrainedModel | str | Path | None = None,
    adapter: str = "default",
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> "ShadowedModel":
    """Freeze a base and put an untrained adapter beside it, which changes nothing until it is trained.

    Args:
        base: a causal language model or sequence classifier of a supported family, or a multimodal model
            around one: then the shadow sits in the language model, and reads text alone. It is lent: nothing
            on it changes but its `requires_grad` flags, and `unload()` gives it back as it was.
        config: the settings; `ShadowConfig()` by default.
        shadow: what the shadow starts from. A pretrained model: its decoder becomes an explicit shadow and is
            trained in place. The folder of a pretrained shadow (of `shadowpeft pretrain`, or a projected
            model of the authors' package): its sizes are taken. `None`: a small random shadow of the base's
            own architecture. A model must have the base's tokenizer; this is not checked, because no
            tokenizer is at hand here.
        adapter: the name of the adapter.
        dtype: type of the trained weights; by default float32, or the base's type if that is wider. Whatever
            it is, the model computes in the base's type, without autocast.
        impl: what computes the boundaries: `auto`, `reference`, `compile` or `triton` (see
            `ShadowedModel.set_impl`).

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
        # A refused base stays as it was.
        model.unload()
        raise
    return model


class ShadowedModel(  # type: ignore[misc]
    AdaptersMixin,
    HFSavingMixin,
    DraftingMixin,
    HFGenerationMixin,
    HFSurfaceMixin,
    PreTrainedModel,
    GenerationMixin,
):
    """A frozen base with its adapters, as a transformers model. Made by `attach` or `from_pretrained`.

    Of a multimodal model `base` is the language model in it, whose modules are the multimodal model's.
    Each call may name its adapter; otherwise the active one is used. A call keeps its state in arguments
    and local variables alone, so calls from several threads do not affect each other.
    """

    config: PretrainedConfig

    def __init__(self, base: PreTrainedModel) -> None:
        versions.warn_if_untested()
        _refuse_shadowed(base)
        # In a tuple, or torch would count the parts of a multimodal model beside its language model as ours.
        self._lent: tuple[PreTrainedModel, ...] = (base,)
        base = arch.text_model_of(base)
        self.task = arch.task_of(base)
        refuse_several_devices(base)
        super().__init__(copy.deepcopy(base.config))
        self.config.keys_to_ignore_at_inference = [
            *versions.CACHE_NAMES,
            "shadow_loss",
            "shadow_logits",
            "distil_loss",
            "attached_loss",
        ]
        if self.task == "causal-lm":
            self.generation_config = copy.deepcopy(base.generation_config)
            # The Trainer counts labels by this name. Without it, the first token of a row, never predicted,
            # counts too.
            self.loss_type = "ForCausalLM"
        self.all_tied_weights_keys: dict[str, str] = {}
        # Now, while every process has the whole base: FSDP shards it later.
        self._facts = base_facts.BaseFacts.of(base)
        self.base: PreTrainedModel | None = base
        blocks = WrappedBlocks(ShadowedBlock, arch.blocks_of(base), base.config)
        # Kept, as it takes the host long to find, and is asked for at every token.
        self._family = arch.family_of(base)
        self._decoder = ModuleView(arch.decoder_of(base), {self._family.blocks: blocks})
        self._taken = arguments.taken_by(arch.decoder_of(base))
        self.adapters = nn.ModuleDict()
        self.active_adapter = ""
        self.set_impl("auto")
        self._bare = BareSwitch()
        self.training = base.training
        # Last: if something above failed, the base would stay frozen.
        self._loan = Loan(base)

    @property
    def _is_stateful(self) -> bool:  # type: ignore[override]
        """Whether base or shadow keeps a recurrent state, which cannot be taken back by some tokens.

        transformers asks before assisted decoding.
        """
        stateful = [adapter.shadow.backbone._is_stateful for adapter in self._all_adapters()]
        return self._base()._is_stateful or any(stateful)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Make the calls of this thread or asyncio task run the bare base, bit for bit, while it lasts.

        `model.generate` read inside it stays bare in another thread too, as in
        `Thread(target=model.generate)`. Any other call of a thread that is started meanwhile must say what
        it wants: it enters `disabled()` itself or names its adapter, or else is refused.
        """
        with self._bare.on():
            yield

    def train(self, mode: bool = True) -> "ShadowedModel":
        """Put adapters and base into training mode, or out of it; only adapters train."""
        # Not at every step of a trainer, which asks for the mode that is set.
        if mode and not self.training and self.base is not None:
            trained = trained_weights(self.base)
            if trained:
                warnings.warn(
                    f"the base's weight {trained[0]} requires a gradient, and an adapter's folder holds no "
                    "weights of the base: save_pretrained() will refuse to leave it out; freeze it "
                    "(model.base.requires_grad_(False))",
                    stacklevel=2,
                )
        return super().train(mode)

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
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run base and shadow together (eq. 1 to 9).

        Args:
            input_ids: token ids, (B, T).
            attention_mask: 1 for tokens, 0 for padding, (B, cached + T).
            position_ids: positions of the tokens, (B, T).
            past_key_values: a cache made by `new_cache()`; written to.
            inputs_embeds: embeddings in place of ids, (B, T, D).
            labels: for a language model token ids, (B, T), -100 where no loss is wanted; for a classifier its
                targets.
            use_cache: return a cache; by default the config's `use_cache` when evaluating without labels.
            logits_to_keep: compute only the last so many logits (or those at the given positions), as
                transformers does.
            adapter: the adapter to run under; the active one by default.
            output_shadow_logits: return `head(s^(0))` too.
            num_items_in_batch: labelled items in the whole accumulated batch, as the Trainer passes it.
            skip_logits: for a language model, return the losses and no logits, which are then never held in
                memory; by default when training with labels, unless shadow logits or a plain tuple are asked
                for.
            return_dict: `False` for a plain tuple.
            cache: `past_key_values` by the name that transformers gives it from 5.24 on.
            **kwargs: passed to the base's decoder (`output_hidden_states` and the like); `cu_seq_lens_q` and
                the other arguments of flash attention go to the shadow's, too. `shift_labels`, (B, T), are
                labels already shifted, in place of `labels`.

        Returns:
            `ShadowedCausalLMOutput` or `ShadowedClassifierOutput`; the bare base's own output inside
            `disabled()`.

        Raises:
            UserError: there is no such adapter, the cache has no room for the shadow or was given under both
                names, there is an image among the inputs, nothing would train in training mode, the model was
                unloaded, or the Trainer keeps the labels for a loss of its own (`outside_loss.check`).
        """
        base = self._base()
        # Not in the signature, because the Trainer takes every argument there with "label" in its name for
        # one that a batch must have.
        shift_labels = kwargs.pop("shift_labels", None)
        targets = heads.Targets(labels, shift_labels, num_items_in_batch)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        given_cache = versions.one_cache(cache, past_key_values)
        kwargs = self._arguments_of_call(kwargs)
        if return_dict is None:
            return_dict = self.config.return_dict
        if self._bare.is_on(adapter):
            if use_cache is None and self.config.use_cache != base.config.use_cache:
                use_cache = self.config.use_cache
            stock = {versions.CACHE: given_cache, "use_cache": use_cache, "return_dict": return_dict}
            return self._run_bare(inputs, targets, logits_to_keep, stock={**stock, **kwargs})
        chosen = self._adapter(adapter)
        if self.training and not targets.given and not output_shadow_logits:
            outside_loss.check(chosen, labels_were_taken=num_items_in_batch is not None)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and labels is None
        ends_B: Tensor | int = -1
        if self.task != "causal-lm":
            ends_B = heads.ends_of_rows(self.config, input_ids, rows=_rows(input_ids, inputs_embeds))
        out, first_state_BTD, both_caches = self._run_shadowed(chosen, inputs, given_cache, use_cache, kwargs)
        if skip_logits is None:
            wants_logits = output_shadow_logits or return_dict is False
            skip_logits = self.training and targets.given and not wants_logits
        result = self._result(
            chosen,
            out.last_hidden_state,
            s_BTD=first_state_BTD,
            targets=targets,
            ends_B=ends_B,
            logits_to_keep=logits_to_keep,
            keep_shadow_logits=output_shadow_logits,
            skip_logits=skip_logits,
        )
        if self.training and result.loss is not None and torch.is_grad_enabled():
            require_gradient(result.loss, adapter or self.active_adapter)
        if use_cache:
            result[versions.CACHE] = both_caches
        # An output class takes the host long to set even what is `None`.
        if out.hidden_states is not None:
            result.hidden_states = out.hidden_states
        if out.attentions is not None:
            result.attentions = out.attentions
        if return_dict is False:
            return result.to_tuple()
        return result

    def _result(
        self,
        adapter: Adapter,
        h_BTD: Tensor,
        s_BTD: Tensor,
        targets: heads.Targets,
        ends_B: Tensor | int,
        logits_to_keep: int | Tensor,
        keep_shadow_logits: bool,
        skip_logits: bool,
    ) -> ShadowedCausalLMOutput | ShadowedClassifierOutput:
        """Compute logits and losses from what the decoder returned and s^(0)."""
        if self.task == "causal-lm":
            return heads.language_output(
                self._base(),
                adapter,
                h_BTD,
                s_BTD=s_BTD,
                targets=targets,
                logits_to_keep=logits_to_keep,
                keep_shadow_logits=keep_shadow_logits,
                skip_logits=skip_logits,
            )
        return heads.classifier_output(
            self.config,
            adapter,
            h_BTD,
            s_BTD=s_BTD,
            targets=targets,
            ends_B=ends_B,
            keep_shadow_logits=keep_shadow_logits,
        )

    def _arguments_of_call(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a call's other arguments, with the outputs that this model's configuration asks for.

        Raises:
            UserError: the base is not as this model needs it.
        """
        base = self._base()
        refuse_resized(base, self._facts.vocab_size)
        # Who else holds the base is asked only where it matters: a compiled graph would watch the list of
        # loans, which changes as other models go.
        if base.training != self.training and self._loan.is_shared(base):
            refuse_other_mode(base)
        kwargs = arguments.text_alone(kwargs, base.config)
        return {**arguments.outputs_by(self.config, base.config), **kwargs}

    def _run_bare(
        self,
        inputs: dict[str, Tensor | None],
        targets: heads.Targets,
        logits_to_keep: int | Tensor,
        stock: dict[str, Any],
    ) -> Any:
        """Run the base alone. The arguments in `stock` are passed on even if they are `None`."""
        if isinstance(stock[versions.CACHE], ShadowCache):
            raise UserError(
                "a cache of model.new_cache() holds base and shadow; inside disabled() give a cache of the "
                "base's own"
            )
        if self.task == "causal-lm":
            stock["logits_to_keep"] = logits_to_keep
        # Not every class takes these two, so they are passed only where they were given.
        losses = {"num_items_in_batch": targets.num_items, "shift_labels": targets.shift_labels}
        return self._base()(**_given(inputs), labels=targets.labels, **stock, **_given(losses))

    def _cache_of_call(self, adapter: Adapter, given: Cache | None, wanted: bool) -> ShadowCache | None:
        """Return the cache that was given, or a new one if a cache is wanted."""
        if given is not None:
            return require_shadow_cache(given, adapter.shadow.backbone.config.num_hidden_layers, adapter.name)
        if wanted and torch.compiler.is_exporting():
            raise UserError("torch.export takes no cache in or out of a graph: export with use_cache=False")
        if wanted:
            return dynamic_cache(self._base().config, adapter.shadow.backbone.config, adapter.name)
        return None

    def _run_shadowed(
        self,
        adapter: Adapter,
        inputs: dict[str, Tensor | None],
        given_cache: Cache | None,
        use_cache: bool,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Tensor, ShadowCache | None]:
        """Run the shadow, then the base's decoder through its view.

        Returns:
            The decoder's output, s^(0) and the cache that was written to, if any.

        Raises:
            UserError: there is an argument that would be ignored, or the cache has no room for the shadow.
        """
        asked = {"output_router_logits": arch.wants_router_logits(self.config), **kwargs}
        arguments.refuse(asked, self._taken)
        arguments.refuse_three_positions(inputs["position_ids"])
        cache = self._cache_of_call(adapter, given_cache, use_cache)
        ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        if self.training:
            adapter.refuse_offloaded_training()
        state_BTD = adapter.shadow(
            ids, embeds, mask, position_ids=positions, shadow_cache=cache and cache.shadow, **kwargs
        )
        return self._run_base(adapter, inputs, state_BTD, cache, kwargs), state_BTD, cache

    def _run_base(
        self,
        adapter: Adapter,
        inputs: dict[str, Tensor | None],
        state_BTD: Tensor,
        cache: ShadowCache | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the base's decoder through its view beside a known s^(0); return the decoder's output."""
        family, decoder = self._family, self._decoder.module
        table = decoder.get_submodule(family.embeddings[0])
        assert isinstance(table, nn.Embedding)
        mask, positions = inputs["attention_mask"], inputs["position_ids"]
        frame = ShadowFrame(
            adapter,
            self._boundary,
            adapter.start(state_BTD),
            family=family,
            embeddings_train=inputs.get("inputs_embeds") is not None or table.weight.requires_grad,
            rows_are_whole=rows_are_whole(mask, positions, cache, *kwargs.values()),
        )
        inputs = dict(inputs)
        if not family.takes_positions:
            del inputs["position_ids"]
        if family.mask_fills_cache:
            inputs["attention_mask"] = filling_mask(mask, cache and cache.base, state_BTD.shape[1])
        travel: Any = nullcontext()
        if family.passes_kwargs:
            kwargs = {**kwargs, "shadow_frame": frame}
        else:
            travel = frame_in_context(frame)
        with travel:
            out = self._decoder(
                **_given(inputs),
                use_cache=cache is not None,
                return_dict=True,
                **{versions.CACHE: cache and cache.base},
                **kwargs,
            )
        blocks = decoder.get_submodule(family.blocks)
        assert isinstance(blocks, nn.ModuleList)
        assert frame.crossed == len(blocks), (
            "the base's decoder ran blocks of its own: the shadow was not applied"
        )
        return out

    # Generation

    def new_cache(self, adapter: str | None = None, max_length: int | None = None) -> ShadowCache:
        """Make an empty cache for base and shadow; with `max_length` (tokens) a static one, else it grows."""
        chosen = self._adapter(adapter)
        made_for = self._base().config, chosen.shadow.backbone.config, chosen.name
        return dynamic_cache(*made_for) if max_length is None else static_cache(*made_for, max_length)

    def cache_is_for(self, adapter: str | None) -> tuple[PretrainedConfig, PretrainedConfig, str] | None:
        """Return the configurations and the adapter that a cache is for, `None` inside `disabled()`."""
        if self._bare.is_on(adapter):
            return None
        chosen = self._adapter(adapter)
        return self._base().config, chosen.shadow.backbone.config, chosen.name

    @bare_where_read
    def generate(
        self,
        *args: Any,
        draft: str | None = None,
        draft_tokens: int | str | None = None,
        draft_vocabulary: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate attached, as transformers' `generate` does; `adapter=` chooses the adapter.

        Args:
            *args: as transformers has them.
            draft: "shadow" lets the shadow propose tokens, which one pass of the base then verifies: the same
                text in less time (greedily the same tokens, sampling the same distribution) where the shadow
                guesses well. One row at a time.
            draft_tokens: how many tokens the base reads in a pass, the last one of the text among them; a
                pass gives 1 to so many tokens. With 1 nothing is drafted. "auto", the default, goes on while
                a further draft is expected to pay, by the shadow's confidence and by measured times.
            draft_vocabulary: whether the shadow drafts tokens of the adapter's draft vocabulary alone; by
                default if it has one (`set_draft_vocabulary`).
            **kwargs: as transformers has them.

        Raises:
            UserError: the model is a classifier, there is an image in the prompt, something is asked for that
                only a model with one cache of its own can do (continuous batching, an early exit, a cache of
                another kind), or that cannot be done with drafts.
        """
        if self.task != "causal-lm":
            raise UserError("a sequence classifier cannot generate; attach to a causal language model")
        drafting = drafting_of(draft, draft_tokens, draft_vocabulary)
        if drafting is not None:
            if self._bare.is_on(kwargs.get("adapter")):
                raise UserError(
                    'inside disabled() no shadow runs that could draft; leave it, or leave draft="shadow" out'
                )
            if self.training:
                raise UserError('draft="shadow" is for a model that is used, not trained; call model.eval()')
            kwargs["drafting"] = drafting
        # Chosen once, since another thread may call set_adapter() between two tokens.
        if kwargs.get("adapter") is None and not self._bare.is_on(None):
            kwargs["adapter"] = self.active_adapter
        kwargs = arguments.text_alone(kwargs, self._base().config)
        kwargs = versions.with_own_cache_name(kwargs)
        try:
            return super().generate(*args, **kwargs)
        except BaseException:
            # Ctrl-C, a closed pipe, a streamer that raises: the caller's cache can be continued.
            given = kwargs.get(versions.CACHE)
            if isinstance(given, ShadowCache):
                given.settle()
            raise

    # Loading, detaching, unloading

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        base: PreTrainedModel,
        folder: str | Path,
        adapter: str = "default",
        dtype: torch.dtype | None = None,
        impl: str = "auto",
        is_trainable: bool = False,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> "ShadowedModel":
        """Put a saved adapter beside the base it was trained on, in evaluation mode.

        Args:
            base: as for `attach`.
            folder: the adapter's folder, or its hub id such as `user/name`.
            adapter: the name it gets here.
            dtype: type of its weights; by default the base's, and with `is_trainable` that of `attach`.
            impl: as for `attach`.
            is_trainable: train it further. By default it is loaded for inference, frozen.
            revision: branch, tag or commit of a hub id; its main branch by default.
            subfolder: where the adapter lies below the folder or hub id.

        Raises:
            CheckpointError: the folder is damaged or was written for another base, or the hub has no such
                adapter; the base is left as it was.
        """
        check_type(dtype)
        model = cls(base)
        try:
            folder = hub_folder.local(folder, adapter_folder.FILES, revision, subfolder)
            saved = adapter_folder.load(arch.text_model_of(base), folder)
            model.set_impl(impl)
            model._own(adapter, saved, dtype, is_trainable)
        except BaseException:
            model.unload()
            raise
        return model.eval()

    def detached(self, adapter: str | None = None) -> PreTrainedModel:
        """Return the shadow alone as a stock model with weights of its own, which needs no base.

        Raises:
            UserError: the base was resized since it was lent, or its weights are not in memory.
        """
        refuse_resized(self._base(), self._facts.vocab_size)
        model = detached(self._base(), self._adapter(adapter), self.config)
        if self.task == "causal-lm":
            model.generation_config = copy.deepcopy(self.generation_config)
        return model

    def unload(self) -> PreTrainedModel:
        """Give the base back as it was lent, on its present device and in its present type.

        Of a multimodal model the whole is given back. This model cannot be used again. If another model
        holds the base too, it stays frozen, and the last of them gives it back as it was before the
        first.
        """
        base = self._base()
        self._loan.give_back(base)
        (lent,) = self._lent
        self.base, self._lent = None, ()
        del self._decoder, self.adapters
        return lent

    # Helpers

    def _apply(self, fn: Any, recurse: bool = True) -> "ShadowedModel":
        # The other parts of a multimodal model go where its language model goes.
        for lent in self._lent:
            if lent is not self.base:
                lent._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy holds a base of its own.
        if self.base is not None:
            self._loan.register(self.base)

    def _base(self) -> PreTrainedModel:
        if self.base is None:
            raise UserError("this model was unloaded; attach again to the base that unload() returned")
        return self.base


def _refuse_shadowed(base: PreTrainedModel) -> None:
    if isinstance(base, ShadowedModel):
        raise UserError(
            "this model has a shadow already: add_adapter() puts another one beside it, load_adapter() reads "
            "a saved one, and unload() gives the base back"
        )


def _given(inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in inputs.items() if value is not None}


def _rows(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> int:
    given = inputs_embeds if input_ids is None else input_ids
    return 0 if given is None else len(given)
