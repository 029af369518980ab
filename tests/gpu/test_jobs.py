"""Precompute and distill through Ray, with one GPU for each actor and worker; and distill with a compiled network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
)
from pipelines.pairs.ingest import ingest
from pipelines.training.distillation import distill
from pipelines.trajectories.precompute import precompute
from pipelines.weights import load_network, save_network
from reddit_core.networks import build, kind_of
from reddit_core.networks.film_unet import FilmUNetConfig
from reddit_core.networks.sr3_unet import UNetConfig
from reddit_core.precision import Precision
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

SEGMENT = SegmentConfig(crop=32, crops=4)
NETWORKS = (
    UNetConfig(base_channels=16, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4),
    FilmUNetConfig(channels=(16, 32), embedding_channels=32),
)
OPTIM = OptimConfig(steps=8, batch_size=4, warmup_steps=1, ema_decay=0.5)


@pytest.fixture(scope="module", params=NETWORKS, ids=kind_of)
def cache(
    ray_cluster: None, device: torch.device, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> PrecomputeConfig:
    """A cache that was made on the device, from pairs of random blocks, by a teacher of each kind of network."""
    root, rng = tmp_path_factory.mktemp("gpu"), np.random.default_rng(0)
    for side in ("low", "high"):
        (root / "our485" / side).mkdir(parents=True)
    for number in range(6):
        normal = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(normal).save(root / "our485" / "high" / f"{number}.png")
        Image.fromarray(normal // 8).save(root / "our485" / "low" / f"{number}.png")
    ingest(IngestConfig(source=str(root), output=str(root / "pairs"), validation_share=0))
    torch.manual_seed(0)
    network = build(request.param)
    brightness = 0.5 if network.config.takes_gain else None
    save_network(
        str(root / "teacher.safetensors"),
        NetworkFile(network=network, schedule=NoiseSchedule(), brightness=brightness, facts={"role": "teacher"}),
    )
    config = PrecomputeConfig(
        pairs=str(root / "pairs"),
        teacher=str(root / "teacher.safetensors"),
        output=str(root / "cache"),
        stages=(4,),
        segment=SEGMENT,
        records_per_shard=6,
        batch_size=3,
        compute=TrainingComputeConfig(threads=1, gpu="yes" if device.type == "cuda" else "no"),
    )
    precompute(config)
    return config


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*.arrow")}


def test_a_second_precompute_leaves_the_same_bytes(cache: PrecomputeConfig, tmp_path: Path) -> None:
    precompute(replace(cache, output=str(tmp_path)))
    assert len(contents(cache.output)) == 4
    assert contents(str(tmp_path)) == contents(cache.output)


def weights_of(url: str) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in load_network(url).network.state_dict().values()])


def distilled(cache: PrecomputeConfig, folder: Path, optim: OptimConfig) -> torch.Tensor:
    """The weights of a student after eight steps or so."""
    config = DistillConfig(
        cache=cache.output,
        teacher=cache.teacher,
        output=str(folder),
        stages=(4,),
        segment=SEGMENT,
        optim=optim,
        compute=TrainingComputeConfig(threads=1, gpu=cache.compute.gpu),
        checkpoint=CheckpointConfig(every=4, validate_every=0),
        tracking=StudentTrackingConfig(enabled=False),
    )
    distill(config)
    return weights_of(str(folder / "student-2.safetensors"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_distill_leaves_a_student_that_learned(cache: PrecomputeConfig, tmp_path: Path, precision: Precision) -> None:
    student = distilled(cache, tmp_path, replace(OPTIM, precision=precision))
    assert torch.isfinite(student).all()
    assert not torch.equal(student, weights_of(cache.teacher))


def test_a_compiled_network_takes_the_steps_of_one_that_is_not(cache: PrecomputeConfig, tmp_path: Path) -> None:
    """With two micro-batches, since gradients of a CUDA graph are gone when it runs again."""
    optim = replace(OPTIM, accumulate=2)
    compiled = distilled(cache, tmp_path / "compiled", replace(optim, compile=True))
    student, teacher = distilled(cache, tmp_path / "plain", optim), weights_of(cache.teacher)
    assert (compiled - student).abs().mean() < 0.02 * (student - teacher).abs().mean()
