"""Configurations refuse what could never work, with the value, the rule and the remedy."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig, TuneConfig
from pipelines.config.parts import (
    CheckpointConfig,
    OptimConfig,
    SegmentConfig,
    StudentTrackingConfig,
    TrainingComputeConfig,
    check_stages,
)
from pipelines.config.teacher import TeacherConfig
from pipelines.config.use import EnhanceConfig, EvaluateConfig
from reddit_core.degrade import DegradeConfig
from reddit_core.losses import LossWeights
from reddit_core.networks.sr3_unet import UNetConfig


def ingest(**settings: Any) -> IngestConfig:
    return IngestConfig(**{"output": "o", "source": "s", **settings})


def teacher(**settings: Any) -> TeacherConfig:
    return TeacherConfig(**{"pairs": "p", "output": "o", **settings})


def precompute(**settings: Any) -> PrecomputeConfig:
    return PrecomputeConfig(**{"pairs": "p", "teacher": "t", "output": "o", **settings})


def distill(**settings: Any) -> DistillConfig:
    return DistillConfig(**{"cache": "c", "teacher": "t", "output": "o", **settings})


def enhance(**settings: Any) -> EnhanceConfig:
    return EnhanceConfig(**{"source": "s", "output": "o", "weights": "w", **settings})


def tune(**settings: Any) -> TuneConfig:
    return TuneConfig(**{"distill": distill(pairs="p"), "output": "o", **settings})


REFUSED: list[tuple[Callable[..., object], dict[str, object], str]] = [
    (ingest, {"source": ""}, "nothing to read: give --source URL, or --layout folders --low URL --normal URL"),
    (ingest, {"source": "", "layout": "folders", "low": "l"}, "nothing to read"),
    (ingest, {"layout": "folders"}, "nothing to read"),
    (ingest, {"source": "", "layout": "folders", "normal": "n"}, "nothing to read"),
    (ingest, {"low": "/l"}, "low is /l, but layout lolv1 has no use for it; use --layout folders"),
    (ingest, {"layout": "degrade", "normal": "/n"}, "normal is /n, but layout degrade has no use for it; use"),
    (ingest, {"layout": "table", "pattern": "(.)"}, r"pattern is \(.\), but layout table has no use for it; use"),
    (ingest, {"validation_share": 1.0}, r"validation_share is 1.0, but must be in \[0, 1\); 0.1 is usual"),
    (ingest, {"pairs_per_shard": 0}, "pairs_per_shard is 0, but must be at least 1"),
    (ingest, {"max_bad": 1.1}, r"max_bad is 1.1, but is a share and must be in \[0, 1\]"),
    (teacher, {"crop": 20}, "crop is 20, but must be a positive multiple of the network's 16"),
    (teacher, {"crop": 0}, "crop is 0, but must be a positive multiple"),
    (teacher, {"crops_per_image": 0}, "crops_per_image is 0, but must be at least 1"),
    (precompute, {"stages": ()}, "stages is empty, but needs at least one .*; use 16,8,4"),
    (precompute, {"batch_size": 0}, "batch_size is 0, but must be at least 1"),
    (precompute, {"records_per_shard": 0}, "records_per_shard is 0, but must be at least 1"),
    (distill, {"refine_weight": 1.5}, r"refine_weight is 1.5, but must be in \[0, 1\]; the paper's omega 0.2 is 0.8"),
    (distill, {"loss": LossWeights(perceptual=0.6)}, "loss.perceptual is 0.6, but no backbone is given; add --lpips"),
    (distill, {"progressive": True}, "progressive changes the teacher .*; add --trajectories online"),
    (distill, {"progressive": True, "trajectories": "stream", "pairs": "p"}, "actors that stream read ahead"),
    (distill, {"cache": ""}, "cache is empty, but trajectories are to come from one; add --cache URL, or --traj"),
    (distill, {"teacher_actors": 2}, "teacher_actors is 2, but trajectories cache use no teacher actors; add --traj"),
    (
        distill,
        {"trajectories": "online", "pairs": "p"},
        "cache is .*, but trajectories online read no cache; leave it out, or use --trajectories cache",
    ),
    (ingest, {"degrade_seed": 1}, "degrade_seed is 1, but layout lolv1 has no use for it; use --layout degrade"),
    (ingest, {"degrade": DegradeConfig(cast=0.2)}, "degrade.cast is 0.2, but layout lolv1 has no use for it"),
    (tune, {"search": "grid", "trials": 4}, "trials is 4, but a grid has as many trials as combinations; leave it out"),
    (tune, {"distill": distill(pairs="p", output="")}, "distill.output is empty, but is where best.toml distils to"),
    (distill, {"teacher_actors": 0}, "teacher_actors is 0, but must be at least 1"),
    (distill, {"trajectories": "stream"}, "trajectories stream run the teacher over the pairs; add --pairs URL"),
    (distill, {"trajectories": "online"}, "trajectories online run the teacher over the pairs; add --pairs URL"),
    (distill, {"stages": (8, 16)}, r"stages is \(8, 16\), but must fall without repeats, such as 16,8,4"),
    (enhance, {"overlap": 1024}, "overlap is 1024, but must be .* the tile's 1024"),
    (enhance, {"overlap": -1}, "overlap is -1, but must be"),
    (tune, {"trials": 0}, "trials is 0, but must be at least 1"),
    (tune, {"distill": distill()}, "trials are compared on the validation split; give --distill.pairs URL"),
    (
        tune,
        {"distill": distill(pairs="p", cache="", trajectories="stream")},
        "trajectories stream would give every trial",
    ),
    (TrainingComputeConfig, {"workers": 0}, "workers is 0, but must be at least 1"),
    (TrainingComputeConfig, {"cpus_per_worker": 0.0}, "cpus_per_worker is 0.0, but must be above 0"),
    (OptimConfig, {"steps": 0}, "steps is 0, but must be at least 1"),
    (OptimConfig, {"batch_size": 2, "accumulate": 3}, "batch_size is 2 and accumulate 3, .* raise batch_size or lower"),
    (OptimConfig, {"accumulate": 0}, "accumulate 0"),
    (OptimConfig, {"learning_rate": 0.0}, "learning_rate is 0.0, but must be above 0; 1e-4 is usual"),
    (OptimConfig, {"ema_decay": 1.0}, r"ema_decay is 1.0, but must be in \[0, 1\); 0.999 is usual"),
    (OptimConfig, {"grad_clip": 0.0}, "grad_clip is 0.0, but must be above 0; inf switches it off"),
    (CheckpointConfig, {"every": 0}, "every is 0, but must be at least 1 step"),
    (OptimConfig, {"max_nonfinite": -1}, "max_nonfinite is -1, but must not be negative; 10 is usual"),
    (CheckpointConfig, {"validate_every": -1}, r"validate_every is -1, but must be at least 0 \(off\)"),
    (CheckpointConfig, {"validation_images": 0}, "validation_images is 0, but must be at least 1"),
    (CheckpointConfig, {"validation_crop": 8}, "validation_crop is 8, but SSIM needs 11 pixels; 0 takes whole images"),
    (
        StudentTrackingConfig,
        {"model": "team/student"},
        "model is 'team/student', but a registered model's name has no /; leave it out",
    ),
    (CheckpointConfig, {"keep": 0}, "keep is 0, but at least 1 checkpoint must be kept"),
    (SegmentConfig, {"crop": 0}, "crop is 0, but must be at least 1"),
    (SegmentConfig, {"crops": 0}, "crops is 0, but must be at least 1"),
    (SegmentConfig, {"draws": 0}, "draws is 0, but must be at least 1"),
    (SegmentConfig, {"shared_t": 0}, "shared_t is 0, but must be at least 1"),
]


@pytest.mark.parametrize(("make", "settings", "message"), REFUSED)
def test_what_cannot_work_is_refused(make: Callable[..., object], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stages", [(3,), (16, 7), (0,), (-2,)])
def test_a_stage_is_an_even_number_of_steps(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"stages holds -?\d+, but a stage is its teacher's even number of steps; use"):
        check_stages(stages)


@pytest.mark.parametrize("stages", [(16, 16), (4, 8), (16, 8, 8)])
def test_stages_fall(stages: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="but must fall without repeats, such as 16,8,4"):
        check_stages(stages)


def test_what_works_is_accepted() -> None:
    assert ingest(source="", layout="folders", low="l", normal="n").layout == "folders"
    assert ingest(source="s", layout="folders", normal="n", pattern="(.)").low == ""
    assert teacher(network="sr3-unet", unet=UNetConfig(channel_mults=(1, 2)), crop=18).crop == 18
    assert distill(trajectories="online", cache="", pairs="p", progressive=True, stages=(4, 2)).stages == (4, 2)
    assert distill(loss=LossWeights(perceptual=0.6), lpips=("vgg.pth",)).loss.perceptual == 0.6
    assert OptimConfig(grad_clip=float("inf")).grad_clip == float("inf")


def test_urls_are_absolute_before_a_worker_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = distill(cache="caches/lol/", teacher="s3://bucket/teacher.safetensors", pairs="")
    assert config.cache == str(tmp_path / "caches" / "lol")
    assert config.teacher == "s3://bucket/teacher.safetensors" and config.pairs == ""


def test_configs_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        distill().refine_weight = 0.1  # type: ignore[misc]
    assert asdict(EvaluateConfig(pairs="p", output="o"))["seeds"] == (0,)
