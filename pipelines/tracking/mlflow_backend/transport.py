"""Sends metrics, images and files to a run, and reads the machine's load."""

import contextlib
import logging
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from numpy.typing import NDArray
from PIL import Image

from pipelines.redaction import redact
from pipelines.tracking import spill
from pipelines.tracking.buffer import METRICS_PER_BATCH
from pipelines.tracking.handle import RunHandle
from pipelines.tracking.mlflow_backend.client import connect, translated_errors
from pipelines.tracking.mlflow_backend.runs import ensure_run
from pipelines.tracking.outbox import RejectedError
from pipelines.tracking.spill import File, Point

MONITORS: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)

logger = logging.getLogger(__name__)


def send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Sends metrics; MLflow stores equal points once."""
    client.log_batch(run_id, metrics=[Metric(*point) for point in points], synchronous=True)


def send_file(client: MlflowClient, run_id: str, file: File) -> None:
    """Sends an image or an artifact."""
    if file.pixels is not None:
        send_image(client, run_id, file, file.pixels)
    else:
        client.log_artifact(run_id, str(file.path), file.name or None)


def send_image(client: MlflowClient, run_id: str, file: File, pixels: NDArray[np.uint8]) -> None:
    """Like `MlflowClient.log_image`, with file names that depend on the image's name, step and time only.

    So an image that is sent twice is stored once; `log_image` puts a random ID into the names.
    """
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{file.name} {file.step} {file.timestamp_ms}")
    stem = f"{file.name.replace('/', '~')}+step+{file.step}+timestamp+{file.timestamp_ms}+{unique}"
    image = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory(prefix="reddit-image-") as folder:
        image.save(Path(folder, f"{stem}.png"))
        compress_image_size(image).save(Path(folder, f"{stem}+compressed.webp"))
        client.log_artifacts(run_id, folder, "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, value=True)


def send_spilled(client: MlflowClient, run_id: str, handle: RunHandle) -> None:
    """Sends the data that was spilled below the output of a run, and deletes it there.

    Data that the server rejects is dropped with a log line.

    Raises:
        UnavailableError: if the server is away; what was not sent stays.
    """
    assert handle.request is not None
    with tempfile.TemporaryDirectory(prefix="reddit-unsent-") as scratch:
        for batch in spill.load(handle.request.name, Path(scratch)):
            starts = range(0, len(batch.points), METRICS_PER_BATCH)
            parts = [batch.points[start : start + METRICS_PER_BATCH] for start in starts]
            sending: list[Callable[..., None]] = [partial(send_points, points=part) for part in parts]
            sending += [partial(send_file, file=file) for file in batch.files]
            for send in sending:
                try:
                    with translated_errors(handle.uri):
                        send(client, run_id)
                except RejectedError as error:
                    logger.warning("given up, since %s will not take it (%s)", redact(handle.uri), error)
            spill.delete(batch)


class MlflowTransport:
    """The `RunTransport` to a handle's run. It connects on first use, so in a thread of the writer."""

    def __init__(self, handle: RunHandle) -> None:
        assert handle.request is not None
        self.server = redact(handle.uri)
        self._handle, self._output = handle, handle.request.name
        self._run_id = ""
        self._client: MlflowClient | None = None
        self._connecting = threading.Lock()
        self._monitors: list[Any] = []
        for monitor in MONITORS:
            with contextlib.suppress(RuntimeError):  # raised by the GPU monitor on a machine without GPUs
                self._monitors.append(monitor())

    def _connect(self) -> tuple[MlflowClient, str]:
        """The client and the run's ID; the run is created here if the driver could not."""
        with self._connecting:
            if self._client is None:
                self._client = connect(self._handle.uri)
            self._run_id = self._run_id or ensure_run(self._client, self._handle)
            return self._client, self._run_id

    def send_metrics(self, points: Sequence[Point]) -> None:
        with translated_errors(self._handle.uri):
            send_points(*self._connect(), points)

    def send_file(self, file: File) -> None:
        with translated_errors(self._handle.uri):
            send_file(*self._connect(), file)

    def spill(self, points: Sequence[Point], files: Sequence[File]) -> bool:
        try:
            spill.save(self._output, points, files)
        except (OSError, ValueError) as error:
            logger.warning("they could not be kept at %s either (%s)", redact(self._output), error)
            return False
        return True

    def send_spilled(self) -> None:
        with translated_errors(self._handle.uri):
            send_spilled(*self._connect(), self._handle)

    def read_load(self) -> dict[str, float]:
        """The load by the names of MLflow's own monitors, `system/...`."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
