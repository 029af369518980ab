"""What drivers do with runs: plan, open, end and close them."""

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
from pipelines.tracking.handle import OFF, InputData, RunHandle, RunRequest, Status, default_uri, resolve_uri
from pipelines.tracking.mlflow_backend import transport
from pipelines.tracking.mlflow_backend.client import connect, log_if_undeliverable, translated_errors
from pipelines.tracking.mlflow_backend.runs import ensure_run
from pipelines.tracking.outbox import RejectedError, UnavailableError

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
    """The handle of a run, without asking the server; `open_run` or the first writer creates the run.

    Args:
        tracking: where; a disabled one gives `OFF`, which writes nothing.
        name: by convention the job's resolved output URL.
        config: nested settings, logged as params the first time; later differences become `changed.*` tags.
        tags: further tags, beside those of MLflow's context (the Git commit among them) and of this project's version.
        inputs: the datasets that the run reads, recorded with their keys.
        parent: the run that this one is a child of.
        identity: distinguishes the run from others of the same name.

    Raises:
        ValueError: if the tracking URI has no scheme.
    """
    if not tracking.enabled:
        return OFF
    uri = resolve_uri(tracking.uri) if tracking.uri else default_uri()
    # MLflow's context has Git's commit only inside a repository, which an uploaded working folder is not.
    version = {"reddit.version": metadata.version("reddit-on-ray"), "reddit.code": code_digest()}
    all_tags = {**context_registry.resolve_tags(), **version, **(tags or {})}
    params = dict(flatten(config))
    request = RunRequest(tracking.experiment, name, params, all_tags, tuple(inputs), parent, identity)
    return RunHandle(uri, "", request)


def open_run(planned: RunHandle, *, resume: bool = True) -> RunHandle:
    """Finds the planned run (same experiment, name, identity and parent) or creates it.

    Args:
        planned: from `plan_run`.
        resume: sets a run that has ended to RUNNING again; otherwise it stays as it is.

    Returns:
        The handle with its run ID; `planned` itself when tracking is off or the server is away.

    Raises:
        ValueError: if the server rejects the run, for example because the experiment was deleted.
    """
    if planned.request is None:
        return planned
    try:
        with translated_errors(planned.uri):
            client = connect(planned.uri, create=True)
            return dataclasses.replace(planned, run_id=ensure_run(client, planned, resume=resume))
    except UnavailableError as error:
        logger.warning("tracking server is away (%s); the run starts there as soon as it is back", error)
        return planned
    except RejectedError as error:
        raise ValueError(
            f"the tracking server {redact(planned.uri)} refuses ({error}); fix --tracking.uri, or switch tracking off "
            "with --tracking.no-enabled"
        ) from error


def close_run(handle: RunHandle, status: Status) -> None:
    """Ends a run and sends the data that was spilled below its output; an absent server costs a log line only."""
    with log_if_undeliverable(
        handle.uri, f"the run could not be set {status}; run the same command again to try once more"
    ):
        end_run(handle, status, {})
        send_spilled(handle)  # last, so that files that the artifact store rejects leave no run RUNNING


def end_run(handle: RunHandle, status: Status, tags: Mapping[str, str]) -> None:
    """Ends a run and adds tags. A run that has this status already keeps its end time.

    Raises:
        UnavailableError: if the server is away.
        RejectedError: if the server will never accept it.
    """
    if handle.request is None:
        return
    with translated_errors(handle.uri):
        client = connect(handle.uri)
        run = client.get_run(ensure_run(client, handle, resume=False))
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if run.info.status != status:
            client.set_terminated(run.info.run_id, status)


def send_spilled(handle: RunHandle) -> None:
    """Sends the data that was spilled below a run's output; raises as `end_run` does."""
    if handle.request is None:
        return
    with translated_errors(handle.uri):
        client = connect(handle.uri)
        transport.send_spilled(client, ensure_run(client, handle, resume=False), handle)
