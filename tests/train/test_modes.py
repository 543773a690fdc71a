"""Ways to train that must not change what is learned: blocks below the injections, gradient checkpointing, torch.compile, packed rows."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.families import (
    BLOCKS,
    TINY,
    VOCAB,
    WIDTH,
    WINDOW,
    attached,
    language_batch,
    perturb,
    tiny_config,
    tiny_model,
    token_ids,
)
from helpers.runs import save_base, text_rows, write_rows
from torch import Tensor, nn
from transformers import AutoTokenizer, DataCollatorWithFlattening, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.cli import main
from shadowpeft.data.encode import NO_LOSS, Collator, Example, encode_all, pack
from shadowpeft.data.rows import read_rows
from shadowpeft.errors import ConfigError
from shadowpeft.storage import stock_models
from shadowpeft.train import train
from shadowpeft.train.arguments import recompute_activations
from shadowpeft.train.config import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
VARIANTS = ("normed", "paper", "peft")


def build(
    model_type: str,
    base_changes: dict[str, Any] | None = None,
    shadow: PreTrainedModel | None = None,
    **settings: Any,
) -> ShadowedModel:
    base = tiny_model(model_type, config=tiny_config(model_type, **(base_changes or {})))
    return perturb(
        attached(base, ShadowConfig(**{"r": 4, "update_width": 5, "alpha": 0.5, **settings}), shadow)
    )


def keep_activations(model: PreTrainedModel) -> None:
    """Switch gradient checkpointing off under the name it goes by: transformers renamed it between 5.17 and 5.23."""
    renamed = hasattr(PreTrainedModel, "activation_checkpointing_enable")
    (model.activation_checkpointing_disable if renamed else model.gradient_checkpointing_disable)()


def step(model: nn.Module, batch: dict[str, Tensor], seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """One training step from a fixed random state: the loss and every gradient."""
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Blocks below the first injection


@contextmanager
def watching(base: PreTrainedModel) -> Iterator[tuple[Counter[int], dict[int, bool]]]:
    """Note how many bytes autograd keeps while each block runs, and whether what it puts out wants a gradient."""
    kept: Counter[int] = Counter()
    wants: dict[int, bool] = {}
    running: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if running:
            kept[running[-1]] += tensor.nbytes
        return tensor

    def leave(index: int, out: Any) -> None:
        running.pop()
        wants[index] = (out if isinstance(out, Tensor) else out[0]).requires_grad

    handles = []
    for index, block in enumerate(arch.blocks_of(base)):
        handles.append(block.register_forward_pre_hook(lambda *_, index=index: running.append(index)))
        handles.append(block.register_forward_hook(lambda *call, index=index: leave(index, call[-1])))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept, wants
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("prepared", ["plain", "inputs with gradient", "checkpointed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_below_the_first_injection_keep_nothing(variant, prepared):
    """Catches a graph that reaches below, such as the one that a base prepared for checkpointing starts at its embeddings."""
    base = tiny_model("llama")
    if prepared != "plain":
        base.enable_input_require_grads()
    if prepared == "checkpointed":
        recompute_activations(base)
    model = perturb(attached(base, ShadowConfig(variant=variant, inject_from=2))).train()
    with watching(base) as (kept, wants):
        loss = model(**language_batch()).loss
    assert wants == {0: False, 1: False, 2: True, 3: True}
    if (
        prepared != "checkpointed"
    ):  # which notes each block's input, whatever it wants; the update keeps that anyway
        assert not kept[0]
        assert not kept[1]
        assert kept[2] == kept[3] > 0
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("inject_from", [2, BLOCKS - 1])
def test_the_state_reads_the_blocks_below_the_first_injection(variant, inject_from):
    """Holds `inject_from` to its meaning: an adapter of `inject_from=1` whose first injections add nothing."""
    whole = build("llama", variant=variant, inject_from=1)
    with torch.no_grad():
        for injection in whole.adapters["default"].injections[: inject_from - 1]:
            injection.up.weight.zero_()
    state = whole.adapters["default"].state_dict()
    upper = attached(
        tiny_model("llama"),
        ShadowConfig(variant=variant, inject_from=inject_from, r=4, update_width=5, alpha=0.5),
    )
    wanted = {}
    for name in upper.adapters["default"].state_dict():
        parts = name.split(".")
        if parts[0] == "injections":
            parts[1] = str(int(parts[1]) + inject_from - 1)
        wanted[name] = state[".".join(parts)]
    upper.adapters["default"].load_state_dict(wanted)
    ids = token_ids(2, 9)
    assert torch.equal(upper(ids).logits, whole(ids).logits)
    with torch.no_grad():
        upper.adapters["default"].updates[0].transform_out.weight.zero_()
    assert not torch.equal(upper(ids).logits, whole(ids).logits)


def test_gradients_reach_embeddings_that_the_caller_gave():
    """Catches a prompt to be tuned whose gradient through the base is cut: both paths are held to finite differences."""
    model = build("gpt2", inject_from=2).double()  # whose norms compute in float64
    embeds = model.get_input_embeddings()(token_ids(1, 6)).detach().requires_grad_(True)
    torch.manual_seed(1)
    direction, weights = torch.randn_like(embeds), torch.randn(2, 1, 6, VOCAB, dtype=torch.float64)

    def value(embeds: Tensor) -> Tensor:
        out = model(inputs_embeds=embeds, use_cache=False, output_shadow_logits=True)
        return (torch.stack([out.logits, out.shadow_logits]) * weights).sum()

    value(embeds).backward()
    with torch.no_grad():
        slope = (value(embeds + 1e-5 * direction) - value(embeds - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((embeds.grad * direction).sum(), slope, rtol=1e-6, atol=0)


# Gradient checkpointing


CHECKPOINTED = [(name, variant) for name in ("llama", "qwen3", "gemma3_text") for variant in VARIANTS] + [
    ("gptj", "normed"),  # whose frame travels in a context variable, gone by the time of the backward pass
    ("gpt2", "paper"),  # which drops embeddings and residuals, too
]


@pytest.mark.parametrize(("model_type", "variant"), CHECKPOINTED)
def test_checkpointed_gradients_are_the_same_bits(model_type, variant):
    """Catches recomputing with another dropout mask or another shadow state: base, shadow and boundaries all drop values here."""
    drops = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "gptj": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    }
    chances = dict.fromkeys(drops.get(model_type, ("attention_dropout",)), 0.1)
    model = build(model_type, chances, variant=variant, dropout=0.2).train()
    batch = language_batch()
    loss, expected = step(model, batch)
    assert not torch.equal(loss, step(model, batch, seed=4)[0]), "nothing is dropped"
    recompute_activations(model)
    loss_again, found = step(model, batch)
    assert torch.equal(loss_again, loss)
    assert (
        found.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    )
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_keeps_three_tensors_a_block(variant):
    """Catches boundaries that keep their insides: what one block more costs is its input, what the block before put out, and the state."""
    ids = token_ids(2, 16)

    def kept(blocks: int) -> int:
        model = build("llama", {"num_hidden_layers": blocks}, variant=variant).train()
        recompute_activations(model)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}
        alive = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                alive.append(tensor)
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids, labels=ids)
        return sum(storages.values())

    assert (kept(6) - kept(4)) / 2 == 3 * ids.numel() * WIDTH * 4


def test_checkpointing_is_off_again_when_it_is_switched_off():
    """Catches a switch that the boundaries do not follow back."""
    model = build("llama").train()
    recompute_activations(model)
    assert model.adapters["default"].gradient_checkpointing
    keep_activations(model)
    assert not model.adapters["default"].gradient_checkpointing


# torch.compile


# Of the compilers' own doing.
own_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")


COMPILED = [
    ("llama", "normed", True),
    ("llama", "peft", False),
    ("qwen3", "normed", False),
    ("qwen3", "paper", True),
    ("gemma3_text", "normed", True),
    ("gemma3_text", "paper", False),
]


@own_warnings
@pytest.mark.parametrize(("model_type", "variant", "checkpointing"), COMPILED)
def test_a_compiled_step_is_one_graph_with_the_same_gradients(model_type, variant, checkpointing):
    """Catches a graph break, and a graph compiled anew for each batch, in forward and backward of a padded batch."""
    layers = {"num_hidden_layers": 3}
    if model_type == "gemma3_text":
        layers["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    model, batch = build(model_type, layers, variant=variant, dropout=0.0).train(), language_batch()
    loss, expected = step(model, batch)
    if checkpointing:
        recompute_activations(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled_loss, found = step(compiled, batch)
        found = {name.removeprefix("_orig_mod."): grad for name, grad in found.items()}
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_blocks_that_need_no_mask():
    """Catches a window or another kind of attention that is taken for one that sees all before it."""
    found = {}
    for model_type in TINY:
        config = tiny_model(model_type).config
        found[model_type] = "".join(
            "ny"[not arch.needs_no_mask(config, block, WINDOW + 1)] for block in range(BLOCKS)
        )
        if arch.FAMILIES[model_type].masks_itself:
            assert all(arch.needs_no_mask(config, block, WINDOW) for block in range(BLOCKS))
            config._attn_implementation = "eager"
            assert not any(arch.needs_no_mask(config, block, WINDOW) for block in range(BLOCKS))
    plain = dict.fromkeys(("llama", "qwen3", "qwen3_moe", "phi3", "olmo2"), "nnnn")
    assert {name: blocks for name, blocks in found.items() if "n" in blocks} == {
        **plain,
        "qwen2": "nyyy",
        "gemma3_text": "ynyn",
    }


@own_warnings
@pytest.mark.parametrize(
    ("model_type", "shadow_type", "long_rows"), [("llama", "qwen2", "ny nn"), ("gemma3_text", None, "yn yn")]
)
def test_a_compiled_step_masks_nothing_where_rows_are_whole(model_type, shadow_type, long_rows):
    """Catches a mask made by transformers, with which a GPU has no flash attention; and one left out where a window or padding needs it.

    The shadow's two blocks come first: Qwen2's, taken from a model of its own, of which the second has a window, and Gemma's two kinds.
    """
    layers: dict[str, Any] = {"num_hidden_layers": 2}
    explicit = shadow_type and tiny_model(shadow_type, config=tiny_config(shadow_type, **layers))
    if model_type == "gemma3_text":
        layers["layer_types"] = ["sliding_attention", "full_attention"]
    settings = {} if explicit else {"shadow_layers": 2}
    model = build(model_type, layers, explicit, variant="normed", dropout=0.0, **settings).train()
    ids_BT = token_ids(2, WINDOW + 1)
    found: list[str] = []

    def looking(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls = [node for node in graph.graph.nodes if "scaled_dot_product_attention" in str(node.target)]
        found.append("".join("n" if node.kwargs.get("attn_mask") is None else "y" for node in calls))
        return graph.forward

    def masks_of(**inputs: Tensor) -> str:
        loss, expected = step(model, inputs)
        torch._dynamo.reset()
        compiled_loss, grads = step(torch.compile(model, fullgraph=True, backend=looking), inputs)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(
            {name.removeprefix("_orig_mod."): grad for name, grad in grads.items()},
            expected,
            rtol=1e-4,
            atol=1e-6,
        )
        return f"{found[-1][:2]} {found[-1][2:]}"

    whole = {"input_ids": ids_BT, "labels": ids_BT}
    assert masks_of(**whole) == long_rows
    if model_type == "llama":  # the same in all families, and each time is a compilation
        assert masks_of(**whole, attention_mask=torch.ones_like(ids_BT)) == "yy yy"
        assert masks_of(**whole, position_ids=torch.arange(WINDOW + 1)[None].expand(2, -1)) == "yy yy"


@pytest.mark.slow
@own_warnings
def test_a_step_compiled_by_inductor_has_the_same_gradients():
    """Catches what only the default compiler does with the same graph."""
    model, batch = (
        build("qwen3", {"num_hidden_layers": 2}, variant="normed", dropout=0.0).train(),
        language_batch(),
    )
    loss, expected = step(model, batch)
    torch._dynamo.reset()
    compiled_loss, found = step(torch.compile(model, fullgraph=True), batch)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        {name.removeprefix("_orig_mod."): grad for name, grad in found.items()},
        expected,
        rtol=1e-3,
        atol=1e-5,
    )


# Packed rows


PACKING = [name for name in TINY if arch.FAMILIES[name].packs]


def documents() -> tuple[list[Tensor], Tensor, Tensor]:
    """Three documents, all of them in one row, and the positions, which begin anew with each."""
    docs = [token_ids(1, length, seed=length) for length in (7, 3, 9)]
    return docs, torch.cat(docs, 1), torch.cat([torch.arange(doc.shape[1]) for doc in docs])[None]


def block_diagonal(docs: list[Tensor]) -> Tensor:
    """The same as a mask to be added: zero where a token may look, (1, 1, T, T)."""
    seen = torch.block_diag(*[torch.ones(doc.shape[1], doc.shape[1]).tril() for doc in docs])
    return torch.zeros_like(seen).masked_fill(seen == 0, torch.finfo(seen.dtype).min)[None, None]


@pytest.mark.parametrize("model_type", PACKING)
def test_packed_documents_do_not_see_each_other(model_type):
    """Catches a document that reads its neighbour, in the base or in the shadow: their logits are those of each document alone."""
    model = build(model_type)
    docs, ids, positions = documents()
    got = model(ids, position_ids=positions, use_cache=False, output_shadow_logits=True)
    for name in ("logits", "shadow_logits"):
        alone = torch.cat([model(doc, use_cache=False, output_shadow_logits=True)[name] for doc in docs], 1)
        torch.testing.assert_close(got[name], alone, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("model_type", [name for name in TINY if not arch.FAMILIES[name].packs])
def test_families_that_cannot_pack_are_marked_for_a_reason(model_type):
    """Catches a family that has learned to pack: the stock base alone lets documents see each other."""
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
    """Catches a prediction across documents: loss and gradients are those of the same documents in a padded batch."""
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


def example(*ids: int, prompt: int = 0) -> Example:
    return Example(input_ids=list(ids), labels=[NO_LOSS] * prompt + list(ids[prompt:]))


def test_examples_are_packed_where_they_fit_best():
    """Catches a lost or cut example, a row too long, room that is wasted, and an example's first token learned from its neighbour."""
    given = [
        example(1, 2),
        example(3, 4, 5, 6, 7, prompt=2),
        example(8),
        example(9, 10, 11),
        example(12, 13, 14, 15),
    ]
    assert pack(given, 8) == [
        {
            "input_ids": [3, 4, 5, 6, 7, 9, 10, 11],
            "labels": [-100, -100, 5, 6, 7, -100, 10, 11],
            "position_ids": [0, 1, 2, 3, 4, 0, 1, 2],
        },
        {
            "input_ids": [12, 13, 14, 15, 1, 2, 8],
            "labels": [-100, 13, 14, 15, -100, 2, -100],
            "position_ids": [0, 1, 2, 3, 0, 1, 0],
        },
    ]
    many = [example(*range(start, start + 1 + start % 7)) for start in range(100)]
    rows = pack(many, 9)
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(
        token for one in many for token in one["input_ids"]
    )
    assert max(len(row["input_ids"]) for row in rows) == 9
    assert len(rows) == -(-sum(len(one["input_ids"]) for one in many) // 9), "these lengths fit without a gap"


def test_a_batch_of_packed_rows_has_positions_in_place_of_a_mask():
    """Catches a mask, beside which transformers does not look for documents, and padding that goes on with the last one."""
    batch = Collator(0)(pack([example(1, 2, 3), example(4, 5), example(6, 7, 8)], 5))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]],
        "labels": [[-100, 2, 3, -100, 5], [-100, 7, 8, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]],
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("packing")
    return {
        "model": str(save_base(folder / "base")),
        "data": str(write_rows(folder / "rows.jsonl", text_rows(24))),
    }


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
    assert "| packed to | 64 tokens a row |" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_packing_takes_fewer_steps(folders, tmp_path, capsys):
    """Catches a flag that reaches nothing."""
    flags = [
        "--output",
        str(tmp_path / "run"),
        "--packing",
        "--max-length",
        "64",
        "--batch-size",
        "1",
        "--epochs",
        "1",
        "--json",
    ]
    assert (
        main(
            [
                "train",
                "--model",
                folders["model"],
                "--data",
                folders["data"],
                *flags,
                "--device",
                "cpu",
                "--eval-fraction",
                "0",
            ]
        )
        == 0
    )
    tokens = encode_all(read_rows(folders["data"]), AutoTokenizer.from_pretrained(folders["model"]), 64)
    assert json.loads(capsys.readouterr().out)["steps"] == len(pack(tokens, 64)) < 24


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "opt"])
@pytest.mark.parametrize("place", ["model", "shadow_model"])
def test_packing_is_refused_for_families_that_cannot(model_type, place, folders, tmp_path):
    """Catches a run whose documents see each other without a word, found before the weights are loaded."""
    tiny_config(model_type).save_pretrained(tmp_path / "other")
    changed = {**folders, "output": str(tmp_path / "run"), place: str(tmp_path / "other")}
    with pytest.raises(
        ConfigError,
        match=f"{arch.FAMILIES[model_type].name} cannot be trained on packed rows.*leave out packing",
    ):
        train(TrainConfig(**changed, packing=True, max_length=32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "packing needs max_length"),
        ({"max_length": 64, "attn_implementation": "flash_attention_2"}, "set batch_size to 1"),
    ],
)
def test_packing_without_what_it_needs_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig("model", "data", "output", packing=True, **settings)
