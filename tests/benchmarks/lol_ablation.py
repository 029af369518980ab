"""What helps a student: refinement, reflectance, noise levels and prediction, at 8, 4, 2, 1 steps over several seeds.

    python tests/benchmarks/lol_ablation.py --pairs URL --teachers v=URL eps=URL --caches URL --output URL

Every student starts from its teacher, is taught by it, and takes the settings of `distill --preset lol-cpu`; any flag
of `distill` beside those below changes them. What is there already is not made again. The figures are those of the
validation split's centre crops, as the runs themselves measure them at the end of each stage. The students lie where
`jobs/experiments.py --output OUTPUT/NAME` looks for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import tyro

from jobs.cli import Sources, parse
from jobs.distill import JOB
from pipelines import reporting, storage
from pipelines.cluster import start_ray
from pipelines.config.jobs import DistillConfig, PrecomputeConfig
from pipelines.experiments.experiment import over_seeds
from pipelines.reporting import Report, Row
from pipelines.training.distillation import distill
from pipelines.trajectories.precompute import precompute
from reddit_core.retinex import ReflectanceConfig


@dataclass(frozen=True)
class Settings:
    """What is compared."""

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
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""


def variants(base: DistillConfig) -> dict[str, DistillConfig]:
    """The default, and what differs from it in one setting each."""
    return {
        "unrefined": base,
        "refined": replace(base, refine_weight=0.02),
        "released-reflectance": replace(base, refine_weight=0.02, reflectance=ReflectanceConfig(range="released")),
        "node-levels": replace(base, segment=replace(base.segment, levels="node")),
    }


def base_config(settings: Settings, name: str, teacher: str, flags: Sequence[str]) -> DistillConfig:
    places = {
        "pairs": settings.pairs,
        "teacher": teacher,
        "cache": storage.join(settings.caches, f"cache-{name}"),
        "output": settings.output,
    }
    words = [word for flag, url in places.items() for word in (f"--{flag}", url)]
    words += ["--stages", "16,8,4,2", "--compute.threads", "1", "--tracking.no-enabled"]
    return parse(JOB, Sources(preset="lol-cpu"), [*words, *flags])


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


def main(settings: Settings, flags: Sequence[str]) -> None:
    start_ray()
    rows: list[Row] = []
    for teacher in settings.teachers:
        name, _, url = teacher.partition("=")
        for variant, config in variants(base_config(settings, name, url, flags)).items():
            if settings.variants and variant not in settings.variants:
                continue
            compute_cache(config)
            for seed in settings.seeds:
                student = f"{variant}-seed-{seed}"
                output = storage.join(settings.output, name, "students", student)
                distilled = distill(replace(config, output=output, optim=replace(config.optim, seed=seed)))
                rows += [{"pairs": "validation", "method": f"{name}-{student}", **row} for row in distilled.rows]
            reporting.show(Report(title="Students so far", rows=over_seeds(rows)))
    facts = {"seeds": list(settings.seeds)}
    reporting.save(Report(title="What helps a student", rows=over_seeds(rows), facts=facts, url=settings.output))


if __name__ == "__main__":
    main(*tyro.cli(Settings, return_unknown_args=True))
