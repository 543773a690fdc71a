"""Stock models, tokenizers and configurations of transformers, read so that each mistake is one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from shadowpeft.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What transformers raises for a config.json with a value that it cannot use, such as a null.
_WRONG_VALUES = (StrictDataclassError, TypeError, AttributeError, AssertionError)
# Models that a message lists.
_MOST_BESIDE = 8
_HUB_REMEDY = "; check its name, the connection and your access to it, or give a folder with config.json"


def load_config(source: str) -> "PretrainedConfig":
    """Read the configuration of a model folder or hub id: of a multimodal model, of its language model.

    Raises:
        UserError: there is no such model, or it cannot be read or reached.
    """
    from shadowpeft import arch

    return arch.text_config_of(whole_config(source))


def whole_config(source: str) -> "PretrainedConfig":
    """Read the configuration of a model folder or hub id as it is, also of a multimodal model.

    Raises:
        UserError: there is no such model, or it cannot be read or reached.
    """
    from transformers import AutoConfig

    with _reading("model", source):
        return AutoConfig.from_pretrained(source)


def written_config(source: str) -> dict[str, Any]:
    """Read what the config.json of a model folder or hub id says itself, without any default.

    Raises:
        UserError: there is no such model, or it cannot be read or reached.
    """
    from transformers import PretrainedConfig

    with _reading("model", source):
        return PretrainedConfig.get_config_dict(source)[0]


def load_tokenizer(source: str) -> "PreTrainedTokenizerBase":
    """Read the tokenizer of a model folder or hub id.

    Raises:
        UserError: there is no such tokenizer, or it cannot be read or reached.
    """
    from transformers import AutoTokenizer

    with _reading("tokenizer", source):
        return AutoTokenizer.from_pretrained(source)


def load_model(
    source: str,
    dtype: "torch.dtype | str" = "auto",
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
) -> "PreTrainedModel":
    """Read the causal language model of a folder or hub id, all of whose weights must be there.

    A multimodal model is read whole, and its language model is returned; the other parts are then let go.

    Args:
        source: the folder or hub id.
        dtype: type of the weights; with `load_in_4bit`, of those left unquantised and of the products.
        attn_implementation: transformers' name of an implementation of the attention; by default its own
            choice.
        load_in_4bit: store the linear layers, but not the head, in 4 bits (NF4, with double quantisation).

    Raises:
        UserError: there is no such model, it cannot be read or reached, a weight is missing, or it is
            quantised and the library for that is not installed.
    """
    from transformers import BitsAndBytesConfig

    from shadowpeft import arch

    config = whole_config(source)
    arch.refuse_no_language_model(config)
    auto = arch.auto_class(config, "causal-lm")
    chosen: dict[str, Any] = {}
    if attn_implementation is not None:
        chosen["attn_implementation"] = attn_implementation
    if load_in_4bit:
        chosen["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    with _reading("model", source):
        loaded: Any = auto.from_pretrained(source, dtype=dtype, output_loading_info=True, **chosen)
    model, info = loaded
    # transformers draws missing weights at random, and only warns.
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"the model {source} lacks {len(missing)} weights, such as {missing[0]}; use a complete causal "
            "language model"
        )
    return arch.text_model_of(model)


def load_classifier(source: str, labels: int, dtype: "torch.dtype | str" = "auto") -> "PreTrainedModel":
    """Read a model as a sequence classifier, all of whose weights but the head's must be there.

    Args:
        source: the folder or hub id.
        labels: number of classes.
        dtype: type of the weights.

    Raises:
        UserError: there is no such model, it cannot be read or reached, or a weight other than the head's is
            missing.
        UnsupportedModelError: it is multimodal and of a kind that has no classifier.
    """
    from shadowpeft import arch

    auto = arch.auto_class(whole_config(source), "sequence-classification")
    with _reading("model", source):
        loaded: Any = auto.from_pretrained(
            source, num_labels=labels, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
    model, info = loaded
    # The head may be missing or of another shape: an adapter brings its own.
    misshapen = {name for name, *_ in info["mismatched_keys"]}
    missing = sorted(name for name in {*info["missing_keys"], *misshapen} if not name.startswith("score."))
    if missing:
        raise UserError(
            f"the model {source} lacks {len(missing)} weights of the right shape, such as {missing[0]}; use "
            "a complete model"
        )
    return arch.text_model_of(model)


@contextmanager
def _reading(what: str, source: str) -> Iterator[None]:
    """Turn what transformers raises while it reads `source` into one sentence.

    Raises:
        UserError: there is no such folder, or the reading failed.
    """
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()
    if is_path and not Path(source).is_dir():
        raise UserError(
            f"there is no model folder {source}; {_models_beside(Path(source))}or a hub id such as "
            "Qwen/Qwen3-0.6B"
        )
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, *_WRONG_VALUES) as error:
        said, where, remedy = " ".join(str(error).split()), "folder", _what_it_is(Path(source))
        if not Path(source).is_dir():
            where = "hub id"
            if isinstance(error, OSError):
                # The first line of transformers' message says what is wrong; the others guess at remedies.
                said = str(error).strip().partition("\n")[0].rstrip(". ")
                remedy = _HUB_REMEDY
        raise UserError(f"the {what} of the {where} {source} cannot be loaded: {said}{remedy}") from error


def _what_it_is(folder: Path) -> str:
    """Say what a folder is that is no model, if it is one of ours."""
    from shadowpeft.storage import adapter_folder, shadow_folder

    if (folder / adapter_folder.CONFIG).is_file():
        return "; it is the folder of an adapter, which belongs beside its base (--adapter)"
    if (folder / shadow_folder.CONFIG).is_file():
        return "; it is a pretrained shadow, which belongs beside its base (--shadow)"
    return ""


def _models_beside(missing: Path) -> str:
    """Return what to give in place of a folder that does not exist: it lists the models beside it, if any."""
    beside = sorted(str(path.parent) for path in missing.expanduser().parent.glob("*/config.json"))
    if not beside:
        return "give a folder with config.json, "
    more = f" and {len(beside) - _MOST_BESIDE} more" if len(beside) > _MOST_BESIDE else ""
    return f"give a folder with config.json (there are: {', '.join(beside[:_MOST_BESIDE])}{more}), "
