"""Standard tasks through lm-evaluation-harness: what it computes on each kind of model, and one sentence for
each mistake."""

import contextlib
import copy
import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.bars import nobody_watches  # noqa: F401 - a fixture
from helpers.families import perturb
from helpers.lm_eval_tasks import ROWS, SAY, write_tasks
from helpers.runs import one_thread  # noqa: F401 - a fixture
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, ShadowedModel, attach
from shadowpeft.cli import main
from shadowpeft.embedded import MODEL
from shadowpeft.evaluation.answers import greedy_answers

pytest.importorskip("lm_eval")

from shadowpeft.evaluation.harness import load_tasks, run_harness, table

pytestmark = pytest.mark.filterwarnings(
    "ignore:::(lm_eval|datasets|evaluate|multiprocess|dill|joblib|sacrebleu|nltk)"
)

TOKENS = 8
KINDS = ["attached", "detached", "bare", "disabled"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """The harness asks pip and the system what there is, which takes longer than all that is tested here."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def shadowed() -> ShadowedModel:
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    torch.manual_seed(0)
    return perturb(attach(base, ShadowConfig(alpha=0.5)))


@pytest.fixture(scope="module")
def detached(shadowed):
    return shadowed.detached()


@pytest.fixture
def chosen(request, shadowed, detached):
    """The model of a kind; for `disabled` the shadowed one, bare while the test lasts."""
    with shadowed.disabled() if request.param == "disabled" else contextlib.nullcontext():
        yield {"detached": detached, "bare": shadowed.base}.get(request.param, shadowed)


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tasks(tmp_path / "tasks", [""] * len(ROWS))


@torch.no_grad()
def log_likelihood(model, prompt: list[int], answer: list[int]) -> float:
    logits_TV = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    picked = logits_TV.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]
    return picked.sum().item()


def by_hand(model, tokenizer) -> tuple[float, float, float]:
    """Accuracy, Brier score and bits per byte, one sequence at a time."""
    right, brier, bits = 0, 0.0, 0.0
    for question, choices, answer in ROWS:
        ids = tokenizer(question).input_ids
        scores = [
            log_likelihood(model, ids, tokenizer(question + choice).input_ids[len(ids) :])
            for choice in choices
        ]
        right += scores.index(max(scores)) == answer
        total = sum(map(math.exp, scores))
        brier += sum(
            (math.exp(score) / total - (number == answer)) ** 2 for number, score in enumerate(scores)
        )
        bits -= log_likelihood(model, [tokenizer.eos_token_id], ids) / math.log(2)
    return right / len(ROWS), brier / len(ROWS), bits / sum(len(question.encode()) for question, _, _ in ROWS)


def metrics(result: dict) -> dict[str, float]:
    return {name: value for task in result["tasks"].values() for name, value in task["metrics"].items()}


@pytest.mark.parametrize("chosen", KINDS, indirect=True)
def test_likelihoods_are_those_by_hand(chosen, shadowed, tokenizer, folder):
    """Catches the wrong model measured, the base's weights or modes touched, and padding that counts."""
    tasks = load_tasks(["choose", "roll"], str(folder))
    before = [parameter.clone() for parameter in shadowed.parameters()]
    expected = dict(zip(("acc", "brier_score", "bits_per_byte"), by_hand(chosen, tokenizer), strict=True))
    chosen.train()  # dropout is none here; the mode must come back
    for batch_size in (1, 4):
        result = run_harness(chosen, tokenizer, tasks, batch_size=batch_size)
        assert metrics(result) == pytest.approx(expected, rel=1e-4), batch_size
        assert chosen.training
    chosen.eval()
    assert all(torch.equal(new, old) for new, old in zip(shadowed.parameters(), before, strict=True))
    assert {name: (task["rows"], task["version"]) for name, task in result["tasks"].items()} == {
        "choose": (5, 3),
        "roll": (5, 3),
    }
    assert result["tasks"]["choose"]["stderr"]["acc"] == pytest.approx(
        math.sqrt(expected["acc"] * (1 - expected["acc"]) / 4)
    )
    assert result["tasks"]["roll"]["stderr"]["bits_per_byte"] is None


def test_attached_detached_and_bare_differ(shadowed, detached, tokenizer):
    """Without this the test above could compare one model with itself."""
    scores = [by_hand(model, tokenizer) for model in (shadowed, detached, shadowed.base)]
    assert len({round(bits, 2) for _, _, bits in scores}) == 3


@pytest.mark.parametrize("chosen", KINDS, indirect=True)
@pytest.mark.parametrize("ending", [False, True], ids=["", "early end token"])
def test_answers_are_those_of_one_at_a_time(chosen, ending, tokenizer, tmp_path):
    """Catches padding on the wrong side, the model's length in place of the task's, and answers that go on.

    Only the tokenizer knows the end token: what follows it would count if a longer row stood beside it.
    """
    prompts = [tokenizer(question).input_ids for question, _, _ in ROWS]
    if ending:
        free = greedy_answers(chosen, tokenizer, prompts[:1], TOKENS, 1, progress=False)
        ids = tokenizer(free[0]).input_ids
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens(
            {"eos_token": tokenizer.convert_ids_to_tokens(ids[min(2, len(ids) - 1)])}
        )
    end = tokenizer.decode(tokenizer.eos_token_id)  # the harness stops at its text, however that came about
    said = [
        text.split("\n")[0].split(end)[0]
        for text in greedy_answers(chosen, tokenizer, prompts, TOKENS, 1, progress=False)
    ]
    assert len(set(said)) > 1
    settings = chosen.generation_config
    assert settings.max_new_tokens > TOKENS
    tasks = load_tasks(["say"], str(write_tasks(tmp_path / "tasks", said)))
    for batch_size in (1, 4):
        assert metrics(run_harness(chosen, tokenizer, tasks, batch_size=batch_size)) == {
            "exact_match": 1.0
        }, batch_size
    assert metrics(run_harness(chosen, tokenizer, tasks, max_new_tokens=1))["exact_match"] < 1
    assert chosen.generation_config is settings
    assert tokenizer.padding_side == "right"


def test_limit_and_examples_reach_the_harness(shadowed, tokenizer, folder):
    tasks = load_tasks(["choose", "roll"], str(folder))
    for task in tasks:
        task.config.fewshot_split = "test"
    assert run_harness(shadowed, tokenizer, tasks, limit=2)["tasks"]["choose"]["rows"] == 2
    result = run_harness(shadowed, tokenizer, tasks[:1], limit=2, num_fewshot=1)
    assert result["tasks"]["choose"]["num_fewshot"] == 1
    assert metrics(result)["brier_score"] != pytest.approx(by_hand(shadowed, tokenizer)[1], rel=1e-3)
    assert [line.split()[:4] for line in table(result).splitlines()[1:]] == [
        ["choose", "2", "1", "acc"],
        ["choose", "2", "1", "brier_score"],
    ]


def test_inputs_that_are_cut_are_reported(shadowed, tokenizer, folder):
    """Catches the harness's log hidden with all that is in it."""
    with pytest.warns(UserWarning, match=r"longer than 6 tokens"):
        run_harness(shadowed, tokenizer, load_tasks(["choose"], str(folder)), max_length=6)


# On the command line


@pytest.fixture(scope="module")
def adapter_folder(shadowed, tmp_path_factory) -> Path:
    written = tmp_path_factory.mktemp("adapter")
    shadowed.save_pretrained(written)
    return written


def run(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["eval", "--model", str(MODEL), *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command(shadowed, detached, adapter_folder, tokenizer, folder, capsys):
    """Catches a flag that does not arrive, the wrong model loaded, and anything printed beside the result."""
    words = [
        "--lm-eval",
        "choose, roll",
        "--include-path",
        folder,
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--adapter",
        adapter_folder,
    ]
    for more, model in (([], shadowed), (["--detached"], detached), (["--base"], shadowed.base)):
        code, out, err = run(capsys, *words, *more, "--json")
        assert (code, err) == (0, "")
        expected = dict(zip(("acc", "brier_score", "bits_per_byte"), by_hand(model, tokenizer), strict=True))
        assert metrics(json.loads(out)) == pytest.approx(expected, rel=1e-4)
    code, out, err = run(capsys, *words, "--limit", 1)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:4] == ["choose", "1", "0", "acc"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --data or --lm-eval, got neither"),
        (["--data", "rows.jsonl", "--lm-eval", "choose"], "give either --data or --lm-eval, got both"),
        (["--data", "rows.jsonl", "--limit", 3], "limit has no meaning with --data"),
        (["--lm-eval", "choose", "--split", "train"], "split has no meaning with --lm-eval"),
        (["--lm-eval", "choose", "--limit", 0], "limit must be 1 or more"),
        (["--lm-eval", "choose", "--include-path", "nowhere"], "there is no folder nowhere"),
        (["--lm-eval", ",", "--include-path", "."], "--lm-eval needs the name of a task"),
    ],
)
def test_flags_that_do_not_fit_together(words, message, capsys):
    code, out, err = run(capsys, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_harness_that_is_not_installed(monkeypatch, folder, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--lm-eval", "choose", "--include-path", folder)
    assert code == 2
    assert err.splitlines() == [
        "shadowpeft eval: standard tasks need lm-evaluation-harness; pip install 'shadowpeft[lm-eval]'"
    ]


@pytest.mark.slow
def test_unknown_task(folder, capsys):
    code, _, err = run(capsys, "--lm-eval", "choose,arc_esay", "--include-path", folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "the harness has no task 'arc_esay'" in err
    assert "near it are: arc_easy" in err


ELSEWHERE = "task: elsewhere\noutput_type: multiple_choice\ndataset_path: nobody/nothing\ntest_split: test\n"


def test_data_that_cannot_be_had(monkeypatch, folder, capsys):
    """Catches the trace of a hub that is out of reach, and of a file that is damaged."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (folder / "elsewhere.yaml").write_text(ELSEWHERE, encoding="utf-8")
    code, _, err = run(capsys, "--lm-eval", "elsewhere", "--include-path", folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "elsewhere cannot be loaded: Couldn't" in err
    assert "nobody/nothing" in err
    (folder / "rows.jsonl").write_text('{"question": \n', encoding="utf-8")
    code, _, err = run(capsys, "--lm-eval", "choose", "--include-path", folder)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            SAY.replace("say", "code", 1) + "unsafe_code: true\n",
            "task code runs the code that a model writes",
        ),
        (SAY.replace("say", "look", 1) + "doc_to_image: question\n", "task look shows pictures"),
        (
            SAY.replace("say", "long", 1).replace("8}", "1024}"),
            "task long generates up to 1024 tokens, which leaves no room",
        ),
    ],
)
def test_tasks_that_do_not_fit(more, message, tmp_path, capsys):
    folder = write_tasks(tmp_path / "tasks", [""] * len(ROWS), more)
    code, _, err = run(capsys, "--lm-eval", more.split()[1], "--include-path", folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
