"""Progress: lines at intervals where there is no terminal, a bar where there is one."""

import io
from itertools import count

import pytest
from rich.console import Console

from pipelines.progress import Progress, duration


def shown(*, terminal: bool, steps: int = 25) -> str:
    """What is shown of a job of 25 records, one a second."""
    text, seconds = io.StringIO(), count()
    console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    with Progress("precompute", 25, "records", console, clock=lambda: float(next(seconds))) as progress:
        for _ in range(steps):
            progress.advance()
        progress.print("left out [a].jpg: it cannot be read")
    return text.getvalue()


def test_a_log_gets_a_line_every_ten_seconds() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "precompute 5/25 records, 0.56/s, 36 s left",
        "precompute 10/25 records, 0.53/s, 28 s left",
        "precompute 15/25 records, 0.52/s, 19 s left",
        "precompute 20/25 records, 0.51/s, 10 s left",
        "precompute 25/25 records, 0.51/s, 0 s left",
        "left out [a].jpg: it cannot be read",
    ]


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    text = shown(terminal=True, steps=20)
    assert "━" in text and "20/25" in text and "/s, " in text and "s left" in text
    assert "left out [a].jpg: it cannot be read" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (90, "90 s"), (150, "2.5 min"), (9000, "2.5 h")])
def test_durations_are_in_the_unit_that_people_say(seconds: float, text: str) -> None:
    assert duration(seconds) == text
