"""What is checked before any work: models, methods, data and tokenizers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers.noted_cells import (
    called,
    go,
    write,
)
from helpers.tiny import save_broken_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.compare import checks, run
from shadowpeft.embedded import MODEL
from shadowpeft.errors import ConfigError, DataError, UserError


def test_data_is_checked_before_any_work(small, data):
    """Catches a split that is found missing after hours of training."""
    for path, content, message in (
        (data / "clinc150" / "validation.jsonl", None, None),  # one is cut off train then
        (data / "gsm8k" / "test.jsonl", None, "has no split 'test'"),
        (
            data / "clinc150" / "test.jsonl",
            '{"text": "x", "intent": "weather"}\n',
            "unseen in training (weather)",
        ),
        (data / "wiki_en" / "validation.jsonl", None, "has no split 'validation'"),
    ):
        kept = path.read_text(encoding="utf-8")
        path.unlink() if content is None else path.write_text(content, encoding="utf-8")
        if message is None:
            run.check_data(small)
        else:
            with pytest.raises(DataError, match=re.escape(message)):
                go(small)
        path.write_text(kept, encoding="utf-8")
    with pytest.raises(DataError, match="'mawps'"):
        go(replace(small, ood=True))
    assert called(small) == []
    go(small)  # a study that was refused may begin under other settings
    assert yaml.safe_load((Path(small.output) / "study.yaml").read_text(encoding="utf-8"))["ood"] is False


@pytest.mark.parametrize(
    ("skip", "tasks", "message"),
    [
        (
            4,
            "clinc150",
            "clinc150 has 4 test rows, and a test_skip of 4 leaves none of them; choose a smaller test_skip",
        ),
        (
            [3, 1],
            "clinc150",
            "clinc150 has 4 test rows, and a test_skip of 3 + 1 leaves none of them; choose a smaller "
            "test_skip",
        ),
        (
            3,
            "gsm8k",
            "mawps, an out-of-distribution test of gsm8k, has 2 test rows, and a test_skip of 3 leaves "
            "none of them; "
            "choose a smaller test_skip, or ood: false",
        ),
        (
            {"gsm8k": 3, "clinc150": [3, 1]},
            "clinc150,gsm8k",
            "clinc150 has 4 test rows, and a test_skip of 3 + 1 leaves none of them; choose a smaller "
            "test_skip",
        ),
        (
            {"gsm8k": 3, "mawps": 2},
            "gsm8k",
            "mawps, an out-of-distribution test of gsm8k, has 2 test rows, and a test_skip of 2 leaves "
            "none of them; "
            "choose a smaller test_skip, or ood: false",
        ),
    ],
    ids=["task", "list", "partner", "a task's own", "a partner's own"],
)
def test_leaving_out_all_test_rows_is_refused_before_any_work(small, data, skip, tasks, message):
    """Catches a study that trains for hours and has no test row left to be measured on, or only its partners'
    lack them."""
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        write(
            data / "mawps" / f"{split}.jsonl",
            [{"question": f"{split} {i}", "answer": i} for i in range(count)],
        )
    settings = replace(small, tasks=tasks, ood=True, test_skip=skip, trials=1, methods="lora", seeds=1)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        go(settings)
    assert called(settings) == []
    go(replace(settings, test_skip=1))
    go(replace(settings, ood=False, test_skip=[1, 2], output=f"{settings.output}-2", name=None))


def test_a_tokenizer_of_single_signs_is_told(small, tmp_path):
    """Catches hours of training on the ids of a tokenizer that was converted wrongly, on which nothing can be
    learned."""
    save_broken_tokenizer(tmp_path / "broken")
    checks.check_data(small)  # the embedded model's own raises no warning
    message = r"the tokenizer of \S+broken makes (\d+) tokens of the \1 characters of 4 prompts of clinc150"
    with pytest.warns(UserWarning, match=message):
        checks.check_data(replace(small, model=str(tmp_path / "broken"), tasks="clinc150"))


def test_training_rows_that_are_too_long_are_told(small):
    """Catches a study of the shortest problems alone."""
    with pytest.warns(
        UserWarning, match=r"^\d+ of the first \d+ training rows of gsm8k have more than max_length=12 tokens"
    ):
        checks.check_data(replace(small, tasks="gsm8k", max_length=12))


@pytest.mark.parametrize("bf16", [True, False])
def test_a_base_without_numbers_is_refused(small, tmp_path, bf16):
    """Catches a study in which every method learns nothing, since the base itself computes NaN on this
    device."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    sound = replace(small, bf16=bf16, tasks="clinc150")
    checks.check_numbers(sound, {"clinc150": ["one text", "a second, longer text"]})
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "nan")
    study = replace(sound, model=str(tmp_path / "nan"))
    if not bf16:
        checks.check_numbers(
            study, {"clinc150": ["one text"]}
        )  # not loaded on a CPU in float32, where no device is to blame
        return
    with pytest.raises(
        ConfigError,
        match=(
            r"the base \S+nan, untrained, computes .* in bfloat16 on cpu \(texts of clinc150, padded on the"
        ),
    ):
        go(study)
    assert called(study) == []


def test_models_are_checked_before_any_work(small, data, tmp_path):
    with pytest.raises(UserError, match=r"there is no model folder \./nowhere"):
        go(replace(small, model=f"{MODEL},./nowhere"))
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}', encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "t5" / name).write_bytes((MODEL / name).read_bytes())
    with pytest.raises(UserError, match="model_type 't5' is an encoder-decoder"):
        go(replace(small, model=str(tmp_path / "t5"), output=str(tmp_path / "other")))
    assert called(small) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overrides": {"lora": {"lora_droput": 0.1}}},
            "unknown setting 'lora_droput' (did you mean 'lora_dropout'?)",
        ),
        ({"overrides": {"dora": {"lora_droput": 0.1}}}, "overrides of dora: unknown setting 'lora_droput'"),
        ({"overrides": {"base": {"r": 1}}}, "overrides of base: unknown setting 'r'; it has none"),
        ({"overrides": {"shadow": {"alpha": 1.0}}}, "overrides of shadow set alpha, which is searched for"),
        ({"overrides": {"shadow": {"dropout": 2.0}}}, "dropout"),
        (
            {"overrides": {"lora": {"target_modules": ["nothing"]}}},
            "overrides of lora (target_modules=['nothing']) cannot be used: ",
        ),
        ({"overrides": {"lora": {"r": 4}}}, f"{MODEL}: lora cannot be matched to LoRA's"),
        ({"methods": "lora,dora", "ranks": "16,1"}, f"{MODEL}: dora cannot be matched to LoRA's"),
        (
            {"methods": "lora,peft-shadow", "ranks": "16,1"},
            f"{MODEL}: peft-shadow cannot be matched to LoRA's",
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_methods_are_checked_before_any_work(small, change, message):
    """Catches a study that trains for hours before it finds that a method cannot be built."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        go(replace(small, **change))
    assert called(small) == []
