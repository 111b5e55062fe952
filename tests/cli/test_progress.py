import io

from modularbase_core.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_a_bar_that_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress_bar() as show:
        show("export", 0, 4)
        show("build", 4, 4)
    assert "export" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_elsewhere_each_phase_is_told_once(capsys):
    with progress_bar() as show:
        for done in range(3):
            show("export", done, 4)
        show("build", 3, 4)
    assert capsys.readouterr().err == "export (0/4)\nbuild (3/4)\n"


def test_quiet_shows_nothing(capsys):
    with progress_bar(quiet=True) as show:
        show("export", 0, 4)
    assert capsys.readouterr().err == ""
