"""Precompute and distill through Ray, with one GPU for each actor and worker."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig
from pipelines.config.parts import (
    CheckpointConfig,
    ComputeConfig,
    OptimConfig,
    Precision,
    SegmentConfig,
    TrackingConfig,
)
from pipelines.pairs.ingest import ingest
from pipelines.training.distillation import distill
from pipelines.trajectories.precompute import precompute
from pipelines.weights import load_unet, save_unet
from reddit_core.schedule import NoiseSchedule
from reddit_core.unet import UNet, UNetConfig
from reddit_core.weights import UNetFile

SEGMENT = SegmentConfig(crop=32, crops=4)


@pytest.fixture(scope="module")
def cache(ray_cluster: None, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> PrecomputeConfig:
    """A cache that was made on the device, from pairs of random blocks."""
    root, rng = tmp_path_factory.mktemp("gpu"), np.random.default_rng(0)
    for side in ("low", "high"):
        (root / "our485" / side).mkdir(parents=True)
    for number in range(6):
        normal = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(normal).save(root / "our485" / "high" / f"{number}.png")
        Image.fromarray(normal // 8).save(root / "our485" / "low" / f"{number}.png")
    ingest(IngestConfig(source=str(root), output=str(root / "pairs"), validation_share=0))
    torch.manual_seed(0)
    unet = UNet(UNetConfig(base_channels=16, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4))
    save_unet(
        str(root / "teacher.safetensors"), UNetFile(unet=unet, schedule=NoiseSchedule(), facts={"role": "teacher"})
    )
    config = PrecomputeConfig(
        pairs=str(root / "pairs"),
        teacher=str(root / "teacher.safetensors"),
        output=str(root / "cache"),
        stages=(4,),
        segment=SEGMENT,
        records_per_shard=6,
        batch_size=3,
        compute=ComputeConfig(threads=1, gpu="yes" if device.type == "cuda" else "no"),
    )
    precompute(config)
    return config


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.arrow")}


def test_a_second_precompute_leaves_the_same_bytes(cache: PrecomputeConfig, tmp_path: Path) -> None:
    precompute(replace(cache, output=str(tmp_path)))
    assert len(contents(cache.output)) == 4
    assert contents(str(tmp_path)) == contents(cache.output)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_distill_leaves_a_student_that_learned(cache: PrecomputeConfig, tmp_path: Path, precision: Precision) -> None:
    config = DistillConfig(
        cache=cache.output,
        teacher=cache.teacher,
        output=str(tmp_path),
        stages=(4,),
        segment=SEGMENT,
        optim=OptimConfig(steps=8, batch_size=4, warmup_steps=1, ema_decay=0.5, precision=precision),
        compute=cache.compute,
        checkpoint=CheckpointConfig(every=4, validate_every=0),
        tracking=TrackingConfig(enabled=False),
    )
    distill(config)
    student = load_unet(str(tmp_path / "student-2.safetensors")).unet.state_dict()
    teacher = load_unet(cache.teacher).unet.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in student.values())
    assert any(not torch.equal(value, teacher[name]) for name, value in student.items())
