"""Checkpointing, whole-step compilation, packing and a 4-bit base on a GPU.

Each is tested with the plain boundary and with the fused one.
"""

import copy
import importlib.util
import json
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model
from helpers.runs import save_base, text_rows, write_rows
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel
from shadowpeft.cli import main
from shadowpeft.train.arguments import recompute_activations

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
WIDTH = 128
SIZES = {"hidden_size": WIDTH, "intermediate_size": 256, "head_dim": 32}
VARIANTS = ("normed", "paper", "peft")


@pytest.fixture(params=["reference", "triton"])
def impl(request) -> str:
    return request.param


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


def shadowed(base: PreTrainedModel, impl: str, std: float = 0.3, **settings: Any) -> ShadowedModel:
    model = perturb(attached(base, ShadowConfig(**{"alpha": 0.5, **settings})), std=std).train()
    model.set_impl(impl)
    return model


def build(
    impl: str, model_type: str = "qwen3", dtype: torch.dtype = torch.float32, layers: int = 4, **settings: Any
) -> ShadowedModel:
    changes: dict[str, Any] = {**SIZES, "num_hidden_layers": layers}
    if model_type != "llama":
        kinds = ["sliding_attention", "full_attention"] if model_type == "gemma3_text" else ["full_attention"]
        changes["layer_types"] = (kinds * layers)[:layers]
    base = tiny_model(model_type, config=tiny_config(model_type, **changes), dtype=dtype)
    return shadowed(base.cuda(), impl, **settings)


def rows(count: int = 3, length: int = 45) -> Tensor:
    return torch.randint(3, 97, (count, length), generator=torch.Generator().manual_seed(2)).cuda()


def step(model: nn.Module, **batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step from a fixed random state: the loss and every gradient."""
    model.zero_grad()
    torch.manual_seed(3)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {
        name.removeprefix("_orig_mod."): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    errors = {
        name: ((found[name] - grad).norm() / grad.norm().clamp(min=1e-6)).item()
        for name, grad in expected.items()
    }
    assert max(errors.values()) < bound, sorted(errors.items(), key=lambda item: -item[1])[:3]


def assert_as_exact(found: dict[str, Tensor], usual: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Judge the error of each gradient by that of the usual way: at most three times it, but for 1e-4."""
    assert found.keys() == usual.keys() == truth.keys()
    errors = {
        name: tuple(
            ((grads[name] - exact).norm() / exact.norm().clamp(min=1e-6)).item() for grads in (found, usual)
        )
        for name, exact in truth.items()
    }
    worse = {name: pair for name, pair in errors.items() if not pair[0] <= 3 * pair[1] + 1e-4}
    assert not worse, sorted(worse.items(), key=lambda item: -item[1][0])[:5]


# Gradient checkpointing


def test_checkpointed_gradients_are_the_same_bits(impl, variant):
    """Catches dropout drawn anew in the second pass, by torch or by a kernel.

    Eager attention is used, because its backward pass is deterministic.
    """
    model = build(impl, variant=variant, dropout=0.2)
    model.base.set_attn_implementation("eager")
    ids = rows()
    loss, expected = step(model, input_ids=ids, labels=ids)
    assert_close(step(model, input_ids=ids, labels=ids)[1], expected, 1e-12)
    recompute_activations(model)
    loss_again, found = step(model, input_ids=ids, labels=ids)
    assert torch.equal(loss_again, loss)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def kept(model: ShadowedModel, ids: Tensor) -> int:
    """Bytes that live between forward and backward pass."""
    step(model, input_ids=ids, labels=ids)  # whatever is allocated once
    before = torch.cuda.memory_allocated()
    out = model(ids, labels=ids)
    return torch.cuda.memory_allocated() - before - out.loss.nbytes


def test_checkpointing_keeps_three_tensors_a_block(impl, variant):
    """Catches boundaries that keep their insides: one block more may cost its input, what the block before
    returned, and the state."""
    ids, sizes = rows(8, 256), []
    for layers in (4, 6):
        model = build(impl, layers=layers, variant=variant)
        recompute_activations(model)
        sizes.append(kept(model, ids))
    assert (sizes[1] - sizes[0]) / 2 < 3.5 * ids.numel() * WIDTH * 4


def test_blocks_below_the_injections_keep_what_the_state_reads(variant):
    """Catches a graph below the injections: with the fused boundary, a block there may cost what it returned,
    the state, and what is of the width of r."""
    ids, sizes = rows(8, 256), []
    for layers in (4, 6):
        sizes.append(kept(build("triton", layers=layers, variant=variant, inject_from=layers - 2), ids))
    assert (sizes[1] - sizes[0]) / 2 < 3.5 * ids.numel() * WIDTH * 4


# torch.compile


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_a_compiled_step_is_one_graph_with_the_same_gradients(model_type, impl, variant, checkpointing):
    # The weights are moved half as far as elsewhere: with larger ones, `peft` on Llama magnifies the rounding
    # of float32 to 3e-2 of a gradient, in eager mode too.
    model, ids = build(impl, model_type, variant=variant, dropout=0.0, std=0.15), rows()
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    exact = copy.deepcopy(model).double()
    exact.set_impl("reference")
    _, truth = step(exact, **batch)
    loss, eager = step(model, **batch)
    assert_close(
        eager, truth, 1e-3
    )  # else the case is ill-conditioned, and what it tells of the compiled step is chance
    if checkpointing:
        recompute_activations(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        compiled_loss, found = step(compiled, **batch)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=0)
        assert_close(found, eager, 2e-3)
        assert_as_exact(found, eager, truth)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# Packing


def test_a_packed_step_is_the_step_of_its_documents(impl, variant):
    """Catches documents that see each other in base or shadow: loss and gradients are those of the documents
    in a padded batch."""
    model, ids = build(impl, variant=variant, dropout=0.0), rows()
    lengths = (45, 13, 30)
    mask = (torch.arange(45, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]).long()
    loss, expected = step(model, input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    docs = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    packed = torch.cat(docs)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].cuda()
    got, found = step(
        model, input_ids=packed, position_ids=positions, labels=packed.masked_fill(positions == 0, -100)
    )
    torch.testing.assert_close(got, loss, rtol=1e-4, atol=0)
    assert_close(found, expected, 2e-3)


# A base in 4 bits


def quantised(folder: Any, dtype: torch.dtype) -> PreTrainedModel:
    tiny_model("llama", config=tiny_config("llama", **SIZES)).save_pretrained(folder)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=settings, device_map={"": 0}
    )


@needs_bitsandbytes
def test_a_4bit_base_changes_the_weights_and_nothing_else(impl, variant, tmp_path):
    """Catches a gradient lost in a packed layer: loss and gradients are those of a plain base with the
    weights that the packed ones stand for."""
    ids, results = rows(), []
    for base in (quantised(tmp_path, torch.float32), quantised(tmp_path, torch.float32).dequantize()):
        results.append(step(shadowed(base, impl, variant=variant, dropout=0.0), input_ids=ids, labels=ids))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=0)
    assert_close(results[0][1], results[1][1], 2e-3)


@needs_bitsandbytes
def test_a_shadow_trains_beside_a_4bit_bf16_base(impl, variant, tmp_path):
    """Catches packed weights that stop checkpointed training, evaluation, saving, detaching or unloading."""
    base, ids = quantised(tmp_path / "base", torch.bfloat16), rows()
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = shadowed(base, impl, variant=variant, dropout=0.0)
    assert model.adapters["default"].dtype == torch.float32
    recompute_activations(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        losses.append(step(model, input_ids=ids, labels=ids)[0].item())
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        want = model.eval()(ids, output_shadow_logits=True)
        torch.testing.assert_close(model.detached()(ids).logits, want.shadow_logits, rtol=0.05, atol=0.05)
    model.save_pretrained(tmp_path / "adapter")
    model.unload()
    assert [name for name, p in base.named_parameters() if not torch.equal(p, before[name])] == []
    again = ShadowedModel.from_pretrained(base, tmp_path / "adapter", impl=impl, is_trainable=True)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, want.logits)


@needs_bitsandbytes
def test_train_takes_a_base_in_4_bits_and_packed_rows(tmp_path, capsys):
    """Catches a Trainer that moves, casts or refuses packed weights; it evaluates before it trains on."""
    base = save_base(tmp_path / "base", **SIZES)
    data = write_rows(tmp_path / "rows.jsonl", text_rows(40))
    flags = [
        "--load-in-4bit",
        "--bf16",
        "--gradient-checkpointing",
        "--packing",
        "--max-length",
        "64",
        "--max-steps",
        "6",
    ]
    flags += ["--batch-size", "2", "--eval-steps", "3", "--save-steps", "3", "--logging-steps", "1", "--json"]
    assert (
        main(["train", "--model", str(base), "--data", str(data), "--output", str(tmp_path / "run"), *flags])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 6
    assert result["eval_loss"] is not None
    logged = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert sum(losses[-2:]) < sum(losses[:2])
