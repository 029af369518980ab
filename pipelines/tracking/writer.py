"""What is measured, on its way to a tracking server: buffered, sent by threads of their own, never in the way."""

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.tracking.outbox import Outbox, RefusedError, UnavailableError
from pipelines.tracking.spill import File, Point

METRICS_PER_BATCH, METRICS_KEPT, METRICS_INTERVAL_S = 500, 200_000, 1.0
FILES_KEPT = 64
LOAD_INTERVAL_S = 10.0
# While the server is away, what waits is kept beside the output so often: at most that much is lost by a kill.
KEEP_INTERVAL_S = 30.0

logger = logging.getLogger(__name__)


class Link(Protocol):
    """The way to one run. Sending raises `outbox.UnavailableError` or `outbox.RefusedError`."""

    where: str

    def send_metrics(self, points: Sequence[Point]) -> None: ...

    def send_file(self, file: File) -> None: ...

    def keep(self, points: Sequence[Point], files: Sequence[File]) -> bool:
        """Stores what could not be sent, for later; whether that worked."""
        ...

    def send_kept(self) -> None:
        """Sends what was stored, by whomever."""

    def read_load(self) -> Mapping[str, float]:
        """The machine's load now, by metric name."""
        ...


def now_ms() -> int:
    """Milliseconds since 1970, in which MLflow counts."""
    return int(time.time() * 1000)


class BufferedWriter:
    """Writes through a link; no method waits for the server or raises because of it. Without a link it does nothing.

    Metrics wait in memory and files in a temporary folder until the server takes them; while it is away they are kept
    beside the output now and then, since this process may be killed. The machine's load goes with them every ten
    seconds.
    """

    def __init__(self, link: Link | None) -> None:
        self._link = link
        self._step = 0
        self._closing, self._keep_now = threading.Event(), threading.Event()
        if link is None:
            return
        self._metrics = Outbox[Point](
            f"metrics to {link.where}",
            link.send_metrics,
            capacity=METRICS_KEPT,
            max_batch=METRICS_PER_BATCH,
            interval_s=METRICS_INTERVAL_S,
        )
        self._files = Outbox[File](f"files to {link.where}", self._send_files, capacity=FILES_KEPT)
        self._copies = tempfile.TemporaryDirectory(prefix="reddit-artifacts-", ignore_cleanup_errors=True)
        threading.Thread(target=self._watch_load, args=(link,), name="machine-load", daemon=True).start()
        self._keeper = threading.Thread(target=self._keep_what_waits, args=(link,), name="keeper", daemon=True)
        self._keeper.start()

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Records values under slash-separated names (`train/loss`) at an optimizer step.

        Whoever gives the time can record them again, say after a restart: they are there once.
        """
        if self._link is None:
            return
        self._step = step
        time_ms = now_ms() if timestamp_ms is None else timestamp_ms
        self._metrics.put([Point(name, float(value), time_ms, step) for name, value in values.items()])

    def image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Records an image, uint8 [H, W, 3], under a slash-separated name at a step."""
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
        if self._link is not None:
            self._files.put([File(name, step=step, pixels=image.copy(), timestamp_ms=now_ms())])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Records a file below the run's artifact `folder`; it is copied at once, so it may go away or change."""
        if self._link is None:
            return
        copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / path.name
        shutil.copyfile(path, copy)
        self._files.put([File(folder, path=copy)])

    def secure(self) -> None:
        """Says that this process may be killed at any moment: metrics are sent at once, or kept beside the output."""
        if self._link is not None:
            self._metrics.hurry()
            self._keep_now.set()

    def close(self, timeout_s: float = 10) -> None:
        """Delivers what it can within `timeout_s` seconds; the rest is kept beside the output, to be sent later."""
        if self._link is None or self._closing.is_set():
            return
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        self._keep_now.set()
        self._keeper.join(timeout_s)
        points = self._metrics.close(max(0.0, deadline - time.monotonic()))
        files = self._files.close(max(0.0, deadline - time.monotonic()))
        if points or files:
            logger.warning("%d metrics and %d files wait for %s", len(points), len(files), self._link.where)
            self._link.keep(points, files)
        if lost := self._metrics.given_up + self._files.given_up:
            logger.warning("%d metrics and files were given up and never reached %s", lost, self._link.where)
        self._copies.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_files(self, batch: Sequence[File]) -> None:
        assert self._link is not None
        for file in batch:
            self._link.send_file(file)
            if file.pixels is None:
                shutil.rmtree(file.path.parent, ignore_errors=True)

    def _watch_load(self, link: Link) -> None:
        while not self._closing.wait(LOAD_INTERVAL_S):
            self.metrics(link.read_load(), self._step)

    def _keep_what_waits(self, link: Link) -> None:
        """Keeps what waits while the server is away; sends what was kept, also by a killed process, when it is not."""
        left = True
        while not self._closing.is_set():
            self._keep_now.wait(KEEP_INTERVAL_S)
            self._keep_now.clear()
            if self._closing.is_set():
                return  # `close` does the same, more patiently
            points, files = self._metrics.take(), self._files.take()
            if points or files:
                left = True
                if not link.keep(points, files):
                    self._metrics.give_back(points)
                    self._files.give_back(files)
            elif left and not self._metrics.away and not self._files.away:
                with contextlib.suppress(UnavailableError, RefusedError):
                    link.send_kept()
                    left = False
