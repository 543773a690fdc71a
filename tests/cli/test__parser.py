"""From functions and files to flags: names frozen, files before flags, and mistakes in a file."""

import re
from typing import Any

import pytest
from helpers.command_line import mistake

from shadowpeft import ShadowConfig
from shadowpeft.cli import _parser
from shadowpeft.cli import compare as compare_verb
from shadowpeft.cli import demo as demo_verb
from shadowpeft.cli import eval as eval_verb
from shadowpeft.cli import export as export_verb
from shadowpeft.cli import generate as generate_verb
from shadowpeft.cli import train as train_verb
from shadowpeft.errors import ConfigError

SHADOW = (
    "variant r update_width alpha dropout shadow_loss_weight inject_from shadow_layers "
    "shadow_intermediate_size shadow_attention_heads shadow_key_value_heads shadow_head_dim unit_state "
    "output_gains shadow_distil distil_loss train_backbone"
)
DRAFT = "steps rank loss prompts max_new_tokens temperature answer_batch_size batch_size learning_rate"


FLAGS = {
    train_verb: "model data output eval_data eval_fraction shadow_model epochs max_steps batch_size "
    "eval_batch_size gradient_accumulation learning_rate backbone_learning_rate scheduler warmup "
    "weight_decay "
    "max_grad_norm max_length packing bf16 load_in_4bit gradient_checkpointing impl attn_implementation "
    "device deterministic seed eval_steps save_steps save_total_limit logging_steps report_to resume json "
    "draft_vocabulary "
    + " ".join(f"shadow.{name}" for name in SHADOW.split())
    + " "
    + " ".join(f"draft.{name}" for name in DRAFT.split()),
    demo_verb: "report json seed",
    compare_verb: "model tasks output methods name seeds trials extensions finalists tie_standard_errors "
    "steps batch_size ranks search overrides shadow_model data_dir train_rows validation_rows test_rows "
    "test_skip max_length eval_batch_size ood forgetting_rows search_seed bf16 device workers json retry "
    "report_only",
    generate_verb: "model adapter prompt detached draft draft_tokens raw max_new_tokens temperature top_p "
    "top_k seed dtype device speed json",
    eval_verb: "model data lm_eval adapter split detached base batch_size max_length max_new_tokens "
    "exact_match limit num_fewshot include_path dtype device json",
    export_verb: "model adapter shadow_model to output dtype max_shard_size push json",
}


@pytest.mark.parametrize("module", FLAGS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_flags_are_frozen(module):
    """Catches a flag renamed or dropped by accident: scripts and run.yaml files depend on the names."""
    parser = _parser.build("verb", module.run)
    assert sorted(_parser.flags(parser)) == sorted(FLAGS[module].split())
    shown = parser.format_help()
    for name in FLAGS[module].split():
        flag = "shadow FOLDER" if name == "shadow_model" else name.replace("_", "-")
        assert f"--{flag}" in shown


@pytest.mark.parametrize("module", FLAGS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_flag_has_help(module):
    parser = _parser.build("verb", module.run)
    assert [action.dest for action in parser._actions if not action.help or action.help.startswith("(")] == []


def test_settings_come_from_file_then_flags(tmp_path):
    """Catches a file that wins over the command line, and switches that need `true`."""

    def parse(*words: str) -> dict[str, Any]:
        return _parser.parse("train", train_verb.run, ["--config", *words])

    file, written = str(tmp_path / "run.yaml"), tmp_path / "written.yaml"
    (tmp_path / "run.yaml").write_text(
        "model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nbf16: true\nshadow: {r: 4, alpha: 0.3}\n",
        encoding="utf-8",
    )
    values = parse(file, "--shadow.r", "8", "--batch-size=3", "--resume", "--json")
    settings = values["settings"]
    assert (settings.model, settings.learning_rate, settings.bf16) == ("m", 1e-4, True)
    assert (settings.batch_size, settings.resume, values["json"]) == (3, True, True)
    assert settings.shadow == ShadowConfig(r=8, alpha=0.3)
    again = parse(file, "--bf16", "false", "--resume", "a/checkpoint-3")
    settings_again = again["settings"]
    assert (settings_again.bf16, settings_again.resume, again["json"]) == (False, "a/checkpoint-3", False)
    written.write_text(settings.to_yaml(), encoding="utf-8")
    assert parse(str(written), "--resume")["settings"] == settings


def test_prompt_may_be_repeated_and_is_not_parsed():
    words = ["--model", "m", "--prompt", "[1, 2]", "--prompt", "yes: no"]
    words += ["--prompt=null", "--prompt", "--really?"]
    found = _parser.parse("generate", generate_verb.run, words)["prompt"]
    assert found == ["[1, 2]", "yes: no", "null", "--really?"]


def test_types_of_a_flag_are_named_as_a_reader_writes_them(capsys):
    """Catches a list of types that the flags of two verbs share, shown as nested lists."""
    said = mistake(["export", "--model", "m", "--output", "o", "--dtype", "int4"], capsys)
    assert "dtype" in said
    assert all(name in said for name in ("auto", "float32", "bfloat16", "float16", "q8_0"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: m\nlerning_rate: 1", "unknown setting 'lerning_rate' (did you mean 'learning_rate'?)"),
        ("shadow: {alhpa: 1}", "unknown setting 'shadow.alhpa' (did you mean 'shadow.alpha'?)"),
        ("- [", "is not valid YAML"),
        ("just words", "must hold settings as 'name: value' lines, got str"),
        ("batch_size: many", "batch_size"),
        ("shadow: 3", "shadow must hold settings, got 3"),
        ("shadow: null", "shadow must hold settings, got null"),
    ],
)
def test_mistakes_in_the_config_file(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    assert message in mistake(["train", "--config", tmp_path / "run.yaml"], capsys)


def test_the_flag_shadow_is_renamed_and_no_value_that_holds_its_text():
    """Catches an output folder or a hub id with `--shadow` in it that becomes another one."""
    words = [
        "--shadow=a--shadow=b",
        "--output",
        "run--shadow",
        "--model=me--shadow",
        "--shadow",
        "--shadow.r",
    ]
    assert _parser._as_fields(words, ["shadow_model"]) == [
        "--shadow_model=a--shadow=b",
        "--output",
        "run--shadow",
        "--model=me--shadow",
        "--shadow_model",
        "--shadow.r",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draft.batch-size", "0"], "draft.batch_size must be a whole number, 1 or more, got 0"),
        (["--draft.learning-rate", "-1"], "draft.learning_rate must be above 0, got -1.0"),
        (["--shadow.r", "0"], "shadow.r must be a whole number, at least 1"),
        (["--batch-size", "0"], "batch_size must be a whole number, 1 or more, got 0"),
    ],
)
def test_a_setting_of_a_group_is_named_with_its_group(words, message):
    """Catches a run's own setting blamed for that of the shadow or of the drafts."""
    given = ["--model", "m", "--data", "d", "--output", "o", *words]
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        _parser.parse("train", train_verb.run, given)
