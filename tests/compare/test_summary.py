"""The results of a study for the terminal."""

from helpers.study_records import study, study_records

from shadowpeft.compare.summary import summary, terminal


def test_the_terminal_shows_the_averages(tmp_path):
    text = terminal(summary(study(tmp_path), study_records()))
    assert [line.split()[0] for line in text.splitlines()] == ["method", "base", "lora", "shadow", "shadow"]
    assert all(len(line) < 100 for line in text.splitlines())
