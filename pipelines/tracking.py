"""MLflow: one run per job, found again by its name, and a writer that never holds up training.

This is the only module that imports MLflow. Drivers open and close runs; whoever measures (a training
worker, a driver) writes to them by run id through a `RunWriter`. A tracking server that is slow or away
costs log lines, never an exception nor training time; what could be delivered later is.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import mlflow.pyfunc
import numpy as np
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking.context import registry as context_registry
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

import reddit_core
from pipelines import student_model, unsent
from pipelines.config_parts import TrackingConfig, require
from pipelines.model_card import ModelCard
from pipelines.outbox import RefusedError, UnavailableError
from pipelines.redaction import flatten, redact
from pipelines.run_handle import OFF, RunHandle, RunRequest, default_uri, embedded_store, resolve_uri
from pipelines.unsent import File, Point
from pipelines.writer import METRICS_PER_BATCH, BufferedWriter

# MLflow retries for minutes by default; here outboxes do that, and drivers do not wait. The user's own settings win.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
logging.getLogger("mlflow").setLevel(logging.WARNING)
# A GPU that does not tell its load (one cut in parts, for one) would say so at every look.
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Says at every attempt what the outbox says once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

RUN_NAME_TAG, RUN_KEY_TAG, PARENT_TAG = "reddit.run_name", "reddit.run_key", "mlflow.parentRunId"
WEIGHTS_TAG = "reddit.weights_sha256"
PARAMS_PER_BATCH = 100
MONITORS: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
# What the code inside a registered model imports.
MODEL_REQUIREMENTS = ("torch", "numpy", "safetensors", "jaxtyping")

__all__ = [
    "RunHandle",
    "RunWriter",
    "Status",
    "close_run",
    "default_uri",
    "end_run",
    "log_dataset",
    "open_run",
    "plan_run",
    "register_student",
]
Status = Literal["FINISHED", "FAILED", "KILLED"]
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turns whatever MLflow and its stores raise into UnavailableError or RefusedError."""
    try:
        yield
    except MlflowException as error:
        status = ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 500)
        lasting = 400 <= status < 500 and status not in {408, 409, 429}
        raise (RefusedError if lasting else UnavailableError)(_first_line(error)) from error
    except (OSError, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error) as error:
        raise UnavailableError(f"{redact(uri)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}".splitlines()[0][:200])


def _connect(uri: str, *, create: bool = False) -> MlflowClient:
    """A client; without `create`, an embedded store that is not on this machine is not made up."""
    store = embedded_store(uri)
    if store is not None and not create and not store.exists():
        raise UnavailableError(f"the embedded store {uri} is not on this machine; give --tracking.uri of a server")
    return MlflowClient(uri)


def plan_run(
    tracking: TrackingConfig,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    parent: RunHandle | None = None,
) -> RunHandle:
    """The handle of the run that `open_run` would open, without asking the server; its first writer starts it."""
    if not tracking.enabled:
        return OFF
    uri = resolve_uri(tracking.uri) if tracking.uri else default_uri()
    version = {"reddit.version": metadata.version("reddit-on-ray")}
    all_tags = {**context_registry.resolve_tags(), **version, **(tags or {})}
    return RunHandle(uri, "", RunRequest(tracking.experiment, name, dict(flatten(config)), all_tags, parent))


def open_run(
    tracking: TrackingConfig,
    name: str,
    config: Mapping[str, Any],
    *,
    tags: Mapping[str, str] | None = None,
    parent: RunHandle | None = None,
) -> RunHandle:
    """Continues the run of this name (same experiment, same parent), or starts it; for drivers.

    Args:
        tracking: where; a disabled one gives a handle that writes nothing.
        name: by convention the job's resolved output URL.
        config: nested settings, logged as params the first time; later differences become `changed.*` tags.
        tags: further tags.
        parent: the run that this one is a child of.

    Raises:
        ValueError: if the tracking URI can never work, or the experiment was deleted.
    """
    handle = plan_run(tracking, name, config, tags=tags, parent=parent)
    if handle.request is None:
        return handle
    try:
        with _reaching(handle.uri):
            client = _connect(handle.uri, create=True)
            return dataclasses.replace(handle, run_id=_ensure_run(client, handle))
    except UnavailableError as error:
        logger.warning("tracking server is away (%s); the run starts there as soon as it is back", error)
        return handle
    except RefusedError as error:
        raise ValueError(
            f"the tracking server {redact(handle.uri)} refuses ({error}); mend --tracking.uri, or switch tracking off "
            "with --tracking.no-enabled"
        ) from error


def _ensure_run(client: MlflowClient, handle: RunHandle, *, resume: bool = True) -> str:
    """The id of the handle's run, which is found and (`resume`) continued, or else created."""
    if handle.run_id or handle.request is None:
        return handle.run_id
    request = handle.request
    experiment_id = _ensure_experiment(client, handle.uri, request.experiment)
    if found := _runs_of(client, experiment_id, request):
        return _continue_run(client, found[0], request) if resume else str(found[0].info.run_id)
    tags = {**request.tags, RUN_NAME_TAG: redact(request.name), RUN_KEY_TAG: request.key}
    if request.parent is not None and (parent_id := _ensure_run(client, request.parent)):
        tags[PARENT_TAG] = parent_id
    shown_name = "/".join(redact(request.name).rstrip("/").split("/")[-2:])
    run_id: str = client.create_run(experiment_id, tags=tags, run_name=shown_name).info.run_id
    first = _runs_of(client, experiment_id, request)[0]
    if first.info.run_id != run_id:  # somebody else created it at the same moment; all agree on the first
        client.delete_run(run_id)
        return _continue_run(client, first, request)
    _log_params(client, run_id, request.params)
    return run_id


def _runs_of(client: MlflowClient, experiment_id: str, request: RunRequest) -> Sequence[Run]:
    order = ["attributes.start_time", "attributes.run_id"]
    return client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{request.key}'", max_results=2, order_by=order)


def _continue_run(client: MlflowClient, run: Run, request: RunRequest) -> str:
    run_id: str = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    known = run.data.params
    _log_params(client, run_id, {name: value for name, value in request.params.items() if name not in known})
    changed = {name: value for name, value in request.params.items() if known.get(name, value) != value}
    tags = {**request.tags, **{f"changed.{name}": value for name, value in changed.items()}}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()][:PARAMS_PER_BATCH])
    return run_id


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    items = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(items), PARAMS_PER_BATCH):
        client.log_batch(run_id, params=items[start : start + PARAMS_PER_BATCH])


def _ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server knows where artifacts go; the embedded store keeps them beside itself.
        store = embedded_store(uri)
        location = (store.parent / "mlartifacts" / name).as_uri() if store is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was quicker, or there is a real reason that comes again below
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    require(
        experiment.lifecycle_stage == "active",
        f"the MLflow experiment {name!r} was deleted; restore it there, or name another with --tracking.experiment",
    )
    return str(experiment.experiment_id)


def close_run(handle: RunHandle, status: Status) -> None:
    """Ends a run; for drivers. An absent server leaves it RUNNING, with a line in the log."""
    try:
        end_run(handle, status, {})
    except (UnavailableError, RefusedError) as error:
        logger.warning("the run could not be set %s (%s)", status, error)


def end_run(handle: RunHandle, status: Status, tags: Mapping[str, str]) -> None:
    """Ends a run with further tags, and sends what waits beside its output.

    One that has ended so already keeps the time at which it did.

    Raises:
        UnavailableError: if the server is away.
        RefusedError: if the server will not have it.
    """
    if handle.request is None:
        return
    with _reaching(handle.uri):
        client = _connect(handle.uri)
        run = client.get_run(_ensure_run(client, handle, resume=False))
        _send_unsent(client, run.info.run_id, handle.request.name)
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if run.info.status != status:
            client.set_terminated(run.info.run_id, status)


def _send_unsent(client: MlflowClient, run_id: str, output: str) -> None:
    with tempfile.TemporaryDirectory(prefix="reddit-unsent-") as scratch:
        for parcel in unsent.parcels(output, Path(scratch)):
            for start in range(0, len(parcel.points), METRICS_PER_BATCH):
                _send_points(client, run_id, parcel.points[start : start + METRICS_PER_BATCH])
            for file in parcel.files:
                _send_file(client, run_id, file)
            unsent.delete(parcel)


def _send_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    client.log_batch(run_id, metrics=[Metric(*point) for point in points], synchronous=True)


def _send_file(client: MlflowClient, run_id: str, file: File) -> None:
    if file.pixels is not None:
        client.log_image(run_id, file.pixels, key=file.name, step=file.step, synchronous=True)
    else:
        client.log_artifact(run_id, str(file.path), file.name or None)


def log_dataset(handle: RunHandle, name: str, url: str, key: str) -> None:
    """Records that the run read the dataset whose manifest lies at `url`; `key` is its cache key (its digest)."""
    if handle.request is None:
        return
    source = json.dumps({"url": redact(url)})
    dataset = Dataset(name=name, digest=key[:36], source_type="url", source=source)
    entry = DatasetInput(dataset, [InputTag("mlflow.data.context", name)])
    try:
        with _reaching(handle.uri):
            client = _connect(handle.uri)
            run_id = _ensure_run(client, handle)
            inputs = client.get_run(run_id).inputs
            known = [entry.dataset for entry in inputs.dataset_inputs] if inputs else []
            if all((seen.name, seen.digest) != (name, dataset.digest) for seen in known):
                client.log_inputs(run_id, [entry])
    except (UnavailableError, RefusedError) as error:
        logger.warning("the dataset %s could not be recorded (%s)", name, error)


class _Link:
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
                self._client = _connect(self._handle.uri)
            self._run_id = self._run_id or _ensure_run(self._client, self._handle)
            return self._client, self._run_id

    def send_metrics(self, points: Sequence[Point]) -> None:
        with _reaching(self._handle.uri):
            _send_points(*self._reach(), points)

    def send_file(self, file: File) -> None:
        with _reaching(self._handle.uri):
            _send_file(*self._reach(), file)

    def keep(self, points: Sequence[Point], files: Sequence[File]) -> None:
        assert self._handle.request is not None
        try:
            unsent.save(self._handle.request.name, points, files)
        except (OSError, ValueError) as error:
            logger.warning("they could not be kept at %s either (%s)", redact(self._handle.request.name), error)

    def read_load(self) -> dict[str, float]:
        """`system/...`, the names under which MLflow's own monitors log."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


class RunWriter(BufferedWriter):
    """Writes to the run of a handle from wherever things are measured; see `BufferedWriter` for what it promises."""

    def __init__(self, handle: RunHandle) -> None:
        super().__init__(_Link(handle) if handle.request is not None else None)


def register_student(
    handle: RunHandle, name: str, weights: bytes, example: NDArray[np.uint8], card: ModelCard, seed: int = 0
) -> str:
    """Logs a student as a pyfunc model of the run and registers it; the same weights of a run only once.

    `mlflow.pyfunc.load_model(uri).predict(images)` enhances uint8 [N, H, W, 3]; its params are steps and seed.

    Args:
        name: of the registered model, which gets a new version.
        weights: safetensors of the student.
        example: input example, uint8 [N, H, W, 3]; keep it small.
        card: shown as the version's description, and `README.md` beside the model.
        seed: default seed of the sampler's noise.

    Returns:
        `models:/NAME/VERSION`, or "" when tracking is off or the server is away (the log says so).
    """
    if handle.request is None:
        return ""
    digest = hashlib.sha256(weights).hexdigest()
    try:
        with _reaching(handle.uri), tempfile.TemporaryDirectory(prefix="reddit-model-") as folder:
            client = _connect(handle.uri)
            run_id = _ensure_run(client, handle)
            for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
                if version.tags.get(WEIGHTS_TAG) == digest:
                    return f"models:/{name}/{version.version}"
            run = client.get_run(run_id)
            model = client.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id)
            _save_pyfunc(Path(folder), model.model_id, run_id, weights, example, card, seed)
            client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
            client.finalize_logged_model(model.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            # By its location: "models:/ID" would be looked up on the process's default server, not on this one.
            version = client.create_model_version(
                name,
                model.artifact_location,
                run_id,
                {WEIGHTS_TAG: digest},
                description=card.render(),
                model_id=model.model_id,
            )
    except (UnavailableError, RefusedError) as error:
        logger.warning("the student could not be registered (%s)", error)
        return ""
    return f"models:/{name}/{version.version}"


def _save_pyfunc(
    folder: Path,
    model_id: str,
    run_id: str,
    weights: bytes,
    example: NDArray[np.uint8],
    card: ModelCard,
    seed: int,
) -> None:
    """Writes the model to `folder/model`: our code as files, the weights as they are."""
    file = folder / "student.safetensors"
    file.write_bytes(weights)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    params = ParamSchema([ParamSpec("steps", "integer", card.steps), ParamSpec("seed", "integer", seed)])
    mlflow.pyfunc.save_model(
        folder / "model",
        loader_module=student_model.MODULE,
        data_path=str(file),
        code_paths=[str(Path(reddit_core.__file__).parent), student_model.__file__],
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        signature=ModelSignature(inputs=images, outputs=images, params=params),
        input_example=example,
        pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in MODEL_REQUIREMENTS],
    )
    (folder / "model" / "README.md").write_text(card.render())
