"""What a look at a model finds: the row that it would need in the table, and what of it no row describes.

Nothing here decides what is supported. It reads a configuration, the class that transformers has for it,
built without weights, and the source of its `forward`; a row is proven by the tests alone.
"""

import ast
import copy
import dataclasses
import inspect
import math
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from shadowpeft.arch.configs import ATTEND
from shadowpeft.arch.family import Family
from shadowpeft.arch.lookup import encodes
from shadowpeft.arch.norms import norm_parts

# Fields by which configurations call the same size.
_SIZES = {
    "mlp": ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "ff_dim", "intermediate_dim"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels", "head_size"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"),
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
# Fields that make a mixture's blocks dense, and how a row says it.
_DENSE = {
    "mlp_only_layers": '(("mlp_only_layers", EVERY_BLOCK),)',
    "first_k_dense_replace": '(("first_k_dense_replace", DEPTH),)',
    "num_dense_layers": '(("num_dense_layers", DEPTH),)',
    "moe_layer_start_index": '(("moe_layer_start_index", DEPTH),)',
}
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
# Fields of a row that no look finds.
BY_HAND = (
    "norms_switches", "tables", "plain", "router", "shadow_recurs", "lists_kinds", "blocks_a_layer",
    "block_attributes", "widens", "packs", "mask_fills_cache", "rope_switch", "masks_itself",
)  # fmt: skip
_DEFAULTS = {entry.name: entry.default for entry in dataclasses.fields(Family)}


@dataclass
class Look:
    """What was found.

    Attributes:
        model_type: as the configuration says.
        causal: class name of its causal language model, `None` if transformers has none.
        classifier: class name of its sequence classifier, likewise.
        found: arguments of the row, by the names of `Family`'s fields.
        misfits: sentences: what no row describes, or what must be settled by hand.
    """

    model_type: str
    causal: str | None = None
    classifier: str | None = None
    found: dict[str, Any] = field(default_factory=dict)
    misfits: list[str] = field(default_factory=list)

    def row(self) -> str | None:
        """Return the row to paste, `None` if there is no class for it or no list of blocks in it."""
        if self.causal is None or "decoder" not in self.found:
            return None
        name = self.causal.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
        words = [f'"{name}"', f'"{self.model_type}"', f'"{self.causal}"']
        if self.classifier is not None:
            words.append(f'"{self.classifier}"')
        for key, value in self.found.items():
            if value != _DEFAULTS[key]:
                shown = value if key == "dense" else repr(value).replace("'", '"')
                words.append(f"{key}={shown}")
        return f"Family({', '.join(words)})"


def look(config: PretrainedConfig) -> Look:
    """Look at the model of a configuration, of a family in the table or not. No weights are made."""
    causal, classifier = (
        _class_of(auto, config) for auto in (AutoModelForCausalLM, AutoModelForSequenceClassification)
    )
    seen = Look(config.model_type, *(kind and kind.__name__ for kind in (causal, classifier)))
    if config.is_encoder_decoder:
        seen.misfits.append("it is an encoder-decoder, and a shadow runs beside one decoder")
    if encodes(config) is not None:
        seen.misfits.append(f"it is an encoder ({encodes(config)}), and each token sees those after it")
    if "text_config" in config.sub_configs:
        seen.misfits.append(
            f"it is multimodal (its configuration holds {', '.join(config.sub_configs)}): such a model is "
            "taken by its language model, and needs a line in arch/multimodal.py"
        )
    if causal is None:
        seen.misfits.append("transformers has no causal language model of this model_type")
        return seen
    try:
        with torch.device("meta"):
            model = causal(copy.deepcopy(config))
    except Exception as error:  # whatever a class of transformers raises for a configuration it cannot use
        seen.misfits.append(f"{causal.__name__} cannot be built: {' '.join(str(error).split())}")
        return seen
    _look_at_head(seen, model)
    _look_at_config(seen, config)
    place = _find_blocks(seen, model)
    if place is not None:
        _look_at_decoder(seen, model, *place)
    return seen


def _class_of(auto: Any, config: PretrainedConfig) -> Any:
    found = auto._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found


def _look_at_head(seen: Look, model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        kind = "none" if head is None else type(head).__name__
        seen.misfits.append(f"its head must be one nn.Linear, and is {kind}")
    elif model._modules.get("lm_head") is not head:
        name = next(name for name, module in model.named_modules() if module is head)
        seen.misfits.append(f"its head is {name}, and a row's is lm_head")
    source = _source_of(type(model).forward)
    if "final_logit_softcapping" in source:
        seen.found["softcaps"] = True
    for name in _SCALES:
        used = re.search(rf"(/ )?\bself\.[\w.]*\b{name}\b", source)
        if used is not None:
            seen.found["divides_logits" if used[1] else "multiplies_logits"] = name


def _look_at_config(seen: Look, config: PretrainedConfig) -> None:
    names = {*config.to_dict()}
    for size, fields in _SIZES.items():
        aliases = config.attribute_map if size == "context" else ()
        seen.found[size] = next((name for name in fields if name in names or name in aliases), None)
    if "num_attention_heads" not in {*names, *config.attribute_map}:
        seen.misfits.append("its configuration has no num_attention_heads, into which a shadow's are written")
    experts = [name for name in _EXPERTS if name in names and getattr(config, name)]
    if experts:
        dense = next((words for name, words in _DENSE.items() if name in names), None)
        if dense is None:
            seen.misfits.append(
                f"it is a mixture of experts ({experts[0]}): find the fields that make a shadow dense, or "
                "one of a single expert that every token takes (dense=..., router=...)"
            )
        else:
            seen.found["dense"] = dense
    kinds = set(getattr(config, "layer_types", None) or ()) - set(ATTEND)
    if kinds:
        seen.found["recurs"] = True
        if "full_attention" not in config.layer_types:
            seen.misfits.append(
                f"its blocks are of the kinds {', '.join(sorted(kinds))}, and a shadow's must attend; see "
                "whether its class takes full_attention in layer_types"
            )


def _find_blocks(seen: Look, model: PreTrainedModel) -> tuple[str, str] | None:
    """Return the path of the decoder and its attribute with the blocks: the outermost list of as many."""
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    outermost = [name for name in lists if name.count(".") == min(other.count(".") for other in lists)]
    if not outermost:
        seen.misfits.append(
            f"it has no list of {depth} blocks (num_hidden_layers), which a decoder loops over"
        )
        return None
    # The blocks have the weights.
    chosen = max(outermost, key=lambda name: sum(p.numel() for p in model.get_submodule(name).parameters()))
    if len(outermost) > 1:
        seen.misfits.append(f"it has several lists of {depth} modules ({', '.join(outermost)})")
    decoder, _, blocks = chosen.rpartition(".")
    if not isinstance(model.get_submodule(decoder), PreTrainedModel):
        seen.misfits.append(f"its decoder, {decoder}, is no model of transformers that can be called alone")
    seen.found.update(decoder=decoder, blocks=blocks)
    return decoder, blocks


def _look_at_decoder(seen: Look, model: PreTrainedModel, path: str, blocks: str) -> None:
    decoder = model.get_submodule(path)
    _look_at_embeddings(seen, model, decoder)
    seen.found["takes_positions"] = "position_ids" in inspect.signature(decoder.forward).parameters
    call = _call_of_block(type(decoder).forward)
    if call is None:
        seen.misfits.append(f"the loop over the blocks was not found in {type(decoder).__name__}.forward")
    else:
        seen.found["passes_kwargs"] = any(keyword.arg is None for keyword in call.keywords)
        streams = [ast.unparse(word) for word in call.args[1:] if _is_stream(word)]
        if streams:
            seen.misfits.append(
                f"its blocks take {', '.join(streams)} beside the hidden states; what passes from block to "
                "block must be one stream"
            )
    every = list(decoder.get_submodule(blocks).children())
    classes = {type(block).__name__ for block in every}
    if len(classes) > 1:
        seen.misfits.append(f"its blocks are of {len(classes)} classes ({', '.join(sorted(classes))})")
    if model._is_stateful:
        seen.found["recurs"] = True
    block = next((block for block in every if "attention" in _kinds_of(block).values()), None)
    if block is None:
        seen.misfits.append(
            "no block calls a part that is known for attention (they call "
            f"{', '.join(_kinds_of(every[0]))}); name input_norm by hand, or None where the attention reads "
            "the stream itself"
        )
    else:
        _look_at_block(seen, block)


def _look_at_embeddings(seen: Look, model: PreTrainedModel, decoder: nn.Module) -> None:
    """Find what a decoder calls before its loop: tables of embeddings, and a norm behind them."""
    names = {name for name, _ in decoder.named_children()}
    early = _called_around_loop(type(decoder).forward, names)
    parts = {name: decoder.get_submodule(name) for name in early}
    own = [name for name, part in decoder.named_children() if part is model.get_input_embeddings()]
    if not own or not isinstance(model.get_input_embeddings(), nn.Embedding):
        seen.misfits.append(f"its token embeddings are not an nn.Embedding of {type(decoder).__name__}")
    others = [name for name in early if name not in own]
    seen.found["embeddings"] = (
        *own,
        *(name for name in others if isinstance(parts[name], nn.Embedding)),
        *(name for name in others if _kind_of(name, parts[name]) == "norm"),
    )


def _kinds_of(block: nn.Module) -> dict[str, str]:
    """Return the parts that a block's `forward` calls, in the order of its source, and what each is."""
    called = _called(type(block).forward, {name for name, _ in block.named_children()})
    return {name: _kind_of(name, block.get_submodule(name)) for name in called}


def _look_at_block(seen: Look, block: nn.Module) -> None:
    """Find the norms by the order in which a block's `forward` calls its parts."""
    kinds = _kinds_of(block)
    called, order = list(kinds), list(kinds.values())
    attends = order.index("attention")
    before = [name for name in called[:attends] if kinds[name] == "norm"]
    seen.found["input_norm"] = before[0] if before else None
    feeds = order.index("mlp") if "mlp" in order else len(order)
    behind = [[name for name in part if kinds[name] == "norm"] for part in (called[attends:], called[feeds:])]
    # What a norm behind the MLP puts out, no other part reads; then the one behind the attention is like it.
    if behind[1] and behind[0][0] != behind[1][0]:
        seen.found["output_norms"] = (behind[0][0], behind[1][0])
    norms = [block.get_submodule(name) for name in (*before[:1], *seen.found.get("output_norms", ()))]
    for kind in sorted({type(norm).__name__ for norm in norms if norm_parts(norm) is None}):
        seen.misfits.append(
            f"its norm {kind} is not among those of arch/norms.py; without what it computes there are no "
            "fused kernels, and no output norms"
        )


def _kind_of(name: str, module: nn.Module) -> str:
    words = f"{name} {type(module).__name__}".lower()
    for kind, marks in (
        ("norm", ("norm", "ln_", "_ln")),
        ("attention", ("attention", "attn")),
        ("mlp", ("mlp", "moe", "feed_forward", "feedforward", "ffn", "expert", "fc")),
    ):
        if any(mark in words for mark in marks):
            return kind
    return "other"


def _called_around_loop(forward: Any, names: set[str]) -> list[str]:
    """Return which of `self`'s parts a decoder calls before its loop over the blocks, and not behind it."""
    tree = _tree_of(forward)
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    if not loops:
        return []
    last = max(loops, key=lambda node: node.lineno)
    behind = {_of_self(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and n.lineno > last.lineno}
    first = min(node.lineno for node in loops)
    return [name for name in _called(forward, names, before=first) if name not in behind]


def _called(forward: Any, names: set[str], before: float = math.inf) -> list[str]:
    """Return which of `self`'s parts a function calls before a line, in the order of its source."""
    nodes = ast.walk(_tree_of(forward))
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.lineno < before]
    found = []
    for call in sorted(calls, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0)):
        name = _of_self(call.func)
        if name in names and name not in found:
            found.append(name)
    return found


def _call_of_block(forward: Any) -> ast.Call | None:
    """Return the call of a block in the loop of a decoder's `forward`."""
    for loop in ast.walk(_tree_of(forward)):
        if not isinstance(loop, ast.For):
            continue
        targets = {node.id for node in ast.walk(loop.target) if isinstance(node, ast.Name)}
        for node in ast.walk(loop):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in targets:
                return node
    return None


def _is_stream(node: ast.expr) -> bool:
    words = ast.unparse(node).lower()
    return any(mark in words for mark in ("hidden", "resid", "stream", "per_layer"))


def _of_self(node: ast.expr) -> str | None:
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr if is_own and isinstance(node, ast.Attribute) else None


def _source_of(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(inspect.unwrap(function)))


def _tree_of(function: Any) -> ast.AST:
    return ast.parse(_source_of(function))
