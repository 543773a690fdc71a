"""Packed rows: documents that do not see each other, and a run on them."""

import json

import pytest
import torch
from helpers.families import (
    TINY,
    attached,
    perturb,
    tiny_model,
    token_ids,
)
from helpers.steps import build, documents, step
from torch import Tensor
from transformers import AutoTokenizer, DataCollatorWithFlattening

from shadowpeft import ShadowConfig, arch, attach
from shadowpeft.arch import versions
from shadowpeft.cli import main
from shadowpeft.data.encode import encode_all
from shadowpeft.data.packing import Collator, pack
from shadowpeft.data.rows import read_rows
from shadowpeft.storage import stock_models
from shadowpeft.train import train
from shadowpeft.train.config import TrainConfig

PACKING = [name for name in TINY if arch.FAMILIES[name].packs]


def block_diagonal(docs: list[Tensor]) -> Tensor:
    """The same as a mask to be added: zero where a token may look, (1, 1, T, T)."""
    seen = torch.block_diag(*[torch.ones(doc.shape[1], doc.shape[1]).tril() for doc in docs])
    return torch.zeros_like(seen).masked_fill(seen == 0, torch.finfo(seen.dtype).min)[None, None]


@pytest.mark.parametrize("model_type", PACKING)
def test_packed_documents_do_not_see_each_other(model_type):
    """Catches a document that reads its neighbour, in the base or in the shadow: their logits are those of
    each document alone."""
    model = build(model_type)
    docs, ids, positions = documents()
    got = model(ids, position_ids=positions, use_cache=False, output_shadow_logits=True)
    for name in ("logits", "shadow_logits"):
        alone = torch.cat([model(doc, use_cache=False, output_shadow_logits=True)[name] for doc in docs], 1)
        torch.testing.assert_close(got[name], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", [name for name in TINY if not arch.FAMILIES[name].packs])
def test_families_that_cannot_pack_are_marked_for_a_reason(model_type):
    """Catches a family that has learned to pack: the stock base alone lets documents see each other."""
    if model_type == "falcon" and versions.CACHE == "cache":
        pytest.skip("Falcon keeps documents apart from transformers 5.24 on, and older ones are supported")
    base = tiny_model(model_type)
    docs, ids, positions = documents()
    given = {"position_ids": positions} if arch.FAMILIES[model_type].takes_positions else {}
    got = base(ids, **given, use_cache=False).logits
    alone = torch.cat([base(doc, use_cache=False).logits for doc in docs], 1)
    assert not torch.allclose(got, alone, atol=1e-2)


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen3", "gpt_neox", "gptj"]
)  # which know positions by their distance alone
def test_a_mask_of_the_callers_own_reaches_base_and_shadow(model_type):
    """Catches a four-dimensional mask that only one of the two sees."""
    model = build(model_type)
    docs, ids, positions = documents()
    got = model(ids, attention_mask=block_diagonal(docs), use_cache=False, output_shadow_logits=True)
    want = model(ids, position_ids=positions, use_cache=False, output_shadow_logits=True)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(got.shadow_logits, want.shadow_logits, rtol=1e-4, atol=5e-5)


def test_what_tells_flash_attention_of_documents_reaches_base_and_shadow():
    """Catches a shadow that gets no `cu_seq_lens_q` and lets its documents see each other."""
    model = build("llama").train()
    docs, _, _ = documents()
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    batch = collate([{"input_ids": doc[0].tolist()} for doc in docs])
    names = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    assert names <= batch.keys()
    seen = []
    for attention in (
        arch.blocks_of(model.base)[0].self_attn,
        model.adapters["default"].shadow.backbone.layers[0].self_attn,
    ):
        attention.register_forward_pre_hook(
            lambda *call: seen.append(names & call[-1].keys()), with_kwargs=True
        )
    model(**batch)
    assert seen == [names, names]


def test_a_packed_step_is_the_step_of_its_documents():
    """Catches a prediction across documents: loss and gradients are those of the documents one by one."""
    model = build("qwen3", dropout=0.0).train()
    docs, _, _ = documents()
    batch = DataCollatorWithFlattening()([{"input_ids": doc[0].tolist()} for doc in docs])
    loss, found = step(model, batch)
    total = sum(doc.shape[1] - 1 for doc in docs)
    parts = [
        step(model, {"input_ids": doc, "labels": doc, "num_items_in_batch": torch.tensor(total)})
        for doc in docs
    ]
    torch.testing.assert_close(loss, sum(part for part, _ in parts))
    for name, grad in found.items():
        torch.testing.assert_close(
            grad, sum(grads[name] for _, grads in parts), rtol=1e-4, atol=1e-6, msg=name
        )


def test_a_classifier_with_a_mask_of_the_callers_own_pools_the_last_token():
    """Catches a four-dimensional mask read as if it told tokens from padding."""
    model = perturb(attached(tiny_model("llama", "sequence-classification"), ShadowConfig()))
    ids = token_ids(2, 9)
    mask = torch.ones(9, 9).tril().bool().expand(2, 1, 9, 9)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, model(ids).logits)


@pytest.fixture(scope="module")
def folders(base_folder, rows_file) -> dict[str, str]:
    return {"model": str(base_folder), "data": str(rows_file)}


def test_training_on_packed_rows_starts_at_the_same_loss(folders, tmp_path):
    """Catches documents that see each other through the Trainer, and evaluation on packed rows."""
    quiet = ShadowConfig(dropout=0.0)
    fixed = {
        **folders,
        "output": str(tmp_path / "run"),
        "max_steps": 1,
        "logging_steps": 1,
        "batch_size": 24,
        "max_length": 64,
    }
    result = train(
        TrainConfig(**fixed, eval_data=folders["data"], learning_rate=1e-12, packing=True, shadow=quiet)
    )
    torch.manual_seed(0)
    model = attach(stock_models.load_model(folders["model"], torch.float32), quiet)
    out = model(
        **Collator(2)(
            encode_all(read_rows(folders["data"]), AutoTokenizer.from_pretrained(folders["model"]), 64)
        )
    )
    assert result.train_loss == pytest.approx(out.loss.item(), rel=1e-5)
    assert result.shadow_loss == pytest.approx(out.shadow_loss.item(), rel=1e-5)
    assert result.eval_shadow_loss == pytest.approx(result.shadow_loss, rel=1e-5)
    assert "| packed to | 64 tokens a row |" in (tmp_path / "run" / "adapter" / "README.md").read_text(
        encoding="utf-8"
    )


def test_packing_takes_fewer_steps(folders, tmp_path, capsys):
    """Catches a flag that reaches nothing."""
    words = ["train", "--model", folders["model"], "--data", folders["data"]]
    words += ["--output", str(tmp_path / "run")]
    flags = "--packing --max-length 64 --batch-size 1 --epochs 1 --device cpu --eval-fraction 0 --json"
    assert main([*words, *flags.split()]) == 0
    tokens = encode_all(read_rows(folders["data"]), AutoTokenizer.from_pretrained(folders["model"]), 64)
    assert json.loads(capsys.readouterr().out)["steps"] == len(pack(tokens, 64)) < 24
