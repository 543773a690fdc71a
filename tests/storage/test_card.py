"""Model cards of folders: they say what is known of the run, and no more."""

import pytest

import shadowpeft
from shadowpeft import ShadowConfig
from shadowpeft.storage.card import adapter_card, base_line, shadow_card

SIZES = {"shadow_layers": 1, "shadow_head_dim": None}


def test_an_adapters_card_counts_its_parameters_and_lists_its_settings():
    config = ShadowConfig(r=5)
    card = adapter_card(
        "some/base", config, {"shadow.a": 1000, "norm": 234}, run={"steps": 7, "loss": 1.23456}
    )
    assert "1,234 parameters, of which 1,000 in the shadow network" in card
    assert "base_model: some/base\n" in card
    assert 'from_pretrained("some/base")' in card
    for name, value in config.resolved().to_dict().items():
        assert (f"| {name} | " in card) == (value is not None), name
    assert "| r | 5 |" in card
    assert "| steps | 7 |\n| loss | 1.235 |" in card
    assert f"Written by shadowpeft {shadowpeft.__version__} (torch " in card


@pytest.mark.parametrize(
    ("borrows", "kind"), [(True, "Implicit: it reads"), (False, "Explicit: another model's")]
)
def test_a_shadows_card_says_its_kind_and_the_sizes_that_it_has(borrows, kind):
    card = shadow_card("some/base", borrows, SIZES, total=1234, run={"corpus": "some text"})
    assert f"{kind}" in card
    assert ", 1,234 parameters." in card
    assert "| shadow_layers | 1 |" in card
    assert "shadow_head_dim" not in card
    assert "| corpus | some text |" in card


def test_an_unknown_run_and_a_base_without_a_name_are_said_so():
    """Catches an empty table, and code that loads a base named nothing."""
    for card in (
        adapter_card("", ShadowConfig(), {"norm": 1}, run={}),
        shadow_card("", True, SIZES, total=1, run={}),
    ):
        assert "## The run\n\nNot recorded" in card
        assert "base_model" not in card
        assert "for (a model built in memory)" in card


def test_a_folder_is_no_base_on_the_hub(tmp_path, monkeypatch):
    """Catches a path of this machine in the header that the hub reads."""
    assert base_line("some/base") == "base_model: some/base\n"
    assert base_line(str(tmp_path / "gone")) == base_line("") == ""
    (tmp_path / "some" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_line("some/base") == ""
