"""TRL's trainers as they come, on a shadowed model: what they compute, and against which reference."""

import copy
import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers.families import perturb
from helpers.runs import save_base
from helpers.trainers import BRIEF
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer

from shadowpeft import ShadowConfig, ShadowedModel, attach

trl = pytest.importorskip("trl")
# What TRL and torch say to each other is not ours; what we say is asked for by name.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:.*shadow:UserWarning"),
]

LN_2 = math.log(2)
PAIRS = [{"prompt": f"say {i}", "chosen": f" yes {i}", "rejected": f" no no {i}"} for i in range(4)]
ANSWERS = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in PAIRS]
PROMPTS = [{"prompt": row["prompt"]} for row in PAIRS]
NO_SHARE = {"shadow_loss_weight": 0.0, "dropout": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def load(folder):
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def run(folder, tmp_path):
    """Train for a step or more; return TRL's trainer and what it logged of each step."""

    def train(kind: str, model: Any, rows: list[dict], stock: dict | None = None, **changes: Any):
        settings = {**BRIEF, "max_steps": 1, "bf16": False, "learning_rate": 1e-2, **changes}
        trainer = getattr(trl, f"{kind}Trainer")(
            model=model,
            args=getattr(trl, f"{kind}Config")(str(tmp_path), **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
            **(stock or {}),
        )
        trainer.train()
        return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]

    return train


def without_label(rows):
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_dpo_of_a_fresh_adapter_begins_at_ln_2(variant, load, run):
    """Catches a reference that is not the base, and a policy that is not the attached model."""
    model = attach(load(), ShadowConfig(variant=variant, **NO_SHARE))
    _, logged = run("DPO", model, PAIRS, max_steps=2)
    assert logged[0]["loss"] == pytest.approx(LN_2, abs=1e-5)
    assert logged[1]["loss"] < LN_2 - 1e-4


def test_dpo_of_a_trained_adapter_has_its_own_start_as_reference(load, folder, run, tmp_path):
    """Catches the bare base as the reference of an adapter that is trained already."""
    perturb(attach(load(), ShadowConfig(**NO_SHARE)), std=0.1).save_pretrained(tmp_path / "adapter")
    model = ShadowedModel.from_pretrained(load(), tmp_path / "adapter", is_trainable=True)
    with pytest.raises(OSError, match="Repo id"):
        run("DPO", model, PAIRS)
    _, logged = run("DPO", model, PAIRS, stock={"ref_model": copy.deepcopy(model)})
    assert logged[0]["loss"] == pytest.approx(LN_2, abs=1e-5)
    model = ShadowedModel.from_pretrained(load(), tmp_path / "adapter", is_trainable=True)
    _, logged = run("DPO", model, PAIRS, stock={"ref_model": load()})
    assert abs(logged[0]["loss"] - LN_2) > 1e-3, "the two references answer alike; the test shows nothing"


SFT_KINDS = {
    "nll": {},
    "dft": {"loss_type": "dft"},
    "whole rows": {"completion_only_loss": False},
    "packing": {"packing": True, "max_length": 32},
    "padding free": {"padding_free": True, "max_length": None},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
}


@pytest.mark.parametrize("kind", SFT_KINDS)
def test_sft_of_a_fresh_adapter_has_the_bases_loss(kind, load, run):
    """Catches a loss that is not of the attached model, which before training is its base."""
    model = attach(load(), ShadowConfig(**NO_SHARE))
    rows = without_label(ANSWERS)
    losses = [run("SFT", each, rows, **SFT_KINDS[kind])[1][0]["loss"] for each in (model, load())]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert any(injection.up.weight.any() for injection in model.adapter.injections)


def test_sft_says_that_the_shadows_loss_is_missing(load, run):
    with pytest.raises(UserWarning, match="no part of the shadow's own loss"):
        run("SFT", attach(load(), ShadowConfig(shadow_loss_weight=0.5)), without_label(ANSWERS))


def test_sft_with_the_trainers_loss_has_the_shadows_share(load, run, monkeypatch):
    """Catches a joint loss that TRL's way of calling the model loses."""
    model = attach(load(), ShadowConfig(shadow_loss_weight=0.5, dropout=0.0))
    rows = without_label(ANSWERS)
    _, (plain,) = run("SFT", load(), rows)
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", Trainer.compute_loss)
    _, (joint,) = run("SFT", model, rows)
    assert joint["loss"] > plain["loss"] + 0.5


def test_kto_of_a_fresh_adapter_begins_at_a_half(load, run):
    model = attach(load(), ShadowConfig(**NO_SHARE))
    _, (logged,) = run("KTO", model, ANSWERS)
    assert logged["loss"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_policies_of_a_fresh_adapter_are_their_reference(kind, load, run):
    """Catches log-probabilities of another model than the one that generated."""
    model = attach(load(), ShadowConfig(**NO_SHARE))
    reward = {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]}
    lengths = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}
    _, (logged,) = run(kind, model, PROMPTS, stock=reward, **lengths)
    assert logged["kl"] == pytest.approx(0, abs=1e-6)
    assert any(injection.up.weight.any() for injection in model.adapter.injections)


def test_a_reward_model_begins_as_its_base(folder, run):
    """Catches a classifier whose score TRL reads at another place than the base's."""
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    models = attach(copy.deepcopy(base), ShadowConfig(**NO_SHARE)), base
    losses = [run("Reward", model, PAIRS)[1][0]["loss"] for model in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
