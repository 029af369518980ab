"""Finished students as registered models, which `mlflow.pyfunc` loads without this project."""

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
from pipelines.tracking.mlflow_backend import student_model
from pipelines.tracking.mlflow_backend.client import connect, if_reached, patiently
from pipelines.tracking.mlflow_backend.runs import ensure_run
from pipelines.tracking.run import RunHandle

WEIGHTS_TAG = "reddit.weights_sha256"
# What the code inside a registered model imports.
MODEL_REQUIREMENTS = ("torch", "numpy", "safetensors", "jaxtyping")


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
    otherwise = "the student could not be registered; run the same command again to try once more"
    with if_reached(handle.uri, otherwise), tempfile.TemporaryDirectory(prefix="reddit-model-") as folder:
        client = connect(handle.uri)
        run_id = ensure_run(client, handle)
        for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
            if version.tags.get(WEIGHTS_TAG) == digest:
                return f"models:/{name}/{version.version}"
        model = _logged_model(client, run_id, digest)
        _save_pyfunc(Path(folder), model.model_id, run_id, weights, example, card, seed)
        with patiently():
            client.log_model_artifacts(model.model_id, str(Path(folder, "model")))
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        # By its location: "models:/ID" would be looked up on the process's default server, not on this one.
        location, tags = model.artifact_location, {WEIGHTS_TAG: digest}
        version = client.create_model_version(
            name, location, run_id, tags, description=card.render(), model_id=model.model_id
        )
        return f"models:/{name}/{version.version}"
    return ""


def _logged_model(client: MlflowClient, run_id: str, digest: str) -> LoggedModel:
    """The run's model of these weights; an attempt that failed half-way has left one already."""
    experiment_id = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        if model.tags.get(WEIGHTS_TAG) == digest:
            return model
    return client.create_logged_model(experiment_id, "student", run_id, tags={WEIGHTS_TAG: digest})


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
