"""Runs on the tracking server: found by their key, or created; never twice."""

import json
import uuid
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from pipelines.redaction import redact
from pipelines.tracking.handle import InputData, RunHandle, RunRequest, embedded_store
from pipelines.tracking.outbox import RejectedError

RUN_NAME_TAG, RUN_KEY_TAG, PARENT_TAG = "reddit.run_name", "reddit.run_key", "mlflow.parentRunId"
# A random ID of each attempt to create a run: MLflow's own retries may make a slow server create two.
ATTEMPT_TAG = "reddit.attempt"
DATASET_TAG = "mlflow.data.context"
# `reddit.key.NAME` of each input dataset: the key of a cache, for example, by which runs can be searched for.
INPUT_KEY_TAG = "reddit.key"
ITEMS_PER_BATCH = 100
DIGEST_LENGTH = 36  # MLflow's limit


def ensure_run(client: MlflowClient, handle: RunHandle, *, resume: bool = True) -> str:
    """The ID of the handle's run, which is created if it does not exist.

    An existing run is continued if `resume`: set to RUNNING, with the request's new params, tags and inputs added.

    Raises:
        RejectedError: if the experiment was deleted.
        MlflowException: whatever the server answers; see `translated_errors`.
    """
    if handle.run_id or handle.request is None:
        return handle.run_id
    request = handle.request
    experiment_id = _ensure_experiment(client, handle.uri, request.experiment)
    if found := _find_runs(client, experiment_id, request):
        elected = _elect_run(client, found)
        return _continue_run(client, elected, request) if resume else str(elected.info.run_id)
    tags = {**_make_tags(request), RUN_NAME_TAG: redact(request.name), RUN_KEY_TAG: request.key}
    attempt = tags[ATTEMPT_TAG] = uuid.uuid4().hex
    if request.parent is not None and (parent_id := ensure_run(client, request.parent)):
        tags[PARENT_TAG] = parent_id
    shown_name = "/".join(redact(request.name).rstrip("/").split("/")[-2:])
    client.create_run(experiment_id, tags=tags, run_name=shown_name)
    elected = _elect_run(client, _find_runs(client, experiment_id, request), attempt)
    if elected.data.tags.get(ATTEMPT_TAG) != attempt:  # another process created the run at the same moment
        return _continue_run(client, elected, request)
    run_id: str = elected.info.run_id
    _log_params(client, run_id, request.params)
    _log_inputs(client, run_id, request.inputs)
    return run_id


def _find_runs(client: MlflowClient, experiment_id: str, request: RunRequest) -> Sequence[Run]:
    """The runs with the request's key, in an order that is the same for every process."""
    order = ["attributes.start_time", "attributes.run_id"]
    return client.search_runs(
        [experiment_id], f"tags.`{RUN_KEY_TAG}` = '{request.key}'", max_results=10, order_by=order
    )


def _elect_run(client: MlflowClient, runs: Sequence[Run], attempt: str = "") -> Run:
    """The first run of a key, which every process elects; deletes the duplicates of its own attempt and of this one."""
    elected, *others = runs
    for run in others:
        made_by = run.data.tags.get(ATTEMPT_TAG)
        if made_by and made_by in (attempt, elected.data.tags.get(ATTEMPT_TAG)):
            client.delete_run(run.info.run_id)
    return elected


def _continue_run(client: MlflowClient, run: Run, request: RunRequest) -> str:
    """Sets a run to RUNNING and adds what is new; a param whose value differs becomes a tag `changed.NAME`."""
    run_id: str = run.info.run_id
    client.update_run(run_id, status="RUNNING")
    known = run.data.params
    _log_params(client, run_id, {name: value for name, value in request.params.items() if name not in known})
    changed = {name: value for name, value in request.params.items() if known.get(name, value) != value}
    tags = {**_make_tags(request), **{f"changed.{name}": value for name, value in changed.items()}}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()][:ITEMS_PER_BATCH])
    seen = {(entry.dataset.name, entry.dataset.digest) for entry in (run.inputs.dataset_inputs if run.inputs else ())}
    _log_inputs(client, run_id, [data for data in request.inputs if (data.name, data.key[:DIGEST_LENGTH]) not in seen])
    return run_id


def _make_tags(request: RunRequest) -> dict[str, str]:
    return {**request.tags, **{f"{INPUT_KEY_TAG}.{data.name}": data.key for data in request.inputs}}


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    items = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(items), ITEMS_PER_BATCH):
        client.log_batch(run_id, params=items[start : start + ITEMS_PER_BATCH])


def _log_inputs(client: MlflowClient, run_id: str, inputs: Sequence[InputData]) -> None:
    if inputs:
        client.log_inputs(run_id, [_make_dataset(data) for data in inputs])


def _make_dataset(data: InputData) -> DatasetInput:
    source = json.dumps({"url": redact(data.url)})
    dataset = Dataset(name=data.name, digest=data.key[:DIGEST_LENGTH], source_type="url", source=source)
    return DatasetInput(dataset, [InputTag(DATASET_TAG, data.name)])


def _ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server knows where artifacts go; the embedded store keeps them beside itself.
        store = embedded_store(uri)
        location = (store.parent / "mlartifacts" / name).as_uri() if store is not None else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was faster; any other reason is raised again below
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise RejectedError(
            f"the MLflow experiment {name!r} was deleted; restore it there, or name another with --tracking.experiment"
        )
    return str(experiment.experiment_id)
