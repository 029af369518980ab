"""A tracked run: its picklable handle, the request that it is created from, and `tracked_run`, which opens and ends it.

Free of MLflow, which `tracked_run` loads only when tracking is on.
"""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipelines import storage
from pipelines.config.parts import TrackingConfig, require
from pipelines.redaction import redact

SQLITE = "sqlite:///"
IDENTITY = "identity"

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words."""


class InputData(NamedTuple):
    """A dataset that a run reads: its name within the run (`pairs`), the URL of its manifest, and its key."""

    name: str
    url: str
    key: str


@dataclass(frozen=True)
class RunRequest:
    """Everything needed to create a run; equal requests lead to the same run, whoever sends them first.

    Attributes:
        experiment: MLflow experiment that the run belongs to.
        name: the resolved URL of the job's output; data that could not be sent is stored below it (`spill.py`).
        params: flat settings, as text.
        tags: further tags.
        inputs: the datasets that the run reads.
        parent: the run that this one is a child of; None for a run of its own.
        identity: distinguishes the run from those of other outputs with the same name; see `output_identity`.
    """

    experiment: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    inputs: Sequence[InputData]
    parent: "RunHandle | None"
    identity: str = ""

    @property
    def key(self) -> str:
        """The run's name within its experiment: 32 hex digits of a hash over name, identity and the parent's key."""
        parent = self.parent.request.key if self.parent and self.parent.request else ""
        return hashlib.sha256(f"{parent}\n{redact(self.name)}\n{self.identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RunHandle:
    """A run on a tracking server, to be passed to every process that writes to it.

    Attributes:
        uri: the tracking URI; empty when tracking is off.
        run_id: MLflow's ID of the run; empty when tracking is off, or while the run is not created yet (it was only
            planned, or the server was away): then the first writer that reaches the server creates it from `request`.
        request: None when tracking is off.
    """

    uri: str
    run_id: str
    request: RunRequest | None = field(default=None, repr=False)


OFF = RunHandle("", "")


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


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else the embedded store `runs/mlflow.db` below the current folder; creates `runs/`."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path('runs', 'mlflow.db').absolute()}")


def resolve_uri(uri: str) -> str:
    """The tracking URI with a relative SQLite path made absolute, so that it means the same in every process.

    Raises:
        ValueError: if it has no scheme.
    """
    require(
        "://" in uri or uri == "databricks",
        f"the tracking URI {redact(uri)!r} must be sqlite:///PATH/mlflow.db or http(s)://HOST:PORT",
    )
    path = embedded_store(uri)
    if path is None:
        return uri
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{path}"


def embedded_store(uri: str) -> Path | None:
    """The absolute path of an SQLite store; None for any other URI."""
    return Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None
