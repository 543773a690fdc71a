"""GGUF files of tiny models, read back and computed by the equations that llama.cpp follows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.families import attached, perturb, tiny_config, tiny_model
from helpers.gguf_tokenizers import tokenizer_of
from shadowpeft import ShadowConfig

gguf = pytest.importorskip("gguf")

TOKENIZER = {"gemma2": "sentencepiece", "gemma3_text": "sentencepiece"}


def made(family: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = tokenizer_of(TOKENIZER.get(family, "qwen2"))
    config = tiny_config(family, vocab_size=len(tokenizer) + 3, **changes)
    config.eos_token_id = tokenizer.eos_token_id
    return tiny_model(family, config=config), tokenizer


def as_a_user(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shadow: PreTrainedModel | None = None,
) -> None:
    perturb(attached(model, ShadowConfig(), shadow)).save_pretrained(folder / "adapter")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


class File:
    """What a GGUF file holds: fields by name, tensors by name in float32."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {
            part.name: torch.tensor(gguf.dequantize(part.data, part.tensor_type)) for part in reader.tensors
        }
        self.types = {part.name: part.tensor_type.name for part in reader.tensors}
        self.arch = self.fields["general.architecture"]

    def size(self, name: str) -> Any:
        return self.fields.get(f"{self.arch}.{name}")


def by_the_equations(file: File, ids: list[int]) -> Tensor:
    """Compute logits, (T, V), as llama.cpp does from a file: one token, head and block after another, for the
    families that we write."""
    eps, heads, groups = (
        file.size("attention.layer_norm_rms_epsilon"),
        file.size("attention.head_count"),
        file.size("attention.head_count_kv"),
    )
    width, gemma = file.size("attention.key_length"), file.arch.startswith("gemma")

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return x_TD / (x_TD.pow(2).mean(-1, keepdim=True) + eps).sqrt() * file.tensors[f"{name}.weight"]

    def linear(x_TD: Tensor, name: str) -> Tensor:
        bias = file.tensors.get(f"{name}.bias")
        return x_TD @ file.tensors[f"{name}.weight"].T + (0 if bias is None else bias)

    def turned(x_TH: Tensor, theta: float) -> Tensor:
        """Rotate the pairs: neighbours for `llama`, i and i + half elsewhere."""
        out = torch.empty_like(x_TH)
        for pair in range(width // 2):
            one, two = (2 * pair, 2 * pair + 1) if file.arch == "llama" else (pair, pair + width // 2)
            angle_T = torch.arange(len(ids)) * theta ** (-2 * pair / width)
            out[:, one] = x_TH[:, one] * angle_T.cos() - x_TH[:, two] * angle_T.sin()
            out[:, two] = x_TH[:, one] * angle_T.sin() + x_TH[:, two] * angle_T.cos()
        return out

    def attention(x_TD: Tensor, block: str, windowed: bool) -> Tensor:
        query, key, value = (linear(x_TD, f"{block}.attn_{part}") for part in "qkv")
        theta, cap, answers = file.size("rope.freq_base"), file.size("attn_logit_softcapping"), []
        if windowed and file.size("rope.freq_base_swa"):
            theta = file.size("rope.freq_base_swa")
        for head in range(heads):
            mine, shared = slice(head * width, (head + 1) * width), head // (heads // groups)
            theirs = slice(shared * width, (shared + 1) * width)
            q_TH, k_TH = query[:, mine], key[:, theirs]
            if f"{block}.attn_q_norm.weight" in file.tensors:
                q_TH, k_TH = norm(q_TH, f"{block}.attn_q_norm"), norm(k_TH, f"{block}.attn_k_norm")
            scores_TT = turned(q_TH, theta) @ turned(k_TH, theta).T / width**0.5
            scores_TT = scores_TT if cap is None else cap * (scores_TT / cap).tanh()
            behind_TT = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
            hidden_TT = (behind_TT < 0) | (
                behind_TT >= (file.size("attention.sliding_window") if windowed else 1000)
            )
            answers.append(scores_TT.masked_fill(hidden_TT, -torch.inf).softmax(-1) @ value[:, theirs])
        return linear(torch.cat(answers, -1), f"{block}.attn_output")

    h_TD = file.tensors["token_embd.weight"][ids] * (file.size("embedding_length") ** 0.5 if gemma else 1)
    every = {"gemma2": 2, "gemma3": 6}.get(file.arch)
    pattern = file.size("attention.sliding_window_pattern")
    act: Callable[[Tensor], Tensor] = (
        (lambda x: torch.nn.functional.gelu(x, approximate="tanh")) if gemma else torch.nn.functional.silu
    )
    for index in range(file.size("block_count")):
        block = f"blk.{index}"
        windowed = every is not None and (
            (index + 1) % every != 0 if pattern is None else bool(pattern[index])
        )
        a_TD = attention(norm(h_TD, f"{block}.attn_norm"), block, windowed)
        h_TD = h_TD + (norm(a_TD, f"{block}.post_attention_norm") if gemma else a_TD)
        x_TD = norm(h_TD, f"{block}.ffn_norm")
        m_TD = linear(
            act(linear(x_TD, f"{block}.ffn_gate")) * linear(x_TD, f"{block}.ffn_up"), f"{block}.ffn_down"
        )
        h_TD = h_TD + (norm(m_TD, f"{block}.post_ffw_norm") if gemma else m_TD)
    logits_TV = (
        norm(h_TD, "output_norm")
        @ file.tensors["output.weight" if "output.weight" in file.tensors else "token_embd.weight"].T
    )
    cap = file.size("final_logit_softcapping")
    return logits_TV if cap is None else cap * (logits_TV / cap).tanh()
