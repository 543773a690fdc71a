"""The demo's report: how numbers are written, and a page that is one file."""

import pytest

from shadowpeft.demo.methods import Curve
from shadowpeft.demo.report import cells, write_report
from shadowpeft.demo.run import DemoResult, MethodResult

BASE = MethodResult(
    name="base",
    accuracy=0.5,
    answered=100,
    trainable=0,
    train_seconds=None,
    ms_per_answer=12.4,
    ms_spread=(11.6, 14.0),
)
LORA = MethodResult(
    name="LoRA",
    accuracy=0.9,
    answered=100,
    trainable=299008,
    train_seconds=56.4,
    ms_per_answer=20.0,
    ms_spread=(19.0, 22.0),
)


def test_what_was_not_trained_has_no_numbers_of_training():
    assert cells(BASE) == ("base", "50.0 ± 9.8 %", "-", "-", "12 (12 to 14)")
    assert cells(LORA) == ("LoRA", "90.0 ± 5.9 %", "299,008", "56", "20 (19 to 22)")


@pytest.mark.parametrize("curve", ["LoRA", "shadow"])
def test_the_page_is_one_file_and_its_text_is_escaped(curve, tmp_path):
    """Catches a request that is read as markup, and a curve whose method has no colour."""
    example = {"request": "a <b> & c", "right": "x", "base": "y", "LoRA": "x"}
    result = DemoResult(
        methods=[BASE, LORA],
        fits={curve: Curve([5, 10], [2.0, 1.0], 3.0)},
        examples=[example],
        test_rows=100,
        labels=31,
        seconds=9.6,
    )
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "a &lt;b&gt; &amp; c" in page
    assert "adapted to 31 answers" in page
    assert "in 10 s." in page
    assert "{" not in page.partition("</style>")[2]
