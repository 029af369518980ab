"""What helps a student: refinement, reflectance, noise levels and prediction, at 8, 4, 2, 1 steps over several seeds.

    python tests/benchmarks/lol_ablation.py --pairs URL --teachers v=URL eps=URL --caches URL --output URL [--steps 150]

Every student starts from its teacher and is taught by it. What is there already is not made again. The figures are
those of the validation split's centre crops, as the runs themselves measure them at the end of each stage. The
students lie where `jobs/experiments.py --output OUTPUT/NAME` looks for them.
"""

from dataclasses import dataclass, replace
from typing import Literal

import tyro

from pipelines import reporting, storage
from pipelines.cluster import start_ray
from pipelines.config.jobs import DistillConfig, PrecomputeConfig
from pipelines.config.parts import CheckpointConfig, ComputeConfig, OptimConfig, SegmentConfig, TrackingConfig
from pipelines.config.presets import CPU_PRECISION
from pipelines.evaluation.experiments import over_seeds
from pipelines.reporting import Report, Row
from pipelines.training.distillation import distill
from pipelines.trajectories.precompute import precompute
from reddit_core.retinex import ReflectanceConfig


@dataclass(frozen=True)
class Settings:
    """What is distilled and how long."""

    pairs: str
    """URL of the pair dataset."""
    teachers: tuple[str, ...]
    """NAME=URL of each teacher's weights."""
    caches: str
    """URL below which the trajectories of a teacher lie in cache-NAME, or are put."""
    output: str
    """URL of students and report.json."""
    variants: tuple[Literal["refined", "unrefined", "released-reflectance", "node-levels"], ...] = ()
    """Only these variants; empty takes all."""
    stages: tuple[int, ...] = (16, 8, 4, 2)
    """Teacher steps of each stage."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    steps: int = 150
    """Optimizer steps of each stage."""
    batch_size: int = 8
    """Samples of a step."""
    crop: int = 80
    """Side of the training crops in pixels."""
    crops: int = 8
    """Crops of each pair."""
    min_scale: float = 0.25
    """Smallest scale of the images that crops are cut from."""
    refine_weight: float = 0.02
    """w of the students that are refined."""
    validation_crop: int = 192
    """Side of the centre crops that students are judged on; 0 takes whole images."""
    validation_images: int = 19
    """How many images they are judged on."""
    threads: int = 1
    """Torch CPU threads."""


def variants(base: DistillConfig) -> dict[str, DistillConfig]:
    """The default, and what differs from it in one setting each."""
    return {
        "refined": base,
        "unrefined": replace(base, refine_weight=0.0),
        "released-reflectance": replace(base, reflectance=ReflectanceConfig(range="released")),
        "node-levels": replace(base, segment=replace(base.segment, levels="node")),
    }


def base_config(settings: Settings, name: str, teacher: str) -> DistillConfig:
    return DistillConfig(
        pairs=settings.pairs,
        teacher=teacher,
        cache=storage.join(settings.caches, f"cache-{name}"),
        output=settings.output,
        stages=settings.stages,
        refine_weight=settings.refine_weight,
        segment=SegmentConfig(crop=settings.crop, crops=settings.crops, min_scale=settings.min_scale),
        optim=OptimConfig(
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=2e-4,
            warmup_steps=20,
            ema_decay=0.98,
            precision=CPU_PRECISION,
        ),
        compute=ComputeConfig(threads=settings.threads),
        checkpoint=CheckpointConfig(
            every=settings.steps,
            validate_every=settings.steps,
            validation_images=settings.validation_images,
            validation_crop=settings.validation_crop,
        ),
        tracking=TrackingConfig(enabled=False),
    )


def compute_cache(config: DistillConfig) -> None:
    precompute(
        PrecomputeConfig(
            pairs=config.pairs,
            teacher=config.teacher,
            output=config.cache,
            stages=config.stages,
            segment=config.segment,
            precision=config.optim.precision,
            compute=config.compute,
        )
    )


def main(settings: Settings) -> None:
    start_ray()
    rows: list[Row] = []
    for teacher in settings.teachers:
        name, _, url = teacher.partition("=")
        for variant, config in variants(base_config(settings, name, url)).items():
            if settings.variants and variant not in settings.variants:
                continue
            compute_cache(config)
            for seed in settings.seeds:
                student = f"{variant}-seed-{seed}"
                output, optim = (
                    storage.join(settings.output, name, "students", student),
                    replace(config.optim, seed=seed),
                )
                distilled = distill(replace(config, output=output, optim=optim))
                rows += [{"pairs": "validation", "method": f"{name}-{student}", **row} for row in distilled.rows]
            reporting.show(Report(title="Students so far", rows=over_seeds(rows)))
    facts = {"seeds": list(settings.seeds)}
    reporting.save(Report(title="What helps a student", rows=over_seeds(rows), facts=facts, url=settings.output))


if __name__ == "__main__":
    main(tyro.cli(Settings))
