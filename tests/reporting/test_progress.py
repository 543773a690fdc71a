"""The progress of a long run."""

from shadowpeft.reporting.progress import progress_bar


def test_lines_are_printed_without_a_bar_where_there_is_no_terminal(capsys):
    """Catches control characters in a log file, and markup read into a message."""
    with progress_bar("study", 3, completed=1) as bar:
        bar.advance()
        bar.say("[bold] 1 of 3")
        bar.update(3, 4)
        bar.say("done")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "[bold] 1 of 3\ndone\n")
