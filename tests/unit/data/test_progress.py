from scaledl.data import progress as progress_module
from scaledl.data.progress import Progress


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with Progress("tokenising", 50_000_000, processes=2) as progress:
        for second in range(30):
            now = second + 0.5
            progress.show(int(2_000_000 * now))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenising: 3.0 of 50.0 MB, 2.0 MB/s, 1.0 MB/s per core, 24 s left",
        "tokenising: 23.0 of 50.0 MB, 2.0 MB/s, 1.0 MB/s per core, 14 s left",
        "tokenising: 43.0 of 50.0 MB, 2.0 MB/s, 1.0 MB/s per core, 4 s left",
    ]


def test_nothing_is_said_of_what_is_quick(monkeypatch, capsys):
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: 5.0)
    with Progress("reading", None) as progress:
        progress.show(10**9)
    assert not capsys.readouterr().err
