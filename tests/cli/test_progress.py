import io

from modularbase_core.cli.progress import byte_bar, progress_bar


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


def test_elsewhere_nothing_is_told_where_lines_are_not_wanted(capsys):
    with progress_bar(lines=False) as show:
        show("export", 0, 4)
    assert capsys.readouterr().err == ""


def test_quiet_shows_nothing(capsys):
    with progress_bar(quiet=True) as show:
        show("export", 0, 4)
    assert capsys.readouterr().err == ""


def test_a_download_on_a_terminal_shows_rate_and_remaining_time(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with byte_bar() as show:
        show("tiny/model.safetensors", 1_000_000, 4_000_000)
        show("tiny/model.safetensors", 0, 4_000_000)  # the server began anew
        show("other/model.safetensors", 0, 0)
    drawn = terminal.getvalue()
    assert "tiny/model.safetensors:  25%" in drawn
    assert "1.00M/4.00M" in drawn
    assert "B/s]" in drawn
    assert "other/model.safetensors" in drawn
    assert drawn.endswith("\r")


def test_a_download_elsewhere_is_told_once_by_name_and_size(capsys):
    with byte_bar() as show:
        for done in range(3):
            show("tiny/model.safetensors", done, 4_000_000)
        show("other/model.safetensors", 0, 0)
    assert capsys.readouterr().err == "tiny/model.safetensors (4.0 MB)\nother/model.safetensors\n"


def test_a_quiet_download_shows_nothing(capsys):
    with byte_bar(quiet=True) as show:
        show("tiny/model.safetensors", 0, 4)
    assert capsys.readouterr().err == ""
