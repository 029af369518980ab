"""Progress of long jobs: a bar on a terminal (rich), and elsewhere one line every ten seconds."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from pipelines.console import make_console
from pipelines.redaction import printable

EVERY_S = 10.0
MINUTE_S, HOUR_S = 60.0, 3600.0


class Progress:
    """A context that counts what is done of `total`, and shows it with the rate and the time left.

    Args:
        what: the job or step, such as `precompute`.
        total: how much there is to do, in `unit`s.
        console: where it is shown, standard output by default.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.what, self.total, self.unit, self.clock = what, total, unit, clock
        self.console = console or make_console(soft_wrap=True)
        self.done, self.started, self.shown = 0, clock(), 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
        )
        self.bar = RichProgress(*columns, console=self.console, transient=True) if self.console.is_terminal else None
        if self.bar:
            self.task = self.bar.add_task(what, total=total, rest=unit)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds to what is done; the rate is the mean since the start."""
        self.done += count
        seconds = self.clock() - self.started
        self.show(self.done, self.done / max(seconds, 1e-9), note)

    def show(self, done: int, rate: float, note: str = "") -> None:
        """Shows a state that was measured elsewhere: what is done, and `unit`s per second."""
        rest = describe(self.total - done, self.unit, rate, note)
        if self.bar:
            self.bar.update(self.task, completed=done, rest=rest)
            return
        seconds = self.clock() - self.started
        if seconds - self.shown >= EVERY_S:
            self.shown = seconds
            self.print(f"{self.what} {done}/{self.total} {rest}")

    def print(self, line: str) -> None:
        """A line of its own, above the bar."""
        self.console.print(Text(printable(line)))


def describe(left: int, unit: str, rate: float, note: str = "") -> str:
    """`UNIT, RATE/s, TIME left`, and a note after that."""
    parts = [unit, f"{rate:.2f}/s", f"{duration(left / max(rate, 1e-9))} left", *([note] if note else [])]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the unit in which people say them: `42 s`, `3.5 min`, `1.2 h`."""
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE_S:.1f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.1f} h"
