"""What names a tracked run, picklable and free of MLflow."""

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
    """A dataset that a run reads: what it is to the run, the URL of its manifest, and its key."""

    name: str
    url: str
    key: str


@dataclass(frozen=True)
class RunRequest:
    """What a run is made from when it is not there yet; the same request always leads to the same run.

    Attributes:
        name: by convention the URL of the job's output, where what could not be sent waits (`unsent.py`).
        identity: tells it from others that had, or elsewhere have, an output of the same name.
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
        """Names the run within its experiment: a hash of its name, its identity, and its parent's key."""
        parent = self.parent.request.key if self.parent and self.parent.request else ""
        return hashlib.sha256(f"{parent}\n{redact(self.name)}\n{self.identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class RunHandle:
    """A run of a tracking server, to be handed to whoever writes to it.

    Attributes:
        uri: the tracking URI; empty when tracking is off.
        run_id: empty when tracking is off, or the server was away: then the first writer that reaches it
            starts the run as `request` says.
        request: None when tracking is off.
    """

    uri: str
    run_id: str
    request: RunRequest | None = field(default=None, repr=False)


OFF = RunHandle("", "")


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, else the embedded store `runs/mlflow.db` below the current folder (which is made)."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{Path('runs', 'mlflow.db').absolute()}")


def resolve_uri(uri: str) -> str:
    """A tracking URI that means the same in every process: relative SQLite paths become absolute.

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
