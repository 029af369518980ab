"""Writers of metrics, images and files to a run: buffered, and sent by background threads, so that no caller waits."""

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

from pipelines.tracking.outbox import Outbox, RejectedError, UnavailableError
from pipelines.tracking.spill import File, Point

METRICS_PER_BATCH, METRICS_CAPACITY, METRICS_INTERVAL_S = 500, 200_000, 1.0
FILES_CAPACITY = 64
LOAD_INTERVAL_S = 10.0
# While the server is away, waiting data is spilled this often: a kill loses at most that much.
SPILL_INTERVAL_S = 30.0

logger = logging.getLogger(__name__)


class RunTransport(Protocol):
    """Sends metrics and files to one run. Sending raises `outbox.UnavailableError` or `outbox.RejectedError`."""

    server: str
    """The tracking URI without credentials, for log lines."""

    def send_metrics(self, points: Sequence[Point]) -> None:
        """Sends at most `METRICS_PER_BATCH` points."""

    def send_file(self, file: File) -> None:
        """Sends one image or artifact."""

    def spill(self, points: Sequence[Point], files: Sequence[File]) -> bool:
        """Stores undelivered data below the run's output, for later delivery; returns whether that succeeded."""
        ...

    def send_spilled(self) -> None:
        """Sends all data that is stored below the run's output, also that of other processes, and deletes it there."""

    def read_load(self) -> Mapping[str, float]:
        """The machine's current load, by metric name."""
        ...


def now_ms() -> int:
    """The time in milliseconds since 1970, MLflow's unit."""
    return int(time.time() * 1000)


class BufferedWriter:
    """Writes through a transport; no method waits for the server or raises because of it. Without one it does nothing.

    Metrics wait in memory, and files in a temporary folder, until the server accepts them. While it is away they are
    spilled below the run's output every 30 seconds, since this process may be killed. The machine's load is recorded
    every ten seconds.
    """

    def __init__(self, transport: RunTransport | None) -> None:
        self._transport = transport
        self._step = 0
        self._closing, self._spill_now = threading.Event(), threading.Event()
        if transport is None:
            return
        self._metrics = Outbox[Point](
            f"metrics to {transport.server}",
            transport.send_metrics,
            capacity=METRICS_CAPACITY,
            max_batch=METRICS_PER_BATCH,
            interval_s=METRICS_INTERVAL_S,
        )
        self._files = Outbox[File](f"files to {transport.server}", self._send_files, capacity=FILES_CAPACITY)
        self._copies = tempfile.TemporaryDirectory(prefix="reddit-artifacts-", ignore_cleanup_errors=True)
        threading.Thread(target=self._record_load, args=(transport,), name="machine-load", daemon=True).start()
        self._spiller = threading.Thread(target=self._spill_and_resend, args=(transport,), name="spiller", daemon=True)
        self._spiller.start()

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int | None = None) -> None:
        """Records values under slash-separated names (`train/loss`) at an optimizer step.

        Passing `timestamp_ms` makes the call idempotent: the same point logged twice is stored once.
        """
        if self._transport is None:
            return
        self._step = step
        time_ms = now_ms() if timestamp_ms is None else timestamp_ms
        self._metrics.put([Point(name, float(value), time_ms, step) for name, value in values.items()])

    def image(self, name: str, image: NDArray[np.uint8], step: int) -> None:
        """Records an image, uint8 [H, W, 3], under a slash-separated name at a step."""
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, (image.dtype, image.shape)
        if self._transport is not None:
            self._files.put([File(name, step=step, pixels=image.copy(), timestamp_ms=now_ms())])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Records a file below the run's artifact `folder`; it is copied at once, so it may change or be deleted."""
        if self._transport is None:
            return
        copy = Path(tempfile.mkdtemp(dir=self._copies.name)) / path.name
        shutil.copyfile(path, copy)
        self._files.put([File(folder, path=copy)])

    def flush(self) -> None:
        """Sends waiting metrics now, or spills waiting data if the server is away; returns at once.

        For a process that may be killed at any moment.
        """
        if self._transport is not None:
            self._metrics.flush()
            self._spill_now.set()

    def close(self, timeout_s: float = 10) -> None:
        """Delivers as much as possible within `timeout_s` seconds; spills the rest, to be sent later."""
        if self._transport is None or self._closing.is_set():
            return
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        self._spill_now.set()
        self._spiller.join(timeout_s)
        points = self._metrics.close(max(0.0, deadline - time.monotonic()))
        files = self._files.close(max(0.0, deadline - time.monotonic()))
        if points or files:
            logger.warning("%d metrics and %d files wait for %s", len(points), len(files), self._transport.server)
            self._transport.spill(points, files)
        if lost := self._metrics.dropped + self._files.dropped:
            logger.warning("%d metrics and files were given up and never reached %s", lost, self._transport.server)
        self._copies.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send_files(self, batch: Sequence[File]) -> None:
        assert self._transport is not None
        for file in batch:
            self._transport.send_file(file)
            if file.pixels is None:
                shutil.rmtree(file.path.parent, ignore_errors=True)

    def _record_load(self, transport: RunTransport) -> None:
        while not self._closing.wait(LOAD_INTERVAL_S):
            self.metrics(transport.read_load(), self._step)

    def _spill_and_resend(self, transport: RunTransport) -> None:
        """Spills waiting data while the server is away; sends spilled data, also a killed process's, when it is not."""
        spilled = True  # by an earlier process, perhaps
        while not self._closing.is_set():
            self._spill_now.wait(SPILL_INTERVAL_S)
            self._spill_now.clear()
            if self._closing.is_set():
                return  # `close` does the same, with more patience
            points, files = self._metrics.take(), self._files.take()
            if points or files:
                spilled = True
                if not transport.spill(points, files):
                    self._metrics.give_back(points)
                    self._files.give_back(files)
            elif spilled and not self._metrics.unavailable and not self._files.unavailable:
                with contextlib.suppress(UnavailableError, RejectedError):
                    transport.send_spilled()
                    spilled = False
