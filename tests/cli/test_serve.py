"""`shadowpeft serve` on the command line; tests/serve has the server itself."""

import socket

from helpers.command_line import mistake

from shadowpeft.cli import main, serve


def test_mistakes_are_one_sentence_each(base_folder, monkeypatch, capsys, tmp_path):
    """Catches a mistake that is found only after minutes of loading, or told by a trace."""
    words = ["serve", "--model", base_folder, "--port", 0]
    assert "nothing to serve" in mistake(["serve"], capsys)
    assert "belong together" in mistake([*words, "--edge", "detached"], capsys)
    assert "no adapter folder at" in mistake([*words, "--adapter", tmp_path / "nowhere"], capsys)
    roles = ["--edge", "a", "--cloud", "b", "--policy", tmp_path / "routing.json"]
    assert "shadowpeft calibrate writes one" in mistake([*words, *roles], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "in use" in mistake([*words[:-1], port], capsys)
    monkeypatch.setattr(serve, "NEEDS", ("no_such_library",))
    assert "pip install 'shadowpeft[serve]'" in mistake(words, capsys)


def test_help(capsys):
    assert main(["serve", "--help"]) == 0
    assert "--on-cloud-failure" in capsys.readouterr().out
