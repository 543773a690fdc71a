"""The settings of a study, checked before any work starts, and the file that repeats it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadowpeft.checked_fields import SEVERAL, as_yaml, check, nearest, within
from shadowpeft.compare.cell import Setting
from shadowpeft.compare.search_space import EXPLICIT, METHODS, built_in, check_trials, refuse_unknown
from shadowpeft.config import LARGEST
from shadowpeft.errors import ConfigError


@dataclass(frozen=True)
class Study:
    """Settings of a study.

    Raises:
        ConfigError: a value is unknown, out of range or contradicts another.
    """

    model: str = field(metadata=SEVERAL)
    """Folders or hub ids of the bases, separated by commas; in a file a list will do, here and for tasks,
    methods and ranks."""
    tasks: str = field(metadata=SEVERAL)
    """Names of the tasks, separated by commas."""
    output: str
    """Folder of the study; gets study.yaml, compare-NAME.jsonl, table.md and the plots."""
    methods: str = field(default="base,lora,shadow", metadata=SEVERAL)
    """Names of the methods, separated by commas."""
    name: str | None = None
    """Name of the study, part of its file's name; by default the name of the output folder."""
    seeds: int = within(3, least=1)
    """How many seeds each final cell is trained from (0, 1, ...)."""
    trials: int = within(4, least=1)
    """How many settings of each method are tried on the validation split."""
    extensions: int = within(1, least=0, most=8)
    """How often the search of a model and task is extended: if the best trial of a method has the lowest or
    the highest learning rate tried, every method gets one more trial. With 0 no grid is extended."""
    finalists: int = within(1, least=1)
    """How many of each method's best trials are trained again from a second seed (search_seed + 1). The mean
    of both values decides. With 1 no trial is repeated."""
    tie_standard_errors: float = within(1.0, least=0, below=LARGEST)
    """Settings whose validation value is within this many standard errors of the best one count as equal. Of
    equal settings the lowest learning rate is chosen. With 0 the best value decides."""
    steps: int = within(300, least=1)
    """Optimizer steps of every training run."""
    batch_size: int = within(16, least=1)
    """Rows per step."""
    ranks: str = field(default="16", metadata=SEVERAL)
    """LoRA ranks that set the budget of trainable parameters; the search is made at the first one."""
    search: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Settings to try in place of the built-in ones: method -> list of {learning_rate, alpha,
    backbone_learning_rate, head_learning_rate}. Every method must list the same number."""
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of a method in place of its defaults: method -> {setting: value}."""
    shadow_model: str | None = None
    """Folder of the pretrained shadow for `shadow-explicit` and `shadow-frozen`, or folder or hub id of a
    pretrained model."""
    data_dir: str | None = None
    """Folder with one folder a data set; by default rows come from the hub."""
    train_rows: int | None = within(None, least=1)
    """Rows of the training split to draw from; by default all."""
    validation_rows: int = within(1000, least=1)
    """Rows of the validation split to choose settings on."""
    test_rows: int | None = within(None, least=1)
    """Rows of the test split to report on; by default all."""
    test_skip: int | list[int] | dict[str, int | list[int]] = 0
    """Rows of each test split that an earlier study read and this one leaves out, since a test row is read
    once: the `test_rows` of that study. For several earlier studies give a list in their order, such as
    [1000, 1000]; each drew from what the ones before it left. Where tasks differ, give a mapping from the
    names of tasks or partners to either; a task that it does not name leaves out none."""
    max_length: int | None = within(None, least=2)
    """Tokens of a training row; by default the task's own."""
    eval_batch_size: int = within(64, least=1)
    """Rows at a time when measuring."""
    ood: bool = True
    """Test every final model on its task's partners, too."""
    forgetting_rows: int = within(64, least=0)
    """Windows of held-out text on which the rise in perplexity is measured; 0 for none."""
    search_seed: int = within(1000, least=0)
    """Seed of the search's training runs."""
    bf16: bool = False
    """Load the base in bfloat16 and compute in it; adapters are trained in float32 either way."""
    device: str = "auto"
    """`auto` for all GPUs, if there are any, or `cpu`."""
    workers: int = within(1, least=1)
    """Training runs at a time on each device; above 1 the times are measured apart, one run at a time."""

    def __post_init__(self) -> None:
        check(self)
        if self.finalists > self.trials:
            raise ConfigError(
                f"finalists must be {self.trials} or less, the number of trials they are taken from, "
                f"got {self.finalists}; lower them or raise trials"
            )
        if self.device not in ("auto", "cpu"):
            raise ConfigError(
                f"device must be auto or cpu, got {self.device!r}; auto takes the GPUs, if there are any"
            )
        self._check_name()
        self._check_names()
        object.__setattr__(self, "test_skip", self._plainest_skip())
        for method in (*self.search, *self.overrides):
            refuse_unknown(method, METHODS, "method")
        for method, settings in self.overrides.items():
            if not isinstance(settings, dict):
                raise ConfigError(f"overrides.{method} must hold settings as 'name: value', got {settings!r}")
        for method in self.names("methods"):
            check_trials(method, self.search.get(method), self.trials)
        self._check_heads()
        for method in self.names("methods"):
            if method in EXPLICIT and self.shadow_model is None:
                raise ConfigError(
                    f"the method {method} needs shadow_model, --shadow on the command line: "
                    "the folder or hub id of its pretrained shadow"
                )

    def _check_name(self) -> None:
        name = self.name or Path(self.output).absolute().name
        if not name or Path(name).name != name or name == "..":
            raise ConfigError(
                f"name must be fit for a file's name, got {name!r}; choose one of letters, digits and dashes"
            )
        object.__setattr__(self, "name", name)

    def _check_names(self) -> None:
        from shadowpeft.compare.tasks import find

        for setting in ("model", "tasks", "methods", "ranks"):
            names = self.names(setting)
            if not names:
                raise ConfigError(f"{setting} must name at least one, got {vars(self)[setting]!r}")
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(f"{setting} names {twice[0]} twice; once is enough")
        for name in self.names("methods"):
            refuse_unknown(name, METHODS, "method")
        for name in self.names("tasks"):
            find(name)
        for rank in self.names("ranks"):
            if not rank.isdecimal() or int(rank) < 1:
                raise ConfigError(f"ranks must be whole numbers from 1 on, separated by commas, got {rank!r}")

    def _check_heads(self) -> None:
        """Refuse a rate for the head where a task has no head to train."""
        from shadowpeft.compare.tasks import find

        frozen = [name for name in self.names("tasks") if find(name).kind != "classification"]
        rated = [method for method in self.names("methods") if _has_head_rate(self.search.get(method, []))]
        if frozen and rated:
            raise ConfigError(
                f"search.{rated[0]}: head_learning_rate is the rate of a classifier's new head, and "
                f"{frozen[0]} is answered through the base's own, which stays frozen; leave the rate out, or "
                f"leave {frozen[0]} to another study"
            )

    def _plainest_skip(self) -> int | list[int] | dict[str, int | list[int]]:
        """Return `test_skip` in its plainest form, so that equal meanings are equal when a study resumes."""
        if not isinstance(self.test_skip, dict):
            return _plain_skip(
                "test_skip", self.test_skip, "; where tasks differ, map their names to such values"
            )
        tested = self.tested
        for name in self.test_skip:
            _refuse_untested(name, tested)
        skips = [_plain_skip(f"test_skip.{task}", self.test_skip.get(task, 0)) for task in tested]
        if all(skip == skips[0] for skip in skips):
            return skips[0]
        return {task: skip for task, skip in zip(tested, skips, strict=True) if skip}

    def names(self, setting: str) -> list[str]:
        """Split a setting that holds several names."""
        return [name.strip() for name in str(vars(self)[setting]).split(",") if name.strip()]

    @property
    def budgets(self) -> list[int]:
        """The ranks as numbers; the search is made at the first one."""
        return [int(rank) for rank in self.names("ranks")]

    @property
    def tested(self) -> list[str]:
        """The names of all tasks that models are tested on: the study's and, with `ood`, their partners."""
        from shadowpeft.compare.tasks import find

        tasks = self.names("tasks")
        return list(
            dict.fromkeys(
                [*tasks, *(partner for task in tasks for partner in find(task).partners if self.ood)]
            )
        )

    def skips_of(self, task: str) -> tuple[int, ...]:
        """Return how many test rows of a task each earlier study drew, in the order of the studies."""
        skip = self.test_skip.get(task, 0) if isinstance(self.test_skip, dict) else self.test_skip
        if isinstance(skip, list):
            return tuple(skip)
        return (skip,) if skip else ()

    def candidates(self, method: str, task: str) -> list[Setting]:
        """List what the search tries for a method on a task, as many settings for every method."""
        from shadowpeft.compare.tasks import find

        if method not in self.search:
            return built_in(method, find(task).kind == "classification")[: self.trials]
        return [
            Setting(
                float(given["learning_rate"]),
                given.get("alpha"),
                given.get("backbone_learning_rate"),
                given.get("head_learning_rate"),
            )
            for given in self.search[method]
        ]

    def to_yaml(self) -> str:
        """Write every field as YAML that `shadowpeft compare --config` reads."""
        return in_yaml(dataclasses.asdict(self))


def in_yaml(settings: Any) -> str:
    """Write the settings of a study as its file holds them, under a line that says what it is."""
    header = "# A study of shadowpeft; to run or resume it: shadowpeft compare --config THIS_FILE\n"
    return header + as_yaml(settings)


def _refuse_untested(name: str, tested: list[str]) -> None:
    from shadowpeft.compare.tasks import TASKS

    if name not in tested:
        wrong = (
            "which this study does not test" if name in TASKS else f"which is no task{nearest(name, tested)}"
        )
        raise ConfigError(
            f"test_skip names {name!r}, {wrong}; the tasks it can name here are: {', '.join(tested)}"
        )


def _plain_skip(where: str, given: Any, remedy: str = "") -> int | list[int]:
    """Check what one task skips. A list of one becomes a number, as in older files, and an empty list 0."""
    skips, least = (given, 1) if isinstance(given, list) else ([given], 0)
    if not all(_is_whole(skip, least) for skip in skips):
        raise ConfigError(
            f"{where} must be a whole number, 0 or more, or a list of whole numbers, 1 or more, "
            f"got {given!r}{remedy}"
        )
    return skips if len(skips) > 1 else sum(skips)


def _has_head_rate(settings: list[dict[str, float]]) -> bool:
    return any("head_learning_rate" in setting for setting in settings)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
