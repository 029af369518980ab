"""What drivers do with runs: plan, open, continue and end them."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from mlflow.entities import RunTag
from mlflow.tracking.context import registry as context_registry

from pipelines.code_version import code_digest
from pipelines.config.parts import TrackingConfig
from pipelines.redaction import flatten, redact
from pipelines.tracking.mlflow_backend.client import connect, if_reached, reaching
from pipelines.tracking.mlflow_backend.runs import ensure_run
from pipelines.tracking.mlflow_backend.transport import send_unsent
from pipelines.tracking.outbox import RefusedError, UnavailableError
from pipelines.tracking.run import OFF, InputData, RunHandle, RunRequest, Status, default_uri, resolve_uri

logger = logging.getLogger(__name__)


def plan_run(
    tracking: TrackingConfig,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    inputs: Sequence[InputData] = (),
    parent: RunHandle | None = None,
    identity: str = "",
) -> RunHandle:
    """The handle of the run that `open_run` would open, without asking the server; its first writer starts it."""
    if not tracking.enabled:
        return OFF
    uri = resolve_uri(tracking.uri) if tracking.uri else default_uri()
    # Git's commit comes from the context, where there is a repository; an uploaded working folder has none.
    version = {"reddit.version": metadata.version("reddit-on-ray"), "reddit.code": code_digest()}
    all_tags = {**context_registry.resolve_tags(), **version, **(tags or {})}
    params = dict(flatten(config))
    request = RunRequest(tracking.experiment, name, params, all_tags, tuple(inputs), parent, identity)
    return RunHandle(uri, "", request)


def open_run(
    tracking: TrackingConfig,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    inputs: Sequence[InputData] = (),
    parent: RunHandle | None = None,
    identity: str = "",
    resume: bool = True,
) -> RunHandle:
    """Continues the run of this name (same experiment, parent and identity), or starts it; for drivers.

    Args:
        tracking: where; a disabled one gives a handle that writes nothing.
        name: by convention the job's resolved output URL.
        config: nested settings, logged as params the first time; later differences become `changed.*` tags.
        tags: further tags.
        inputs: the datasets that the run reads, recorded with their keys.
        parent: the run that this one is a child of.
        identity: tells the run from others of the same name.
        resume: whether a run that has ended is running again; else it stays as it is.

    Raises:
        ValueError: if the tracking URI can never work, or the experiment was deleted.
    """
    handle = plan_run(tracking, name, config, tags=tags, inputs=inputs, parent=parent, identity=identity)
    if handle.request is None:
        return handle
    try:
        with reaching(handle.uri):
            client = connect(handle.uri, create=True)
            return dataclasses.replace(handle, run_id=ensure_run(client, handle, resume=resume))
    except UnavailableError as error:
        logger.warning("tracking server is away (%s); the run starts there as soon as it is back", error)
        return handle
    except RefusedError as error:
        raise ValueError(
            f"the tracking server {redact(handle.uri)} refuses ({error}); mend --tracking.uri, or switch tracking off "
            "with --tracking.no-enabled"
        ) from error


def close_run(handle: RunHandle, status: Status) -> None:
    """Ends a run and sends what waits beside its output; for drivers. An absent server costs a line in the log."""
    with if_reached(handle.uri, f"the run could not be set {status}; run the same command again to try once more"):
        end_run(handle, status, {})
        send_kept(handle)  # last, so that files that the server's store will not have leave no run RUNNING


def end_run(handle: RunHandle, status: Status, tags: Mapping[str, str]) -> None:
    """Ends a run with further tags. One that has ended so already keeps the time at which it did.

    Raises:
        UnavailableError: if the server is away.
        RefusedError: if the server will not have it.
    """
    if handle.request is None:
        return
    with reaching(handle.uri):
        client = connect(handle.uri)
        run = client.get_run(ensure_run(client, handle, resume=False))
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if run.info.status != status:
            client.set_terminated(run.info.run_id, status)


def send_kept(handle: RunHandle) -> None:
    """Sends what waits beside a run's output; raises as `end_run` does."""
    if handle.request is None:
        return
    with reaching(handle.uri):
        client = connect(handle.uri)
        send_unsent(client, ensure_run(client, handle, resume=False), handle.uri, handle.request.name)
