"""What a training worker measures between two looks at it: rate, loss terms, time lost to data, and its progress."""

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipelines.progress import EVERY_S, describe
from pipelines.training.board import REFRESH_S, Progressed

MEASURE_EVERY = 10


class StepMeter:
    """Gathers the steps between two measurements, and shows the progress.

    Progress goes to the driver's bar where there is one; else the worker prints a line every `EVERY_S` seconds.

    Args:
        num_steps: optimizer steps of the run, over all stages.
        batch_size: samples per step over all workers.
        board: handle of the `Board` that the driver's bar reads, if it has one.
    """

    def __init__(self, num_steps: int, batch_size: int, board: Any = None) -> None:
        self.num_steps, self.batch_size, self.board = num_steps, batch_size, board
        self.wait_s, self.steps, self.shown = 0.0, 0, 0.0
        self.started = time.perf_counter()
        self.stage, self.step, self.terms, self.norm = "", 0, dict[str, Tensor](), 0.0

    def waited(self, seconds: float) -> None:
        """Adds time in which the worker waited for its next batch."""
        if self.steps == 0 and self.step == 0:  # until the first batch everything is start-up
            self.started = time.perf_counter()
            return
        self.wait_s += seconds

    def stepped(self, stage: str, step: int, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        """Adds a step: its stage's name, global number, loss terms, and gradient norm before clipping."""
        self.stage, self.step, self.terms, self.norm = stage, step, dict(terms), float(norm)
        self.steps += 1

    def due(self, rates: Mapping[str, float]) -> dict[str, float]:
        """Metrics since the last measurement, every `MEASURE_EVERY` steps and at the end; otherwise empty."""
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
        every = REFRESH_S if self.board else EVERY_S
        if time.perf_counter() - self.shown >= every or self.step == self.num_steps:
            self.show(per_second, metrics)
        self.wait_s, self.steps, self.started = 0.0, 0, time.perf_counter()
        return metrics

    def show(self, per_second: float, metrics: Mapping[str, float]) -> None:
        """Sends the progress to the driver, or prints it."""
        self.shown = time.perf_counter()
        terms = " ".join(f"{name} {float(value):.4f}" for name, value in self.terms.items())
        note = f"{terms}, waiting for data {metrics['train/data_wait_share']:.0%}"
        if self.board:
            self.board.put.remote(Progressed(self.stage, self.step, per_second, note))
            return
        rest = describe(self.num_steps - self.step, "steps", per_second, note)
        print(f"{self.stage} {self.step}/{self.num_steps} {rest}", flush=True)
