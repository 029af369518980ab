"""The progress line of a training worker: stage, step, rate, time left, loss terms, time lost to data."""

import time
from collections.abc import Mapping

from torch import Tensor

SHOW_EVERY_S = 15.0
MEASURE_EVERY = 10


class Progress:
    """Gathers what happens between two measurements; shows a line every few seconds."""

    def __init__(self, num_steps: int, batch_size: int) -> None:
        self.num_steps, self.batch_size = num_steps, batch_size
        self.wait_s, self.steps, self.shown = 0.0, 0, 0.0
        self.started = time.perf_counter()
        self.stage, self.step, self.terms, self.norm = "", 0, dict[str, Tensor](), 0.0

    def waited(self, seconds: float) -> None:
        """Time that a worker stood still for its next batch."""
        if self.steps == 0 and self.step == 0:  # until the first batch everything is start-up
            self.started = time.perf_counter()
            return
        self.wait_s += seconds

    def stepped(self, stage: str, step: int, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        self.stage, self.step, self.terms, self.norm = stage, step, dict(terms), float(norm)
        self.steps += 1

    def due(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Metrics since the last measurement, every few steps; else nothing. Prints a line now and then."""
        if self.steps < MEASURE_EVERY and self.step < self.num_steps:
            return {}
        seconds = time.perf_counter() - self.started
        per_second = self.steps / max(seconds, 1e-9)
        metrics = {
            **{f"train/{name}": float(value) for name, value in self.terms.items()},
            **{f"train/{name}": value for name, value in rates.items()},
            "train/grad_norm": self.norm,
            "train/samples_per_second": per_second * self.batch_size,
            "train/data_wait_share": self.wait_s / max(seconds, 1e-9),
        }
        if time.perf_counter() - self.shown >= SHOW_EVERY_S or self.step == self.num_steps:
            self.show(per_second, metrics)
        self.wait_s, self.steps, self.started = 0.0, 0, time.perf_counter()
        return metrics

    def show(self, per_second: float, metrics: Mapping[str, float]) -> None:
        self.shown = time.perf_counter()
        left = (self.num_steps - self.step) / max(per_second, 1e-9)
        terms = " ".join(f"{name} {float(value):.4f}" for name, value in self.terms.items())
        print(
            f"{self.stage} step {self.step}/{self.num_steps}, {per_second:.2f} steps/s, {left / 60:.1f} min left, "
            f"{terms}, waiting for data {metrics['train/data_wait_share']:.0%}",
            flush=True,
        )
