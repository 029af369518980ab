"""The bar on the driver's terminal for steps that training workers take."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
import ray.exceptions

from pipelines.progress import Progress

REFRESH_S = 1.0


class Progressed(NamedTuple):
    """How far a run is: the name of its stage, its global step, steps per second, and a note."""

    stage: str
    step: int
    rate: float
    note: str


class Board:
    """An actor that holds the newest state, between the worker that writes it and the driver that reads it."""

    def __init__(self) -> None:
        self.newest: Progressed | None = None

    def put(self, state: Progressed) -> None:
        self.newest = state

    def get(self) -> Progressed | None:
        return self.newest


@contextlib.contextmanager
def training_bar(progress: Progress) -> Iterator[Any]:
    """Context manager. Shows a run's progress as a bar; yields the handle of the `Board` that its worker writes to.

    Where standard output is no terminal it yields None, and the worker prints lines of its own.
    """
    if not progress.bar:
        yield None
        return
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(REFRESH_S):
            with contextlib.suppress(ray.exceptions.RayError):  # no bar is no reason to stop a training
                if state := ray.get(board.get.remote(), timeout=REFRESH_S):
                    progress.show(state.step, state.rate, f"{state.stage}, {state.note}")

    thread = threading.Thread(target=refresh, daemon=True)
    try:
        with progress:
            thread.start()
            yield board
    finally:
        ended.set()
        ray.kill(board)
