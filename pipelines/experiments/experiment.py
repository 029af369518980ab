"""The paper's first three experiments, each from the cache to a report, made of the jobs' own functions.

What is there already is not made again: an experiment that was interrupted goes on when it is run again. Students lie
in OUTPUT/students and serve all three; what an experiment shows lies in OUTPUT/EXPERIMENT.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipelines import reporting, shards, storage
from pipelines.config.experiments import ExperimentConfig
from pipelines.config.jobs import DistillConfig, IngestConfig
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.experiments import curves
from pipelines.images import encode_png
from pipelines.pairs.dataset import decode_pair, split_shards
from pipelines.pairs.ingest import ingest
from pipelines.reporting import Report, Row
from pipelines.shards import shards_hash
from pipelines.training.distillation import distill, plan_distill, student_name
from reddit_core.trajectory import student_steps

PLOT = "plot.png"


@dataclass(frozen=True)
class Student:
    """A student that an experiment needs: how it is called in the report, and the run that makes it."""

    name: str
    teacher_steps: int
    run: DistillConfig

    @property
    def steps(self) -> int:
        return student_steps(self.teacher_steps)

    @property
    def method(self) -> str:
        """As `evaluate --weights` takes it."""
        return f"{self.name}:{self.steps}={storage.join(self.run.output, student_name(self.teacher_steps))}"


def students_of(config: ExperimentConfig) -> list[Student]:
    """With and without refinement, a run for each seed; the experiments on steps and darkness need only the former."""
    base = config.distill
    weights = {"refined": base.refine_weight}
    if config.experiment == "refinement":
        weights["unrefined"] = 0.0
    students = []
    for name, weight in weights.items():
        for seed in config.seeds:
            output = storage.join(config.output, "students", f"{name}-seed-{seed}")
            run = replace(base, output=output, refine_weight=weight, optim=replace(base.optim, seed=seed))
            students += [Student(f"{name}-seed-{seed}", stage, run) for stage in base.stages]
    return students


def methods_of(config: ExperimentConfig) -> tuple[str, ...]:
    """Every student, and the teacher at twice and at as many steps as each."""
    stages = config.distill.stages
    steps = sorted({*stages, *map(student_steps, stages)}, reverse=True)
    teachers = [f"teacher:{count}={config.distill.teacher}" for count in steps]
    return (*teachers, *(student.method for student in students_of(config)))


def runs_of(config: ExperimentConfig) -> list[DistillConfig]:
    """The distillations that make the students."""
    return list({student.run.output: student.run for student in students_of(config)}.values())


def check(config: ExperimentConfig) -> None:
    """Refuses, before anything is spent, a run that could not be made or gone on with, or nothing to judge on."""
    split_shards(shards.read_manifest(config.distill.pairs, "pairs"), "validation")
    for run in runs_of(config):
        plan_distill(run)


def experiment(config: ExperimentConfig) -> Report:
    """Distils the students that are missing and judges them all, on every darkness if that is the experiment.

    Leaves report.json and a plot in OUTPUT/EXPERIMENT, and below it, for each dataset, what `evaluate` writes.

    Raises:
        ValueError: if the cache, teacher and pairs cannot be used together, before anything is spent.
    """
    check(config)
    for run in runs_of(config):
        distill(run)
    rows: list[Row] = []
    for name, pairs in judged_pairs(config).items():
        judged = evaluate(
            EvaluateConfig(
                pairs=pairs,
                output=storage.join(config.folder, "reports", name),
                weights=methods_of(config),
                limit=config.limit,
                lpips=(config.distill.lpips,) if config.distill.lpips else (),
                precision=config.distill.optim.precision,
                compute=config.distill.compute,
                tracking=config.distill.tracking,
            )
        )
        rows += [{"pairs": name, **row} for row in judged.rows]
    table, plot = over_seeds(rows), storage.join(config.folder, PLOT)
    storage.write_bytes(plot, curves.draw(config, table))
    facts = {
        "seeds": list(config.seeds),
        "refine_weight": config.distill.refine_weight,
        "images, at most": config.limit or "all",
        "plot": plot,
    }
    report = Report(title=f"Experiment {config.experiment}", rows=table, facts=facts, url=config.folder)
    reporting.save(report)
    return report


def over_seeds(rows: list[Row]) -> list[Row]:
    """One row for each method: its mean over the seeds, and the raw PSNR's standard deviation, if several."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        name = str(row["method"]).partition("-seed-")[0]
        groups.setdefault((row["pairs"], name, row["steps"]), []).append(row)
    table: list[Row] = []
    for (pairs, name, steps), members in groups.items():
        figures = [key for key, value in members[0].items() if isinstance(value, float)]
        means = {key: float(np.mean([row[key] for row in members])) for key in figures}
        spread = float(np.std([row["psnr"] for row in members], ddof=1)) if len(members) > 1 else None
        table.append({"pairs": pairs, "method": name, "steps": steps, **means, "psnr_spread": spread})
    return table


def judged_pairs(config: ExperimentConfig) -> Mapping[str, str]:
    """The pair datasets that the methods are judged on, by name; those of darkness are made where they are missing."""
    if config.experiment != "darkness":
        return {"validation": config.distill.pairs}
    manifest = shards.read_manifest(config.distill.pairs, "pairs")
    key = shards.spec_key({"pairs": manifest.key, "shards": shards_hash(split_shards(manifest, "validation"))})
    folder = storage.join(config.folder, f"{key}-{config.limit or 'all'}-images")
    photographs, splits = write_normal_images(config, folder)
    datasets = {}
    for name, exposure in config.exposures().items():
        darkened = IngestConfig(
            layout="degrade",
            source=photographs,
            splits=splits,
            output=storage.join(folder, name),
            degrade=exposure,
            degrade_seed=config.degrade_seed,
        )
        ingest(darkened)
        datasets[name] = darkened.output
    return datasets


def write_normal_images(config: ExperimentConfig, folder: str) -> tuple[str, str]:
    """The validation split's first normal images as files of a folder, and the splits that `ingest` is to give them."""
    photographs, splits = (storage.join(folder, name) for name in ("photographs", "splits.csv"))
    if storage.exists(splits):  # it is written last
        return photographs, splits
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("pair_id", "split"))
    for index, normal in enumerate(islice(normal_images(config.distill.pairs), config.limit or None)):
        name = f"{index:04d}.png"
        storage.write_bytes(storage.join(photographs, name), encode_png(normal))
        writer.writerow((name, "validation"))
    storage.write_bytes(splits, table.getvalue().encode())
    return photographs, splits


def normal_images(pairs: str) -> Iterator[NDArray[np.uint8]]:
    """The validation split's normal images, in order."""
    for entry in split_shards(shards.read_manifest(pairs, "pairs"), "validation"):
        for row in shards.read_shard(pairs, entry).to_pylist():
            yield decode_pair(row)[1]


def plan_experiment(config: ExperimentConfig) -> Report:
    """What would be distilled and judged."""
    check(config)
    rows: list[Row] = [{"student": student.name, "steps": student.steps} for student in students_of(config)]
    facts: Row = {"judged on": "validation"}
    if config.experiment == "darkness":
        facts = {"judged on stops": list(config.stops), "and electrons": list(config.full_wells)}
    return Report(title=f"Plan of experiment {config.experiment}", rows=rows, facts=facts)
