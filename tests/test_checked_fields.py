"""Settings are checked by their fields' types and ranges, and every field has its text under it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import docstring_parser
import pytest
import yaml

from shadowpeft import ConfigError, ShadowConfig
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.checked_fields import Range, as_yaml, changed, check, nearest, whole_numbers, within
from shadowpeft.compare.study import Study
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.serve.settings import Serve
from shadowpeft.simulate.settings import System
from shadowpeft.train.config import TrainConfig


@dataclass(frozen=True)
class Oven:
    """Settings of an oven."""

    name: str
    loaves: int = within(2, least=1)
    degrees: float | None = within(None, above=0, below=300)
    share: float = within(0.5, least=0, most=1)
    fan: bool = False
    kind: Literal["gas", "wood"] = "gas"
    door: bool | str = False

    def __post_init__(self) -> None:
        check(self)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": None}, "name must have a value, got null"),
        ({"loaves": 0}, "loaves must be a whole number, 1 or more, got 0"),
        ({"loaves": 1.5}, "loaves must be a whole number, 1 or more, got 1.5"),
        ({"loaves": True}, "loaves must be a whole number, 1 or more, got True"),
        ({"loaves": None}, "loaves must have a value, got null"),
        ({"degrees": 0}, "degrees must be above 0 and below 300, got 0"),
        ({"degrees": 300.0}, "degrees must be above 0 and below 300, got 300.0"),
        ({"degrees": math.nan}, "degrees must be a number, above 0 and below 300, got nan"),
        ({"degrees": "hot"}, "degrees must be a number, above 0 and below 300, got 'hot'"),
        ({"degrees": math.inf}, "degrees must be above 0 and below 300, got inf"),
        ({"share": 1.5}, "share must be from 0 to 1, got 1.5"),
        ({"share": 10**400}, f"share must be a number, from 0 to 1, got {10**400}"),
        ({"loaves": -(10**400)}, f"loaves must be a whole number, 1 or more, got {-(10**400)}"),
        ({"kind": None}, "kind must be 'gas' or 'wood', got None"),
        ({"fan": 1}, "fan must be true or false, got 1"),
        ({"kind": "wod"}, "kind must be 'gas' or 'wood', got 'wod' (did you mean 'wood'?)"),
    ],
)
def test_a_value_out_of_type_or_range_is_one_sentence(given, said):
    """Catches a range that nobody checks, and a check that lets True, NaN or null pass as a number."""
    with pytest.raises(ConfigError) as error:
        Oven(**{"name": "old", **given})
    assert str(error.value) == said


@dataclass(frozen=True)
class HotOven(Oven):
    """An oven whose degrees must be given."""

    degrees: float = 200.0


def test_a_path_is_its_text_and_other_things_are_no_text(tmp_path):
    """Catches settings that cannot be written, or fail with an error of Python's, after a `pathlib.Path`."""
    assert Oven(tmp_path, door=tmp_path) == Oven(str(tmp_path), door=str(tmp_path))
    config = TrainConfig(
        model=tmp_path, data=tmp_path / "d", output=tmp_path, resume=tmp_path, eval_data=tmp_path
    )
    assert str(tmp_path / "d") in config.to_yaml()
    with pytest.raises(ConfigError, match="name must be text, got 3"):
        Oven(3)
    study = Study(model=[tmp_path, "b"], tasks=["gsm8k"], output=tmp_path, ranks=(8, 16))
    assert (study.model, study.ranks) == (f"{tmp_path},b", "8,16")


@pytest.mark.parametrize("text", ["1e-3", ".5", "0o17", "+.5e2", "1_0.5", "a\nb", "\u0085x", "no", "🙂"])
def test_text_is_written_so_that_newer_readers_take_it_for_text(text):
    """Catches `output: 1e-3`, which YAML 1.2 reads as a number."""
    written = as_yaml({"output": text, "rate": 1e-3, "none": None, "yes": True})
    assert yaml.safe_load(written) == {"output": text, "rate": 1e-3, "none": None, "yes": True}
    assert written.startswith("output: 🙂") or written[len("output: ")] in "'\""


def test_a_field_that_is_declared_again_keeps_its_range():
    """Catches a subclass whose values nobody checks."""
    with pytest.raises(ConfigError, match="degrees must be above 0 and below 300, got 0"):
        HotOven("old", degrees=0)
    with pytest.raises(ConfigError, match="degrees must have a value"):
        HotOven("old", degrees=None)


def test_values_at_the_edge_of_their_range_pass():
    """Catches a bound that is off by one."""
    Oven("old", loaves=1, degrees=299.9, share=1, door="left")
    Oven("old", degrees=None, share=0)


def test_a_range_says_what_it_holds():
    """Catches a message that promises another range than is checked."""
    assert [str(Range(least=1)), str(Range(most=3)), str(Range(above=0, most=1))] == [
        "1 or more",
        "at most 3",
        "above 0 and at most 1",
    ]
    assert str(Range()) == ""


def test_the_nearest_name_is_suggested():
    """Catches a suggestion that has nothing to do with what was written."""
    assert nearest("lora_", ["lora", "dora"]) == " (did you mean 'lora'?)"
    assert nearest("xyz", ["lora", "dora"]) == ""


@pytest.mark.parametrize(
    "settings",
    [ShadowConfig, TrainConfig, PretrainConfig, Study, Bench, TrainBench, DecodeBench, Serve, System],
)
def test_every_setting_has_its_text_under_it(settings):
    """Catches a setting that the help of the command line could not explain."""
    texts = {
        text.args[1]: text.description
        for kind in settings.__mro__[:-1]
        for text in docstring_parser.parse_from_object(kind).params
    }
    untold = [entry.name for entry in dataclasses.fields(settings) if not texts.get(entry.name)]
    assert not untold


def test_changed_fields_are_those_that_are_not_at_their_default():
    oven = Oven("old", loaves=3, fan=False)
    assert changed(oven, ["loaves", "fan", "share"]) == ["loaves"]


@pytest.mark.parametrize("text", ["", " , ", "0", "1,two", "-1", "1.5"])
def test_whole_numbers_are_read_or_refused(text):
    assert whole_numbers("loaves", " 2, 1,30", least=1) == [2, 1, 30]
    with pytest.raises(ConfigError, match="loaves must be whole numbers, separated by commas, each 1"):
        whole_numbers("loaves", text, least=1)
