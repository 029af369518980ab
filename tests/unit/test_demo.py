"""What the demo says of its 2-step student."""

from jobs.demo import verdict
from pipelines.reporting import Row


def rows(psnr: float, sharpness: float) -> list[Row]:
    figures = {("teacher", 16): (24.5, 0.89), ("teacher", 2): (26.6, 0.86), ("student", 2): (psnr, sharpness)}
    return [{"method": name, "steps": steps, "psnr": p, "sharpness": s} for (name, steps), (p, s) in figures.items()]


def test_it_says_what_was_reached() -> None:
    first, second = verdict(rows(27.3, 0.884))
    assert "+0.70 dB" in first and "reached" in first
    assert "80% of the way" in second and "reached" in second


def test_it_says_by_how_much_and_why_something_was_missed() -> None:
    first, second = verdict(rows(26.0, 0.863))
    assert "-0.60 dB" in first and "missed" in first and "Missed because" in first
    assert "10% of the way" in second and "Missed because" in second
