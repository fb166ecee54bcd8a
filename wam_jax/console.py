"""What a person sees while work runs: log lines, progress with an ETA, tables."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress
import rich.table
from rich.markup import escape

T = TypeVar("T")

console = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
_PLAIN_INTERVAL_S = 10.0  # where no terminal can redraw a bar (CI, a log file), say a line this often


def log(message: str) -> None:
    """One line, with the time of day in front. Brackets are plain text, not markup."""
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {escape(message)}")


def progress(items: Iterable[T], description: str, total: int | None = None, start: int = 0) -> Iterator[T]:
    """Yields ``items`` under a progress bar with rate and ETA; plain lines where there is no terminal.

    Args:
      items: what to iterate over.
      description: what the work is, as shown beside the bar.
      total: the number of items, counted from 0; taken from ``len(items)`` when absent.
      start: how many were done before (a resumed run), so that bar and ETA are right.
    """
    if total is None:
        total = start + len(items)  # type: ignore[arg-type]
    if console.is_terminal:
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=start)
            for item in items:
                yield item
                bar.advance(task)
        return
    began = last = time.monotonic()
    steady, done = began, start
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if done == start + 1:
            steady = now  # the first item often compiles: the rate is that of the others
        if now - last > _PLAIN_INTERVAL_S:
            last = now
            pace = now - began if done == start + 1 else (now - steady) / (done - start - 1)
            eta_s = pace * (total - done)
            log(f"{description}: {done}/{total}, {duration(now - began)} gone, {duration(eta_s)} to go")


def duration(seconds: float) -> str:
    """``75`` -> ``1m15s``; from an hour on without seconds, ``7500`` -> ``2h05m``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints one table to standard output."""
    grid = rich.table.Table(title=escape(title), title_justify="left")
    for name in header:
        grid.add_column(escape(name))
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    rich.console.Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(grid)
