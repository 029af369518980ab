"""`tracked_run`: opens a job's run and ends it with the block.

Free of MLflow, which it loads only when tracking is on.
"""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines import storage
from pipelines.config.parts import TrackingConfig
from pipelines.tracking.handle import OFF, InputData, RunHandle, Status

IDENTITY = "identity"


@contextlib.contextmanager
def tracked_run(
    track: TrackingConfig,
    output: str,
    config: Any,
    *,
    job: str,
    inputs: Sequence[InputData] = (),
    parent: RunHandle | None = None,
    done: bool = False,
) -> Iterator[RunHandle]:
    """Opens the run of a job's output and ends it with the block: FINISHED, or FAILED after an exception.

    A job that runs again under the same output continues the same run. A server that is away costs a log line only.

    Args:
        track: where to track; when it is disabled, the handle is `OFF` and MLflow is not loaded.
        output: URL of the job's output, which the run is named after.
        config: the job's config, a dataclass; its settings become the run's params.
        job: the job's name, for the tag `reddit.job`.
        inputs: the datasets that the job reads.
        parent: the run that this one is a child of.
        done: the job has nothing left to do. The run is then opened only to send what was stored while the server was
            away, and keeps its end time.

    Raises:
        ValueError: if the tracking URI can never work, or the experiment was deleted.
    """
    if not track.enabled:
        yield OFF
        return
    from pipelines.tracking.mlflow_backend import driver  # noqa: PLC0415 - loads MLflow

    name, tags, identity = storage.resolve(output), {"reddit.job": job}, output_identity(output)
    planned = driver.plan_run(track, name, asdict(config), tags=tags, inputs=inputs, parent=parent, identity=identity)
    handle = driver.open_run(planned, resume=not done)
    status: Status = "FAILED"
    try:
        yield handle
        status = "FINISHED"
    finally:
        driver.close_run(handle, status)


def output_identity(output: str) -> str:
    """A random ID stored at `<output>/identity`, so that a deleted and recreated output gets a new MLflow run."""
    url = storage.join(output, IDENTITY)
    if not storage.exists(url):
        storage.write_bytes(url, uuid.uuid4().hex.encode())
    return storage.read_bytes(url).decode()
