"""A shadow learns to draft: on the attached model's own answers, and no answer of it changes by a bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.drafts import drafted
from helpers.families import attached, tiny_config, tiny_model, token_ids
from helpers.runs import adapter_of, text_rows, write_rows
from helpers.tokenizers import build_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from shadowpeft import ShadowConfig, ShadowedModel
from shadowpeft.cli import main
from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.evaluation import answers
from shadowpeft.train import draft
from shadowpeft.train.config import DraftConfig, TrainConfig
from shadowpeft.train.draft import DraftResult, teach
from shadowpeft.train.examples import prompts_of
from shadowpeft.train.run import train

TOKENIZER = build_tokenizer()
SETTINGS: dict[str, Any] = {
    "steps": 60,
    "rank": 16,
    "prompts": 24,
    "max_new_tokens": 12,
    "learning_rate": 0.02,
}


def beside_itself() -> ShadowedModel:
    """A base whose shadow is the base with other final gains: a head for drafts can undo most of them."""
    config = tiny_config("llama", vocab_size=len(TOKENIZER))
    model = attached(
        tiny_model("llama", config=config),
        ShadowConfig(alpha=0.1, unit_state=False),
        shadow=tiny_model("llama", config=config),
    )
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        gains = torch.randn(32, generator=generator).mul(0.6).exp()
        model.adapter.shadow.backbone.norm.weight.mul_(gains)
        for injection in model.adapter.injections:
            injection.up.weight.normal_(std=0.02, generator=generator)
    return model


def prompts(count: int, seed: int) -> list[list[int]]:
    return token_ids(count, 8, seed=seed).tolist()


def logits(model: ShadowedModel) -> tuple[Tensor, Tensor]:
    ids = token_ids(2, 9, seed=8)
    return model(ids).logits, model.detached()(ids).logits


def tokens_per_round(model: ShadowedModel) -> float:
    found = [drafted(model, torch.tensor([ids]), eos_token_id=None) for ids in prompts(6, seed=5)]
    return sum(out.draft_report.tokens_per_round for out in found) / len(found)


@pytest.mark.parametrize("loss", ["lk", "kl"])
def test_more_drafts_are_taken_and_no_answer_changes(loss: Any) -> None:
    """Catches a head that learns from other texts than the model's, or that anything but drafts reads."""
    model = beside_itself()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before, attached_before, detached_before = tokens_per_round(model), *logits(model)
    found = teach(model, TOKENIZER, prompts(24, seed=4), DraftConfig(loss=loss, **SETTINGS), progress=False)
    attached_after, detached_after = logits(model)
    assert torch.equal(attached_after, attached_before)
    assert torch.equal(detached_after, detached_before)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert found.acceptance > found.acceptance_before + 0.3
    assert tokens_per_round(model) > before + 0.7
    assert (found.answers, model.training) == (22, False)
    assert not any(weight.requires_grad for weight in model.adapter.draft_head.parameters())


def test_the_seed_decides_and_sampled_answers_are_others() -> None:
    """Catches a random choice that the seed does not decide, and a temperature that nothing reads."""
    heads, results = [], []
    for temperature in (0.0, 0.0, 1.5):
        model = beside_itself()
        settings = DraftConfig(**{**SETTINGS, "steps": 3}, temperature=temperature)
        results.append(teach(model, TOKENIZER, prompts(12, seed=4), settings, seed=7, progress=False))
        heads.append(model.adapter.draft_head.state_dict())
    assert results[0] == results[1] != results[2]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert not torch.equal(heads[0]["down.weight"], heads[2]["down.weight"])


def test_it_learns_the_models_answers_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches padding behind an end that is learnt, an end that is not, and a prompt that is learnt."""
    model, seen = beside_itself(), []
    loss = draft.draft_loss
    monkeypatch.setattr(
        draft, "draft_loss", lambda model, batch, kind: seen.append(batch) or loss(model, batch, kind)
    )
    ids = prompts(12, seed=4)
    one, *_ = answers.answer_ids(model, TOKENIZER, ids[5:6], 12, 1, progress=False)
    model.generation_config.eos_token_id = one[3]
    teach(model, TOKENIZER, ids, DraftConfig(**{**SETTINGS, "steps": 1}), progress=False)
    (batch,) = seen
    assert len(batch["input_ids"]) == 11
    for row, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        assert row[:8].tolist() in ids
        assert labels.tolist() == [-100] * 8 + row[8:length].tolist() + [-100] * (len(row) - length)
        ends = [place for place in range(8, length) if int(row[place]) in (one[3], TOKENIZER.eos_token_id)]
        assert ends == [length - 1] * bool(ends)
        assert ends or length == 20
    assert {int(mask.sum()) for mask in batch["attention_mask"]} != {20}, "no answer ended"


def test_what_cannot_draft_is_refused() -> None:
    """Catches work on a head that nothing will read."""
    with pytest.raises(UserError, match="keeps a recurrent state"):
        teach(attached(tiny_model("lfm2")), TOKENIZER, prompts(4, 0), DraftConfig(steps=1))
    classifier = attached(tiny_model("llama", "sequence-classification"))
    with pytest.raises(UserError, match="a classifier drafts nothing"):
        teach(classifier, TOKENIZER, prompts(4, 0), DraftConfig(steps=1))
    for wrong, got in ((["one", "two"], "texts"), ([[1, 2]], "1")):
        with pytest.raises(UserError, match=f"prompts must be two lists of token ids .*, got {got}$"):
            teach(attached(tiny_model("llama")), TOKENIZER, wrong, DraftConfig(steps=1))


# Settings and prompts


def test_settings_without_steps_are_refused() -> None:
    """Catches a setting that is accepted and not applied."""
    with pytest.raises(ConfigError, match=r"draft\.rank says how .* draft\.steps is 0"):
        DraftConfig(rank=8)
    with pytest.raises(ConfigError, match="rank must be a whole number, at least 1"):
        DraftConfig(steps=1, rank=0)
    with pytest.raises(ConfigError, match="loss must be 'kl' or 'lk', got 'tv'"):
        DraftConfig(steps=1, loss="tv")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draft must hold settings, got 5"):
        TrainConfig("m", "d", "o", draft=5)  # type: ignore[arg-type]


def test_a_prompt_is_what_is_not_learnt() -> None:
    """Catches an answer in the prompt, a text without one, and one that leaves no room."""
    pair = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]}
    text = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9]}
    headed = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    long = {"input_ids": [1] * 12, "labels": [-100] * 11 + [1]}
    found = prompts_of([pair, text, headed, long], most=9, limit=8, seed=0)
    assert sorted(found) == [[1, 2, 3], [5, 6], [5, 6]]
    assert len(prompts_of([pair, text, headed], most=2, limit=8, seed=0)) == 2
    with pytest.raises(DataError, match="the training data's 1 leave room for an answer within 8 tokens"):
        prompts_of([pair, long], most=9, limit=8, seed=0)


# The run


DRAFT = ["--draft.steps=4", "--draft.rank=3", "--draft.prompts=6", "--draft.max-new-tokens=5"]


def test_a_run_teaches_its_adapter_afterwards(
    command: list[str], straight: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an adapter that is another one with drafts than without, a head that is not saved, and a run
    that cannot be taught once it is over.
    """
    assert main([*command, *DRAFT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["drafts"]
    assert found["answers"] == 5
    both, plain = adapter_of(tmp_path / "run"), adapter_of(straight)
    heads = {name for name in both if name.startswith("draft_head.")}
    assert heads == {"draft_head.down.weight", "draft_head.up.weight"}
    assert all(torch.equal(both[name], weight) for name, weight in plain.items())
    assert both.keys() == plain.keys() | heads
    assert "rank 3, 4 steps of lk on 5 of its own answers" in (
        tmp_path / "run" / "adapter" / "README.md"
    ).read_text(encoding="utf-8")
    # Once more, on the run that is over.
    assert main([*command, "--resume", *DRAFT[:1], "--draft.rank=2", *DRAFT[2:]]) == 0
    again = adapter_of(tmp_path / "run")
    assert again["draft_head.down.weight"].shape == (2, 32)
    assert all(torch.equal(again[name], weight) for name, weight in plain.items())
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = ShadowedModel.from_pretrained(base, tmp_path / "run" / "adapter")
    assert torch.equal(model.adapter.draft_head.up.weight, again["draft_head.up.weight"])


def test_what_is_refused_is_refused_first(
    base_folder: Path, tmp_path: Path, no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run of hours whose last part cannot be done."""
    common: Any = {"model": str(base_folder), "output": str(tmp_path / "run"), "eval_fraction": 0}
    common["data"] = str(write_rows(tmp_path / "rows.jsonl", text_rows(1)))
    with pytest.raises(DataError, match="the training data's 1 leave room for an answer"):
        train(TrainConfig(draft=DraftConfig(steps=1), **common))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="learns to draft in one process"):
        train(TrainConfig(draft=DraftConfig(steps=1), **common))


def test_an_adapter_is_saved_before_it_is_taught(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a training that is lost with a memory that is too small for its answers."""

    def fail(*_: Any, **__: Any) -> DraftResult:
        raise MemoryError

    monkeypatch.setattr(draft, "teach", fail)
    with pytest.raises(MemoryError):
        main([*command, *DRAFT, "--max-steps=1"])
    assert adapter_of(tmp_path / "run")
