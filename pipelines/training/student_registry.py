"""A distillation's inputs and its finished student, as MLflow knows them."""

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
from pipelines.weights import load_unet

EXAMPLE_SIDE = 32


def inputs_of(config: DistillConfig, stream: Stream) -> Sequence[InputData]:
    """The pairs and the caches that a tracked distillation reads, by manifest and key."""
    inputs: list[InputData] = []
    if not config.tracking.enabled:  # manifests may be large
        return inputs
    if config.pairs:
        manifest = shards.read_manifest(config.pairs, "pairs")
        inputs.append(InputData("pairs", storage.join(config.pairs, shards.MANIFEST), manifest.key))
    if config.trajectories == "cache":
        for stage, records in zip(config.stages, stream.stages, strict=True):
            url = storage.join(records.source, shards.MANIFEST)
            inputs.append(InputData(f"trajectories-{stage}", url, records.key))
    return inputs


def register(run: RunHandle, config: DistillConfig, url: str) -> str:
    """Makes the student at `url` a version of the registered model `tracking.model`.

    Returns:
        its `models:/NAME/VERSION`; "" when tracking or registration is off, or the server is away.
    """
    if run.request is None or not config.tracking.model:
        return ""
    facts = load_unet(url).facts
    card = ModelCard.from_facts(facts, facts["num_steps"])
    return tracking.register_student(run, config.tracking.model, storage.read_bytes(url), example_of(config), card)


def describe_pairs(url: str) -> str:
    """The pair dataset's source, size and key in words."""
    manifest = shards.read_manifest(url, "pairs")
    source = manifest.spec.get("source") or f"{manifest.spec.get('low')} and {manifest.spec.get('normal')}"
    return redact(f"{manifest.num_rows} pairs (key {manifest.key}) of {source}, layout {manifest.spec.get('layout')}")


def example_of(config: DistillConfig) -> NDArray[np.uint8]:
    """A small low-light image, uint8 [1, 32, 32, 3]: of the validation split, or black where there is none."""
    look = CheckpointConfig(validation_images=1, validation_crop=EXAMPLE_SIDE)
    validation = ValidationImages(config.pairs, look)
    if not config.pairs or not validation.has_images:
        return np.zeros((1, EXAMPLE_SIDE, EXAMPLE_SIDE, 3), np.uint8)
    low, _ = validation.images[0]
    return low[None]
