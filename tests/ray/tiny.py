"""The tiny data that the tests on Ray share, and the settings that go with it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
)
from pipelines.config.teacher import TeacherConfig
from pipelines.pairs.ingest import ingest
from pipelines.weights import save_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
SEGMENT = SegmentConfig(crop=16, crops=3)
ONE_THREAD = TrainingComputeConfig(threads=1)
NOT_TRACKED = StudentTrackingConfig(enabled=False)
CHECKPOINT = CheckpointConfig(every=4, validate_every=0, validation_images=2, validation_crop=32)
NUM_TRAIN, NUM_VALIDATION = 6, 2


@dataclass(frozen=True)
class Tiny:
    """A folder `root` with pair shards, an untrained teacher, and (once made) the teacher's caches of stages 4 and 2.

    Several tests of a process read it. A test that changes something works on a copy.
    """

    root: Path

    @property
    def pairs(self) -> str:
        """Six training pairs in two shards and two validation pairs, each of 48 x 64 pixels."""
        return str(self.root / "pairs")

    @property
    def teacher(self) -> str:
        """The weights of a seeded network of 39 thousand parameters that predicts `v`."""
        return str(self.root / "teacher.safetensors")

    @property
    def cache(self) -> str:
        return str(self.root / "cache")

    def precompute(self, **changes: Any) -> PrecomputeConfig:
        """How the caches are made: 18 records a stage, in shards of 5, 4, 5 and 4."""
        config = PrecomputeConfig(
            pairs=self.pairs,
            teacher=self.teacher,
            output=self.cache,
            stages=(4, 2),
            segment=SEGMENT,
            records_per_shard=5,
            batch_size=2,
            compute=ONE_THREAD,
        )
        return replace(config, **changes)

    def training(self, output: Path, **changes: Any) -> TeacherConfig:
        """A teacher of twelve steps."""
        config = TeacherConfig(
            pairs=self.pairs,
            output=str(output),
            network="sr3-unet",
            unet=UNET,
            crop=16,
            crops_per_image=2,
            optim=OptimConfig(steps=12, batch_size=4, warmup_steps=2, ema_decay=0.9),
            compute=ONE_THREAD,
            checkpoint=CHECKPOINT,
            tracking=NOT_TRACKED,
        )
        return replace(config, **changes)

    def distillation(self, output: Path | str, **changes: Any) -> DistillConfig:
        """Two stages of six steps."""
        config = DistillConfig(
            cache=self.cache,
            teacher=self.teacher,
            pairs=self.pairs,
            output=str(output),
            stages=(4, 2),
            segment=SEGMENT,
            optim=OptimConfig(steps=6, batch_size=4, warmup_steps=1, ema_decay=0.9),
            compute=ONE_THREAD,
            checkpoint=replace(CHECKPOINT, every=3, validate_every=6),
            tracking=NOT_TRACKED,
        )
        return replace(config, **changes)


def make_tiny(root: Path, source: Path) -> Tiny:
    """Ingests a folder of eight pairs in LOLv1's layout, and saves a teacher."""
    tiny = Tiny(root)
    ingest(IngestConfig(source=str(source), output=tiny.pairs, validation_share=0.25, pairs_per_shard=3))
    save_teacher(tiny.teacher)
    return tiny


def save_teacher(url: str) -> None:
    """Saves the untrained teacher."""
    torch.manual_seed(0)
    save_network(url, NetworkFile(network=UNet(UNET), schedule=NoiseSchedule(), facts={"role": "teacher"}))
