"""What a person sees while work runs."""

import io

import pytest
import rich.console

from wam_jax import console


@pytest.fixture
def plain(monkeypatch) -> io.StringIO:
    """Stands in for a log file: what is not a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(console, "console", rich.console.Console(file=stream, force_terminal=False, soft_wrap=True))
    return stream


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s"), (3599, "59m59s"), (3600, "1h00m"), (7500, "2h05m")],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_yields_every_item_in_order(monkeypatch, terminal):
    stream = io.StringIO()
    monkeypatch.setattr(console, "console", rich.console.Console(file=stream, force_terminal=terminal))
    assert list(console.progress(range(7), "work")) == list(range(7))
    assert list(console.progress(iter("abc"), "work", total=5, start=2)) == ["a", "b", "c"]
    assert ("work" in stream.getvalue()) == terminal  # quick work without a terminal leaves no line


def test_plain_progress_gives_a_line_every_ten_seconds_with_the_time_that_remains(plain, clock):
    for _ in console.progress(range(10), "train [toy]"):
        clock[0] += 6.0
    lines = plain.getvalue().splitlines()
    assert [line.split(" ", 1)[1] for line in lines[:2]] == [
        "train [toy]: 2/10, 12s gone, 48s to go",
        "train [toy]: 4/10, 24s gone, 36s to go",
    ]
    assert len(lines) == 5


def test_progress_of_a_resumed_run_judges_the_pace_by_its_own_items(plain, clock):
    for _ in console.progress(range(2), "train", total=100, start=90):
        clock[0] += 11.0
    assert plain.getvalue().splitlines()[0].endswith("train: 91/100, 11s gone, 1m39s to go")


def test_log_keeps_brackets(plain):
    console.log("success .98 [.95, .99], frozen [text], [/no/tag]")
    assert plain.getvalue().split(" ", 1)[1] == "success .98 [.95, .99], frozen [text], [/no/tag]\n"


def test_table_goes_to_standard_output_and_keeps_brackets(capsys):
    console.table("arms [n=2]", ["arm", "success"], [["joint [a]", ".98 [.95, .99]"], ["none", None]])
    printed = capsys.readouterr()
    assert printed.err == ""
    for cell in ("arms [n=2]", "joint [a]", ".98 [.95, .99]", "None"):
        assert cell in printed.out
