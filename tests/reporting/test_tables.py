"""Numbers and tables as reports write them."""

from shadowpeft.reporting import tables
from shadowpeft.reporting.stats import Difference, Estimate


def test_numbers_are_written_with_their_margins_and_signs():
    """Catches a share that is not in percent, a lost sign, and a margin made up of one seed."""
    assert tables.percent(Estimate(0.5, 0.01, 3)) == "50.0 ± 1.0"
    assert tables.percent(Estimate(0.5, None, 1)) == "50.0"
    assert tables.nats(Estimate(0.5, 0.01, 3)) == "+0.500 ± 0.010"
    assert tables.nats(Estimate(-0.5, None, 1)) == "-0.500"
    difference = Difference(0.01, (-0.02, 0.04), None, seeds=1, count=9)
    assert tables.points(difference) == ["+1.00", "-2.00 to +4.00", "-"]
    assert (tables.whole(12345.6), tables.number(1.234, 2), tables.ratio(1.0)) == ("12,346", "1.23", "1.000")


def test_what_is_unknown_is_a_dash():
    unknown = [tables.percent(None), tables.nats(None), tables.whole(None), tables.number(None, 1)]
    assert [*unknown, tables.ratio(None), tables.interval(None), *tables.points(None)] == ["-"] * 9


def test_a_table_aligns_words_left_and_numbers_right():
    """Catches a bar within a cell that begins another column."""
    found = tables.table(["method", "score"], [["a|b", "1"]])
    assert found == "| method | score |\n| --- | ---: |\n| a/b | 1 |"


def test_long_messages_are_cut():
    assert tables.one_line("two\n words") == "two words"
    assert tables.one_line("x" * 9, most=8) == "xxxxx..."
    assert (tables.plural(1, "cell"), tables.plural(0, "cell")) == ("cell", "cells")
