"""A GGUF file of a detached model: what llama.cpp runs, and programs that are built on it."""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.errors import UnsupportedModelError
from shadowpeft.export import gguf_layout, gguf_vocab

_Q8, _F16, _F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32
_TYPES = {torch.float32: _F32, torch.float16: _F16, torch.bfloat16: gguf.GGMLQuantizationType.BF16}
_FILE_TYPES = {
    _F32: gguf.LlamaFileType.ALL_F32,
    _F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
    _Q8: gguf.LlamaFileType.MOSTLY_Q8_0,
}


def refuse_unknown(config: PretrainedConfig, task: arch.Task, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise unless llama.cpp computes what the shadow computes, and splits text as the tokenizer does.

    Args:
        config: of the shadow.
        task: what it was trained for.
        tokenizer: its tokenizer.

    Raises:
        UnsupportedModelError: it does not; the message says why.
    """
    if task != "causal-lm":
        raise UnsupportedModelError(
            "a classifier cannot be written as GGUF, which llama.cpp runs to generate text; give --to hf"
        )
    gguf_layout.layout_of(config)
    gguf_vocab.read(tokenizer, config.vocab_size)


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, quantise: bool = False
) -> None:
    """Write model and tokenizer as one file, which holds one tensor in memory at a time.

    Args:
        model: the detached model.
        tokenizer: its tokenizer.
        path: the file.
        quantise: write matrices in 8 bits (q8_0) rather than in the model's type. Vectors are always float32.

    Raises:
        UnsupportedModelError: as in `refuse_unknown`.
    """
    wanted = _Q8 if quantise else _TYPES[model.dtype]
    writer = gguf.GGUFWriter(path, gguf_layout.layout_of(model.config).name)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_file_type(_FILE_TYPES[wanted])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        gguf_layout.write_sizes(writer, model)
        assert model.generation_config is not None
        gguf_vocab.write(writer, tokenizer, model.config.vocab_size, model.generation_config)
        # The header lists every tensor before the data begin, so the tensors are made twice, one at a time.
        for name, tensor in gguf_layout.tensors(model):
            kind = _type_of(tensor, wanted)
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
            # The shape counts bytes, so the type that is given to numpy must be that of bytes.
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        parts = tqdm(
            gguf_layout.tensors(model),
            desc="write",
            unit="tensor",
            leave=False,
            disable=None,
            file=sys.stderr,
        )
        for _, tensor in parts:
            writer.write_tensor_data(gguf.quantize(gguf_layout.as_numpy(tensor), _type_of(tensor, wanted)))
    finally:
        writer.close()


def _type_of(tensor: torch.Tensor, wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Return the type that a tensor is stored in."""
    # llama.cpp reads vectors in float32 alone.
    if tensor.ndim == 1:
        return _F32
    # q8_0 packs blocks of 32 numbers of a row.
    if wanted == _Q8 and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[_Q8][0]:
        return _F16
    return wanted
