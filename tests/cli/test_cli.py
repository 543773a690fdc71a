"""The command line: help at once, flags frozen, every mistake one sentence, results as JSON."""

import io
import json
import re
import shutil
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest
import torch
from helpers.bars import nobody_watches  # noqa: F401 - a fixture
from helpers.families import perturb
from helpers.runs import (
    one_thread,  # noqa: F401 - a fixture
    save_base,
    write_rows,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, ShadowedModel, attach, doctor
from shadowpeft import cli as command_line
from shadowpeft.cli import _parser, main
from shadowpeft.cli import compare as compare_verb
from shadowpeft.cli import demo as demo_verb
from shadowpeft.cli import eval as eval_verb
from shadowpeft.cli import export as export_verb
from shadowpeft.cli import generate as generate_verb
from shadowpeft.cli import train as train_verb
from shadowpeft.cli._models import print_result
from shadowpeft.export import export
from shadowpeft.storage import stock_models

SHADOW = (
    "variant r update_width alpha dropout shadow_loss_weight inject_from shadow_layers shadow_intermediate_size "
    "shadow_attention_heads shadow_key_value_heads shadow_head_dim unit_state output_gains shadow_distil"
)
FLAGS = {
    train_verb: "model data output eval_data eval_fraction shadow_model epochs max_steps batch_size eval_batch_size gradient_accumulation "
    "learning_rate backbone_learning_rate scheduler warmup weight_decay max_grad_norm max_length packing bf16 load_in_4bit "
    "gradient_checkpointing impl attn_implementation device deterministic seed eval_steps save_steps save_total_limit logging_steps "
    "report_to resume json " + " ".join(f"shadow.{name}" for name in SHADOW.split()),
    demo_verb: "report json seed",
    compare_verb: "model tasks output methods name seeds trials finalists tie_standard_errors steps batch_size ranks search overrides "
    "shadow_model data_dir train_rows validation_rows test_rows test_skip max_length eval_batch_size ood forgetting_rows search_seed bf16 "
    "device workers json retry report_only",
    generate_verb: "model adapter prompt detached raw max_new_tokens temperature top_p top_k seed dtype device json",
    eval_verb: "model data lm_eval adapter split detached base batch_size max_length max_new_tokens exact_match limit num_fewshot "
    "include_path dtype device json",
    export_verb: "model adapter shadow_model to output dtype max_shard_size push json",
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    perturb(
        attach(AutoModelForCausalLM.from_pretrained(base_folder), ShadowConfig(alpha=0.5))
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path) -> Path:
    return write_rows(
        tmp_path / "rows.jsonl",
        [{"prompt": "what is", "completion": " two"}, {"prompt": "hello", "completion": " four"}],
    )


def mistake(words: list, capsys, code: int = 2) -> str:
    """Run a command line that must fail with one sentence and no trace; return the sentence."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    return lines[0]


def result(words: list, capsys) -> dict:
    capsys.readouterr()
    assert main([str(word) for word in [*words, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)


# Help and flags


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["generate", "--help"], ["compare", "--help"], ["doctor", "--help"]],
    ids=" ".join,
)
def test_help_does_not_wait_for_torch(words):
    """Catches an import at the top of a verb's file that makes every `--help` slow."""
    code = "import sys; from shadowpeft.cli import main; main(sys.argv[1:]); sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: shadowpeft" in done.stdout


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


def test_verbs_are_frozen(capsys):
    assert set(command_line.VERBS) >= {"demo", "train", "generate", "eval", "compare", "export", "doctor"}
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in command_line.VERBS)


def test_settings_come_from_file_then_flags(tmp_path, capsys):
    """Catches a file that wins over the command line, and switches that need `true`."""
    (tmp_path / "run.yaml").write_text(
        "model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nbf16: true\nshadow: {r: 4, alpha: 0.3}\n"
    )
    words = [
        "--config",
        str(tmp_path / "run.yaml"),
        "--shadow.r",
        "8",
        "--batch-size=3",
        "--resume",
        "--json",
    ]
    values = _parser.parse("train", train_verb.run, words)
    settings = values["settings"]
    assert (settings.model, settings.learning_rate, settings.bf16, settings.batch_size, settings.resume) == (
        "m",
        1e-4,
        True,
        3,
        True,
    )
    assert settings.shadow == ShadowConfig(r=8, alpha=0.3)
    assert values["json"] is True
    again = _parser.parse(
        "train",
        train_verb.run,
        ["--config", str(tmp_path / "run.yaml"), "--bf16", "false", "--resume", "a/checkpoint-3"],
    )
    assert (again["settings"].bf16, again["settings"].resume, again["json"]) == (
        False,
        "a/checkpoint-3",
        False,
    )
    (tmp_path / "written.yaml").write_text(settings.to_yaml())
    fed_back = _parser.parse(
        "train", train_verb.run, ["--config", str(tmp_path / "written.yaml"), "--resume"]
    )
    assert fed_back["settings"] == settings


def test_prompt_may_be_repeated_and_is_not_parsed():
    words = [
        "--model",
        "m",
        "--prompt",
        "[1, 2]",
        "--prompt",
        "yes: no",
        "--prompt=null",
        "--prompt",
        "--really?",
    ]
    assert _parser.parse("generate", generate_verb.run, words)["prompt"] == [
        "[1, 2]",
        "yes: no",
        "null",
        "--really?",
    ]


def test_one_prompt_in_a_file_need_not_be_a_list(base_folder, tmp_path, capsys):
    (tmp_path / "ask.yaml").write_text("prompt: hello\nmax_new_tokens: 2\n")
    answers = result(["generate", "--config", tmp_path / "ask.yaml", "--model", base_folder], capsys)[
        "answers"
    ]
    assert [answer["prompt"] for answer in answers] == ["hello"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no verb 'trian' (did you mean 'train'?)"),
        (["train", "--modle", "x"], "unknown flag --modle (did you mean '--model'?)"),
        (["train", "--shadow.alhpa=1"], "unknown flag --shadow.alhpa (did you mean '--shadow.alpha'?)"),
        (["train", "--learning-rate", "fast", "--model", "m"], "learning_rate"),
        (["train", "--model", "m"], "required: data, output"),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--shadow.dropout", "2"],
            "dropout must be at least 0 and below 1",
        ),
        (
            ["train", "--model", "m", "--data", "d", "--output", "o", "--shadow.variant", "papr"],
            "shadow.variant",
        ),
        (["train", "--config", "nowhere.yaml"], "there is none at 'nowhere.yaml'"),
        (["eval", "--model", "m", "--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["generate", "--model", "./nowhere", "--prompt", "x"], "there is no model folder ./nowhere"),
        (["generate", "--model", "m", "--prompt", "x", "--detached"], "--detached needs --adapter"),
        (
            ["generate", "--model", "m", "--prompt", "x", "--detached", "--adapter", "nowhere"],
            "no adapter folder at nowhere",
        ),
        (["generate", "--model", "m", "--prompt", "x", "--temperature=-1"], "temperature"),
        (
            ["export", "--model", "m", "--adapter", "nowhere", "--output", "new"],
            "no adapter folder at nowhere",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence(words, message, capsys):
    assert message in mistake(words, capsys)


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
    (tmp_path / "run.yaml").write_text(content)
    assert message in mistake(["train", "--config", tmp_path / "run.yaml"], capsys)


def test_base_with_missing_weights(base_folder, tmp_path, capsys):
    """Catches transformers' habit of making up weights that a file lacks."""
    shutil.copytree(base_folder, tmp_path / "holed")
    weights = tmp_path / "holed" / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(weights).items() if "layers.1.mlp.up_proj" not in name},
        weights,
        {"format": "pt"},
    )
    said = mistake(["generate", "--model", tmp_path / "holed", "--prompt", "x"], capsys)
    assert "lacks 1 weights, such as model.layers.1.mlp.up_proj.weight" in said


def test_model_that_is_not_reachable(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = mistake(["generate", "--model", "nobody/nothing", "--prompt", "x"], capsys)
    assert "the hub id nobody/nothing cannot be loaded" in said
    remedy = "check its name, the connection and your access to it, or give a folder with config.json"
    assert re.search(rf"cannot be loaded: We couldn't connect to [^;]*[^.;]; {remedy}$", said.strip()), (
        "one sentence of three"
    )


def test_models_beside_a_missing_folder_are_named(base_folder, tmp_path, capsys):
    """Catches a misspelt folder whose user has to look for the right one, and folders that hold no model."""
    asked = ["generate", "--model", tmp_path / "models" / "qwn", "--prompt", "x"]
    for name in ("qwen", "gemma"):
        shutil.copytree(base_folder, tmp_path / "models" / name)
    (tmp_path / "models" / "notes").mkdir()
    there = f"{tmp_path}/models/gemma, {tmp_path}/models/qwen"
    assert f"give a folder with config.json (there are: {there}), or a hub id such as" in mistake(
        asked, capsys
    )
    for number in range(8):
        shutil.copytree(tmp_path / "models" / "gemma", tmp_path / "models" / f"a{number}")
    assert f"{tmp_path}/models/a7 and 2 more), or a hub id" in mistake(asked, capsys)
    shutil.rmtree(tmp_path / "models")
    assert "give a folder with config.json, or a hub id such as" in mistake(asked, capsys)


def test_unexpected_errors_keep_their_trace(monkeypatch, base_folder):
    """Catches an `except` so wide that a fault of ours looks like the user's."""
    monkeypatch.setattr("shadowpeft.storage.stock_models.load_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "--model", str(base_folder), "--prompt", "x"])


# Adapters that do not fit


def damage(folder: Path, how: str) -> None:
    path = folder / "shadow.safetensors"
    state = load_file(path)
    name = "injections.0.up.weight"
    if how == "missing":
        del state[name]
    elif how == "extra":
        state["injections.9.up.weight"] = state[name].clone()
    elif how == "misshapen":
        state[name] = torch.zeros(3, 3)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        save_file(state, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing injections.0.up.weight"),
        ("extra", "extra injections.9.up.weight"),
        ("misshapen", "injections.0.up.weight has shape (3, 3), expected"),
        ("truncated", "is damaged or cut short"),
        ("empty", "is damaged or cut short"),
    ],
)
def test_damaged_adapters(how, message, base_folder, adapter_folder, rows_file, tmp_path, capsys):
    shutil.copytree(adapter_folder, tmp_path / "adapter")
    damage(tmp_path / "adapter", how)
    words = ["--model", base_folder, "--adapter", tmp_path / "adapter"]
    assert message in mistake(["eval", *words, "--data", rows_file], capsys)
    assert message in mistake(["export", *words, "--output", tmp_path / "new"], capsys)
    assert not (tmp_path / "new").exists()


def test_adapter_of_another_base(adapter_folder, tmp_path, capsys):
    other = save_base(tmp_path / "other", seed=7)
    said = mistake(["generate", "--model", other, "--adapter", adapter_folder, "--prompt", "x"], capsys)
    assert "was trained on another base" in said


def test_swapped_folders(base_folder, adapter_folder, rows_file, tmp_path, capsys, monkeypatch):
    """Catches transformers' long answer to an adapter given as a model, and a base loaded before the check."""
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_: pytest.fail("the model was loaded before the check"),
    )
    for words in (
        ["generate", "--prompt", "x"],
        ["eval", "--data", rows_file],
        ["export", "--output", tmp_path / "new"],
    ):
        said = mistake([*words, "--model", adapter_folder, "--adapter", base_folder], capsys)
        assert (
            f"{adapter_folder} is an adapter folder; give it as --adapter and its base ({base_folder}) as --model"
            in said
        )
        said = mistake([*words, "--model", base_folder, "--adapter", base_folder], capsys)
        assert f"{base_folder} is a model; give it as --model" in said


# Results


def test_eval(base_folder, adapter_folder, rows_file, capsys):
    """Catches `--base` or `--detached` that measures the attached model, and a result that is not JSON."""
    words = ["eval", "--model", base_folder, "--adapter", adapter_folder, "--data", rows_file]
    attached, alone, bare = (result([*words, *more], capsys) for more in ([], ["--detached"], ["--base"]))
    assert {"rows", "loss", "perplexity", "shadow_loss", "exact_match", "answered_rows", "tokens"} == set(
        attached
    )
    assert attached["shadow_loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert alone["shadow_loss"] is bare["shadow_loss"] is None
    assert len({round(each["loss"], 4) for each in (attached, alone, bare)}) == 3
    assert bare == result(["eval", "--model", base_folder, "--data", rows_file], capsys)
    assert "exclude each other" in mistake([*words, "--detached", "--base"], capsys)
    assert main([str(word) for word in words]) == 0
    assert "exact match" in capsys.readouterr().out


def test_generate(base_folder, adapter_folder, monkeypatch, capsys):
    """Catches a chat template left out or put in, the wrong model answering, and a prompt from stdin that is lost."""
    words = ["generate", "--model", base_folder, "--adapter", adapter_folder, "--max-new-tokens", 6]
    answers = result([*words, "--prompt", "what", "--prompt", "hello"], capsys)["answers"]
    assert [answer["prompt"] for answer in answers] == ["what", "hello"]
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = ShadowedModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder)
    for more, text, runs in (
        ([], "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n", model),
        (["--raw"], "what", model),
        (["--raw", "--detached"], "what", model.detached()),
    ):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = runs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=2
        )
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert result([*words, *more, "--prompt", "what"], capsys)["answers"][0]["answer"] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("what\n"))
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.strip() == answers[0]["answer"].strip()
    sampled = ["--temperature", "2.0", "--top-k", "50", "--prompt", "what"]
    one, same, other = (
        result([*words, *sampled, "--seed", seed], capsys)["answers"][0]["answer"] for seed in (1, 1, 2)
    )
    assert one == same != other
    assert "leaves no room for 128 new ones" in mistake([*words[:-1], 128, "--prompt", "what"], capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input is empty" in mistake(words, capsys)


def test_export_is_a_stock_model(base_folder, adapter_folder, tmp_path, capsys):
    """Catches a folder that misses a file, or a model that answers otherwise than the shadow."""
    output = tmp_path / "small"
    summary = result(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", output], capsys
    )
    assert {path.name for path in output.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"
    small = AutoModelForCausalLM.from_pretrained(output)
    shadowed = ShadowedModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder
    )
    ids = AutoTokenizer.from_pretrained(output)("what is two", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shadowed(ids, output_shadow_logits=True).shadow_logits
        torch.testing.assert_close(small(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert summary["parameters"] == small.num_parameters()
    assert summary["model_class"] == "Qwen3ForCausalLM"
    card = (output / "README.md").read_text()
    assert f"{small.num_parameters():,} parameters" in card
    assert "## The run" in card
    assert "base_model:" not in card, "a path says nothing on the hub"
    assert "is not an empty folder" in mistake(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", output], capsys
    )


def test_export_is_all_or_nothing(base_folder, adapter_folder, monkeypatch, tmp_path, capsys):
    """Catches a half-written model folder that looks whole."""

    def full(*_, **__):
        assert not (tmp_path / "small").exists(), "it must not be seen before it is whole"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    said = mistake(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", tmp_path / "small"],
        capsys,
        code=1,
    )
    assert "No space left on device" in said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export(str(base_folder), adapter_folder, tmp_path / "small").parameters


class Silent(torch.nn.Linear):
    """A head that gives neither its weights nor an answer, as a quantised one of an unknown kind may."""

    def forward(self, _):
        raise RuntimeError("no kernel for this")


def test_a_head_that_cannot_be_folded_is_a_mistake_of_one_sentence(
    base_folder, adapter_folder, monkeypatch, tmp_path, capsys
):
    """Catches a trace, and a half-written folder, where the base's head is quantised in a way that nobody can read."""
    load = stock_models.load_model

    def quantised(*args, **kwargs):
        base = load(*args, **kwargs)
        base.lm_head.__class__ = Silent
        return base

    monkeypatch.setattr(stock_models, "load_model", quantised)
    said = mistake(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", tmp_path / "small"],
        capsys,
    )
    assert (
        "needs the base's head as plain numbers, and this Silent does not give them (no kernel for this)"
        in said
    )
    assert list(tmp_path.iterdir()) == []


def test_doctor(capsys):
    facts = result(["doctor"], capsys)
    assert facts["versions"]["torch"] == torch.__version__
    assert "Qwen3" in facts["families"]
    assert facts["devices"][0]["device"] == "cpu"
    assert main(["doctor"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_doctor_names_what_an_extra_lacks(monkeypatch):
    """Catches an extra called complete because nothing was compared, and a crash where the package runs uninstalled."""
    asked = [
        "torch>=2.11",
        'torch>=99; extra == "new"',
        'no-such-thing; extra == "new"',
        'shadowpeft[new]; extra == "all"',
        'torch; extra == "old"',
    ]
    package = Message()
    for extra in ("new", "all", "old"):
        package["Provides-Extra"] = extra
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: package)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: asked)
    lacks = ["torch>=99", "no-such-thing"]
    assert doctor.examine()["extras"] == {"new": lacks, "all": lacks, "old": []}
    monkeypatch.undo()

    def uninstalled(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "metadata", uninstalled)
    assert doctor.examine()["extras"] == {}


def test_own_warnings_are_one_line(base_folder, tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "what", "completion": " two plus two is four"}])
    assert (
        main(
            [
                "eval",
                "--model",
                str(base_folder),
                "--data",
                str(rows),
                "--max-length",
                "4",
                "--exact-match",
                "false",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: 1 of 1 rows are longer than max_length=4")


def test_nothing_but_the_result_is_printed(base_folder, adapter_folder, rows_file):
    """Catches bars, warnings and log lines of libraries in a script's output."""
    words = ["eval", "--model", base_folder, "--adapter", adapter_folder, "--data", rows_file, "--json"]
    run = "import sys; from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", run, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 2


def test_reader_that_has_seen_enough(base_folder):
    """Catches the trace of a closed pipe, as `| head -c 5` makes one, while writing and at exit."""
    for prompts in (1, 40):
        words = ["generate", "--model", base_folder, "--max-new-tokens", 40, *["--prompt", "what"] * prompts]
        run = "import sys; from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen(
            [sys.executable, "-c", run, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)
        process.stderr.close()


def test_json_has_no_word_for_infinity(capsys):
    print_result({"loss": 800.0, "perplexity": float("inf"), "spread": (float("nan"), 1.0)}, as_json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"loss": 800.0, "perplexity": None, "spread": [None, 1.0]}
