"""What sweeps are tested on: tiny pairs, their cache, and an untrained teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, SegmentConfig, TrainingComputeConfig
from pipelines.pairs.ingest import ingest
from pipelines.trajectories.precompute import precompute
from pipelines.weights import save_network
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.weights import NetworkFile

SEGMENT = SegmentConfig(crop=16, crops=4)
ONE_THREAD = TrainingComputeConfig(threads=1)


@dataclass(frozen=True)
class Inputs:
    """What ingest and precompute left, and an untrained teacher."""

    root: Path

    def distillation(self, **changes: object) -> DistillConfig:
        config = DistillConfig(
            cache=str(self.root / "cache"),
            teacher=str(self.root / "teacher.safetensors"),
            pairs=str(self.root / "pairs"),
            output=str(self.root / "best"),
            stages=(4,),
            segment=SEGMENT,
            refine_weight=0.4,
            optim=OptimConfig(steps=6, batch_size=4, warmup_steps=1, ema_decay=0.5, learning_rate=1e-3),
            compute=ONE_THREAD,
            checkpoint=CheckpointConfig(every=2, validate_every=2, validation_images=1, validation_crop=32),
        )
        return replace(config, **changes)


@pytest.fixture(scope="module")
def inputs(
    ray_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
    photographs: Mapping[str, np.ndarray],
) -> Inputs:
    root = tmp_path_factory.mktemp("tune")
    rng = np.random.default_rng(0)
    for side in ("low", "high"):
        (root / "LOLv1" / "our485" / side).mkdir(parents=True)
    for number, photograph in enumerate(photographs.values()):
        normal = photograph[:48, :64]
        Image.fromarray(normal).save(root / "LOLv1" / "our485" / "high" / f"{number}.png")
        low = degrade(normal, DegradeConfig(), rng)
        Image.fromarray(low).save(root / "LOLv1" / "our485" / "low" / f"{number}.png")
    ingest(IngestConfig(source=str(root / "LOLv1"), output=str(root / "pairs"), validation_share=0.3))
    torch.manual_seed(0)
    unet = UNet(UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4))
    made = Inputs(root)
    config = made.distillation()
    save_network(config.teacher, NetworkFile(network=unet))
    precompute(
        PrecomputeConfig(
            pairs=config.pairs,
            teacher=config.teacher,
            output=config.cache,
            stages=(4,),
            segment=SEGMENT,
            batch_size=4,
            compute=ONE_THREAD,
        )
    )
    return made
