"""The inputs of a distillation and its finished student, for MLflow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines import shards, storage, tracking
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig
from pipelines.model_card import ModelCard
from pipelines.redaction import redact
from pipelines.tracking import InputData, RunHandle
from pipelines.training.stream import Stream
from pipelines.training.validation import ValidationImages
from pipelines.weights import load_network

EXAMPLE_SIDE = 32


def input_datasets(config: DistillConfig, stream: Stream) -> Sequence[InputData]:
    """The pairs and the caches that a distillation reads; none when tracking is off, since manifests may be large."""
    inputs: list[InputData] = []
    if not config.tracking.enabled:
        return inputs
    if config.pairs:
        manifest = shards.read_manifest(config.pairs, "pairs")
        inputs.append(InputData("pairs", storage.join(config.pairs, shards.MANIFEST), manifest.key))
    if config.trajectories == "cache":
        for teacher_steps, records in zip(config.stages, stream.stages, strict=True):
            url = storage.join(records.source, shards.MANIFEST)
            inputs.append(InputData(f"trajectories-{teacher_steps}", url, records.key))
    return inputs


def register_student(run: RunHandle, config: DistillConfig, url: str) -> str:
    """Registers the student at `url` as a version of the model `tracking.model`.

    Returns:
        `models:/NAME/VERSION`; "" when tracking or registration is off, or the server is away.
    """
    if run.request is None or not config.tracking.model:
        return ""
    facts = load_network(url).facts
    card = ModelCard.from_facts(facts, facts["num_steps"])
    return tracking.register_student(run, config.tracking.model, storage.read_bytes(url), example_image(config), card)


def describe_pairs(url: str) -> str:
    """The size, key, source and layout of a pair dataset in words, without credentials."""
    manifest = shards.read_manifest(url, "pairs")
    source = manifest.spec.get("source") or f"{manifest.spec.get('low')} and {manifest.spec.get('normal')}"
    return redact(f"{manifest.num_rows} pairs (key {manifest.key}) of {source}, layout {manifest.spec.get('layout')}")


def example_image(config: DistillConfig) -> NDArray[np.uint8]:
    """A low-light crop of the validation split, uint8 [1, 32, 32, 3]; black if there is no such split."""
    look = CheckpointConfig(validation_images=1, validation_crop=EXAMPLE_SIDE)
    validation = ValidationImages(config.pairs, look)
    if not config.pairs or not validation.has_images:
        return np.zeros((1, EXAMPLE_SIDE, EXAMPLE_SIDE, 3), np.uint8)
    low = validation.images[0].low
    return low[None]
