"""The table of families that are written as GGUF: what llama.cpp calls each, and what it computes otherwise.

To add one, add a row here and a model to `tests/export/test_llama_cpp.py`, which compares the file in a real
llama.cpp with transformers.
"""

from dataclasses import dataclass
from typing import Any, Literal


class Cycle:
    """A value of `Layout.needs`: a list that goes round and round.

    Args:
        *values: one for each block of a round.
    """

    def __init__(self, *values: Any) -> None:
        self.values = values

    def of(self, blocks: int) -> list[Any]:
        """Return the list for a number of blocks."""
        return [self.values[block % len(self.values)] for block in range(blocks)]


@dataclass(frozen=True)
class Layout:
    """Differences between llama.cpp and transformers in one family. The defaults are Qwen3's.

    Attributes:
        name: llama.cpp's name of the architecture.
        activations: transformers' names of the only activation that llama.cpp computes there.
        activation: config field of the activation; `None` where the family has one alone.
        needs: other config fields, and the values without which llama.cpp computes something else.
        biases: config fields that llama.cpp obeys, because it reads these biases if the file has them.
        centred: its norms subtract the mean (LayerNorm).
        eps: config field of the number in its norms that keeps a root from zero, or the number.
        norm_offset: transformers multiplies by the weight of a norm plus this, llama.cpp by the weight.
        pairs_neighbours: its rotary embedding rotates the pairs (2i, 2i + 1), that of transformers (i, i +
            half).
        turns: its rotary embedding turns a part of each head alone where the configuration says so; `None` if
            it has no rotary embedding.
        ropes: kinds of rotary embedding that it computes.
        windows: how the file says which blocks have a sliding window: a `list`, or the `period`, the last
            block of which has none; `None` if llama.cpp knows no windows there.
        needs_windows: llama.cpp stops where no block has one.
        window_every: the period if the file has no list.
        caps: llama.cpp always soft-caps the attention logits and the output.
        numbers: its further hyperparameters, and the config fields of their values; after a dot, the name
            in a field that holds several.
        parts: tensors of a block that are others to llama.cpp: the end of the name, and the names of the
            equal parts it is cut into along the rows; none if llama.cpp needs no such tensor.
        scales_queries: end of the name of what takes in the quotient if the attention logits are divided by
            `query_pre_attn_scalar`.
        columns_first: transformers stores the matrices of its blocks transposed.
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    activation: str | None = "hidden_act"
    needs: tuple[tuple[str, Any], ...] = ()
    biases: tuple[str, ...] = ()
    centred: bool = False
    eps: str | float = "rms_norm_eps"
    norm_offset: float = 0.0
    pairs_neighbours: bool = False
    turns: Literal["all", "part"] | None = "all"
    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    windows: Literal["list", "period"] | None = None
    needs_windows: bool = False
    window_every: int | None = None
    caps: bool = False
    numbers: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    scales_queries: str | None = None
    columns_first: bool = False


# All three are the approximation by tanh.
_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_UNSCALED = ("default", "linear")
_LLAMA3 = ("default", "linear", "yarn", "llama3")
_TIED = ("tie_word_embeddings", True)
_GATE_AND_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
_DOWN = ("mlp.down_proj.weight",)
_GRANITE = (
    ("logit_scale", "logits_scaling"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("attention.scale", "attention_multiplier"),
)
# What Qwen3 has by other names.
_LFM2 = (
    ("operator_norm.weight", ("input_layernorm.weight",)),
    ("self_attn.q_layernorm.weight", ("self_attn.q_norm.weight",)),
    ("self_attn.k_layernorm.weight", ("self_attn.k_norm.weight",)),
    ("self_attn.out_proj.weight", ("self_attn.o_proj.weight",)),
    ("ffn_norm.weight", ("post_attention_layernorm.weight",)),
    ("feed_forward.w1.weight", ("mlp.gate_proj.weight",)),
    ("feed_forward.w3.weight", ("mlp.up_proj.weight",)),
    ("feed_forward.w2.weight", _DOWN),
    ("model.embedding_norm.weight", ("model.norm.weight",)),
)

# The shadows of mixtures and hybrids are dense and attend, and so are often of another family to llama.cpp.
LAYOUTS = {
    "llama": Layout("llama", pairs_neighbours=True, ropes=_LLAMA3, biases=("attention_bias", "mlp_bias")),
    "mistral": Layout("llama", pairs_neighbours=True),
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "qwen3_moe": Layout("qwen3"),
    "gemma2": Layout(
        "gemma2", _GELU, "hidden_activation", needs=(_TIED,), norm_offset=1.0, ropes=_UNSCALED,
        windows="list", needs_windows=True, window_every=2, caps=True,
        scales_queries=".q_proj.weight",
    ),
    "gemma3_text": Layout(
        "gemma3", _GELU, "hidden_activation", needs=(("final_logit_softcapping", None),), norm_offset=1.0,
        ropes=_UNSCALED, windows="list", needs_windows=True, window_every=6,
        scales_queries=".q_norm.weight",
    ),
    "phi3": Layout("phi3", turns="part"),
    "olmo2": Layout("olmo2"),
    "gpt2": Layout(
        "gpt2", _GELU, "activation_function", centred=True, eps="layer_norm_epsilon", turns=None,
        needs=(("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)), columns_first=True,
    ),
    "gpt_bigcode": Layout(
        "starcoder", _GELU, "activation_function", centred=True, eps="layer_norm_epsilon", turns=None,
        needs=(("scale_attn_weights", True), ("multi_query", True)),
    ),
    "arcee": Layout("arcee", ("relu2",), pairs_neighbours=True, ropes=_LLAMA3),
    "cohere": Layout(
        "command-r", needs=(_TIED, ("use_qk_norm", False)), centred=True, eps="layer_norm_eps",
        numbers=(("logit_scale", "logit_scale"),),
    ),
    "cohere2": Layout(
        "cohere2", needs=(_TIED,), centred=True, eps="layer_norm_eps", ropes=_UNSCALED, windows="period",
        needs_windows=True, numbers=(("logit_scale", "logit_scale"),),
    ),
    "cwm": Layout("llama", pairs_neighbours=True, ropes=_LLAMA3),
    "dots1": Layout("qwen3"),
    "ernie4_5": Layout("ernie4_5"),
    "ernie4_5_moe": Layout("ernie4_5"),
    "exaone4": Layout("exaone4", needs=(("sliding_window", None),), ropes=_LLAMA3),
    "gemma": Layout("gemma", _GELU, needs=(_TIED,), norm_offset=1.0),
    "glm": Layout("chatglm", turns="part", biases=("attention_bias",)),
    "glm4": Layout("glm4", turns="part", biases=("attention_bias",)),
    "granite": Layout("granite", pairs_neighbours=True, numbers=_GRANITE),
    "granitemoe": Layout(
        "granite", pairs_neighbours=True, numbers=_GRANITE,
        parts=(
            ("block_sparse_moe.experts.gate_up_proj", _GATE_AND_UP),
            ("block_sparse_moe.experts.down_proj", _DOWN),
            ("block_sparse_moe.router.weight", ()),
        ),
    ),
    "granitemoehybrid": Layout(
        "granite", pairs_neighbours=True, numbers=_GRANITE, needs=(("position_embedding_type", "rope"),),
        biases=("mamba_conv_bias", "mamba_proj_bias"),
        parts=(("shared_mlp.input_linear.weight", _GATE_AND_UP), ("shared_mlp.output_linear.weight", _DOWN)),
    ),
    "helium": Layout("llama"),
    "hunyuan_v1_dense": Layout("hunyuan-dense", ropes=("default", "linear", "yarn", "fixed alpha")),
    "jais2": Layout(
        "jais2", ("relu2",), centred=True, eps="layer_norm_eps",
        needs=(("attention_bias", True), ("mlp_bias", True)), biases=("attention_bias", "mlp_bias"),
    ),
    "lfm2": Layout("qwen3", activation=None, eps="norm_eps", biases=("conv_bias",), parts=_LFM2),
    "lfm2_moe": Layout(
        "qwen3", activation=None, eps="norm_eps", biases=("conv_bias", "use_expert_bias"), parts=_LFM2
    ),
    "ministral": Layout("llama", pairs_neighbours=True),
    "ministral3": Layout(
        "mistral3", pairs_neighbours=True,
        numbers=(("attention.temperature_scale", "rope_parameters.llama_4_scaling_beta"),),
    ),
    "mixtral": Layout(
        "llama", pairs_neighbours=True,
        parts=(
            ("mlp.experts.gate_up_proj", _GATE_AND_UP),
            ("mlp.experts.down_proj", _DOWN),
            ("mlp.gate.weight", ()),
        ),
    ),
    "nemotron": Layout(
        "nemotron", ("relu2",), biases=("attention_bias", "mlp_bias"), centred=True, eps="norm_eps",
        norm_offset=1.0, turns="part",
    ),
    "olmo": Layout("olmo", needs=(("clip_qkv", None),), centred=True, eps=1e-5, pairs_neighbours=True),
    "olmo3": Layout("olmo2", windows="period"),
    "phi": Layout(
        "phi2", _GELU, needs=(("qk_layernorm", False),), centred=True, eps="layer_norm_eps", turns="part"
    ),
    "qwen2_moe": Layout("qwen2", biases=("qkv_bias",)),
    "seed_oss": Layout("seed_oss", biases=("attention_bias",)),
    "smollm3": Layout("smollm3", needs=(("no_rope_layers", Cycle(1, 1, 1, 0)),), pairs_neighbours=True),
    "stablelm": Layout(
        "stablelm", needs=(("qk_layernorm", False),), biases=("use_qkv_bias",), centred=True,
        eps="layer_norm_eps", turns="part",
    ),
    "starcoder2": Layout(
        "starcoder2", _GELU, needs=(("use_bias", True),), biases=("use_bias",), centred=True,
        eps="norm_epsilon",
    ),
}  # fmt: skip
