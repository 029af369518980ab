"""Writing to a run: metrics, images, files and the machine's load."""

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
from pipelines.tracking.mlflow_backend.client import connect, reaching
from pipelines.tracking.mlflow_backend.runs import ensure_run
from pipelines.tracking.outbox import RefusedError
from pipelines.tracking.run import RunHandle
from pipelines.tracking.spill import File, Point
from pipelines.tracking.writer import METRICS_PER_BATCH

MONITORS: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)

logger = logging.getLogger(__name__)


def send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    client.log_batch(run_id, metrics=[Metric(*point) for point in points], synchronous=True)


def send_file(client: MlflowClient, run_id: str, file: File) -> None:
    if file.pixels is not None:
        send_image(client, run_id, file, file.pixels)
    else:
        client.log_artifact(run_id, str(file.path), file.name or None)


def send_image(client: MlflowClient, run_id: str, file: File, pixels: NDArray[np.uint8]) -> None:
    """What `log_image` does, but under a name that is the same however often it is tried: it is there once."""
    unique = uuid.uuid5(uuid.NAMESPACE_URL, f"{file.name} {file.step} {file.timestamp_ms}")
    stem = f"{file.name.replace('/', '~')}+step+{file.step}+timestamp+{file.timestamp_ms}+{unique}"
    image = Image.fromarray(pixels)
    with tempfile.TemporaryDirectory(prefix="reddit-image-") as folder:
        image.save(Path(folder, f"{stem}.png"))
        compress_image_size(image).save(Path(folder, f"{stem}+compressed.webp"))
        client.log_artifacts(run_id, folder, "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, value=True)


def send_unsent(client: MlflowClient, run_id: str, uri: str, output: str) -> None:
    """Sends what waits beside a run's output; what the server will never take is given up, with a line in the log."""
    with tempfile.TemporaryDirectory(prefix="reddit-unsent-") as scratch:
        for parcel in spill.parcels(output, Path(scratch)):
            starts = range(0, len(parcel.points), METRICS_PER_BATCH)
            batches = [parcel.points[start : start + METRICS_PER_BATCH] for start in starts]
            sending: list[Callable[..., None]] = [partial(send_points, points=batch) for batch in batches]
            sending += [partial(send_file, file=file) for file in parcel.files]
            for send in sending:
                try:
                    with reaching(uri):
                        send(client, run_id)
                except RefusedError as error:
                    logger.warning("given up, since %s will not take it (%s)", redact(uri), error)
            spill.delete(parcel)


class RunLink:
    """The way to one run, for a `BufferedWriter`; connects when it is first used, so not in the caller's time."""

    def __init__(self, handle: RunHandle) -> None:
        self.where = redact(handle.uri)
        self._handle = handle
        self._run_id = ""
        self._client: MlflowClient | None = None
        self._connecting = threading.Lock()
        self._monitors: list[Any] = []
        for monitor in MONITORS:
            with contextlib.suppress(RuntimeError):  # a monitor's word for "no GPU on this machine"
                self._monitors.append(monitor())

    def _reach(self) -> tuple[MlflowClient, str]:
        """The client and the run's id; the run is started here if the driver could not."""
        with self._connecting:
            if self._client is None:
                self._client = connect(self._handle.uri)
            self._run_id = self._run_id or ensure_run(self._client, self._handle)
            return self._client, self._run_id

    def send_metrics(self, points: Sequence[Point]) -> None:
        with reaching(self._handle.uri):
            send_points(*self._reach(), points)

    def send_file(self, file: File) -> None:
        with reaching(self._handle.uri):
            send_file(*self._reach(), file)

    def keep(self, points: Sequence[Point], files: Sequence[File]) -> bool:
        assert self._handle.request is not None
        try:
            spill.save(self._handle.request.name, points, files)
        except (OSError, ValueError) as error:
            logger.warning("they could not be kept at %s either (%s)", redact(self._handle.request.name), error)
            return False
        return True

    def send_kept(self) -> None:
        assert self._handle.request is not None
        with reaching(self._handle.uri):
            send_unsent(*self._reach(), self._handle.uri, self._handle.request.name)

    def read_load(self) -> dict[str, float]:
        """`system/...`, the names under which MLflow's own monitors log."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
