"""What can be typed as methods, ways and lengths of drafts."""

import pytest

from shadowpeft.bench.decode.specs import EVERYTHING, DecodeSpec, specs_of, ways_of
from shadowpeft.errors import ConfigError


def test_a_method_is_a_line_and_a_draft_one_for_each_length():
    """Catches a length that is lost, and an implementation that is measured under another name."""
    found = specs_of("base, shadow:triton,shadow,draft:reference,draft", "4,auto")
    assert found == [
        DecodeSpec("base"),
        DecodeSpec("shadow", "triton"),
        DecodeSpec("shadow", "auto"),
        DecodeSpec("draft", "reference", 4),
        DecodeSpec("draft", "reference", "auto"),
        DecodeSpec("draft", "auto", 4),
        DecodeSpec("draft", "auto", "auto"),
    ]
    names = [spec.name for spec in found]
    assert names[1:5] == ["shadow:triton", "shadow", "draft:reference 4", "draft:reference auto"]
    assert len(set(names)) == len(found)
    assert len(specs_of(EVERYTHING, "4")) == 11


@pytest.mark.parametrize(
    ("methods", "draft_tokens", "said"),
    [
        ("bse", "4", "there is no method 'bse' here .did you mean 'base'"),
        ("lora:triton", "4", "lora has no implementations, shadow and draft do; leave out ':triton'"),
        ("shadow:fast", "4", "there is no implementation 'fast'"),
        ("base,base", "4", "base is named twice"),
        ("draft", "4,4", "draft 4 is named twice"),
        ("draft", "0", "draft_tokens must be whole numbers, 1 or more, or auto"),
        ("draft", "-1", "draft_tokens must be whole numbers, 1 or more, or auto"),
        ("draft", "", "methods must name at least one, and draft needs one of draft_tokens"),
        ("", "4", "methods must name at least one"),
    ],
)
def test_what_is_not_there_is_refused(methods, draft_tokens, said):
    with pytest.raises(ConfigError, match=said):
        specs_of(methods, draft_tokens)


def test_ways_have_an_order_of_their_own():
    """Catches a compiled way that runs first, and leaves its memory to the others."""
    assert ways_of("compiled,generate") == ["generate", "compiled"]
    for ways, said in (("graphs", "did you mean 'graph'"), ("", "at least one"), ("graph,graph", "twice")):
        with pytest.raises(ConfigError, match=said):
            ways_of(ways)
