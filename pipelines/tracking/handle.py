"""What a run is to every process: its picklable handle, the request that it is created from, and where it is tracked.

Free of MLflow.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.config.parts import require
from pipelines.redaction import redact

SQLITE = "sqlite:///"

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
