"""Students as registered models, which `mlflow.pyfunc` loads without this project."""

import hashlib
import tempfile
from importlib import metadata
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray

import reddit_core
from pipelines.model_card import ModelCard
from pipelines.tracking.handle import RunHandle
from pipelines.tracking.mlflow_backend import student_model
from pipelines.tracking.mlflow_backend.client import connect, log_if_undeliverable, upload_timeout
from pipelines.tracking.mlflow_backend.runs import ensure_run
from reddit_core.student import OVERLAP

WEIGHTS_TAG = "reddit.weights_sha256"
# The packages that the code inside a registered model imports.
MODEL_REQUIREMENTS = ("torch", "numpy", "safetensors", "jaxtyping")


def register_student(
    handle: RunHandle, name: str, weights: bytes, example: NDArray[np.uint8], card: ModelCard, seed: int = 0
) -> str:
    """Logs a student as a pyfunc model of the run and registers it; the same weights of a run only once.

    `mlflow.pyfunc.load_model(uri).predict(images)` enhances uint8 [N, H, W, 3]; its params are steps,
    seed, tile, overlap, brightness and contrast, as those of the enhance job.

    Args:
        handle: the student's run.
        name: of the registered model, which gets a new version.
        weights: safetensors of the student.
        example: input example, uint8 [N, H, W, 3]; keep it small.
        card: shown as the version's description, and as `README.md` of the model.
        seed: default seed of the sampler's noise.

    Returns:
        `models:/NAME/VERSION`, or "" when tracking is off or the server is away (which is logged).
    """
    if handle.request is None:
        return ""
    digest = hashlib.sha256(weights).hexdigest()
    message = "the student could not be registered; run the same command again to try once more"
    with log_if_undeliverable(handle.uri, message):
        client = connect(handle.uri)
        run_id = ensure_run(client, handle)
        version = _find_version(client, name, run_id, digest)
        if not version:
            model = _find_or_create_model(client, run_id, digest)
            _upload_model(client, model, run_id, weights, example, card, seed)
            version = _create_version(client, name, model, run_id, digest, card)
        return f"models:/{name}/{version}"
    return ""


def _find_version(client: MlflowClient, name: str, run_id: str, digest: str) -> str:
    """The version of the registered model that holds these weights of this run; "" if there is none."""
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if version.tags.get(WEIGHTS_TAG) == digest:
            return str(version.version)
    return ""


def _find_or_create_model(client: MlflowClient, run_id: str, digest: str) -> LoggedModel:
    """The run's logged model of these weights, which an interrupted attempt may have created already."""
    experiment_id = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if model.tags.get(WEIGHTS_TAG) == digest:
            return model
    return client.create_logged_model(experiment_id, "student", run_id, tags={WEIGHTS_TAG: digest})


def _upload_model(
    client: MlflowClient,
    model: LoggedModel,
    run_id: str,
    weights: bytes,
    example: NDArray[np.uint8],
    card: ModelCard,
    seed: int,
) -> None:
    """Uploads the pyfunc's files to the logged model and marks it READY, as an output of the run."""
    with tempfile.TemporaryDirectory(prefix="reddit-model-") as folder:
        mlflow_model = Model(run_id=run_id, model_id=model.model_id)
        files = _save_pyfunc(Path(folder), mlflow_model, weights, example, card, seed)
        with upload_timeout():
            client.log_model_artifacts(model.model_id, str(files))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _save_pyfunc(
    folder: Path, mlflow_model: Model, weights: bytes, example: NDArray[np.uint8], card: ModelCard, seed: int
) -> Path:
    """Writes the model to `folder/model`, our code as files and the weights unchanged; returns that path."""
    weights_file, model_folder = folder / "student.safetensors", folder / "model"
    weights_file.write_bytes(weights)
    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    defaults = {"steps": card.steps, "seed": seed, "tile": 0, "overlap": OVERLAP}
    whole = [ParamSpec(name, "integer", defaults[name]) for name in student_model.PARAMS]
    params = ParamSchema([*whole, *(ParamSpec(name, "double", 0.0) for name in student_model.TONE)])
    mlflow.pyfunc.save_model(
        model_folder,
        loader_module=student_model.MODULE,
        data_path=str(weights_file),
        code_paths=[str(Path(reddit_core.__file__).parent), student_model.__file__],
        mlflow_model=mlflow_model,
        signature=ModelSignature(inputs=images, outputs=images, params=params),
        input_example=example,
        pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in MODEL_REQUIREMENTS],
    )
    (model_folder / "README.md").write_text(card.render())
    return model_folder


def _create_version(
    client: MlflowClient, name: str, model: LoggedModel, run_id: str, digest: str, card: ModelCard
) -> str:
    """Makes a logged model a new version of the registered model, which is created if it does not exist."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    # By its location: "models:/ID" would be looked up on the process's default server, not on this one.
    location, tags = model.artifact_location, {WEIGHTS_TAG: digest}
    version = client.create_model_version(
        name, location, run_id, tags, description=card.render(), model_id=model.model_id
    )
    return str(version.version)
