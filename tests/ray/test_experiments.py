"""The paper's experiments end to end on tiny data: students of several seeds, judged together."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config.experiments import ExperimentConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig
from pipelines.experiments.experiment import evaluated_pairs, experiment, plan_experiment
from pipelines.shards import read_manifest, write_manifest
from tests.ray.tiny import Tiny

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tiny_cache: Tiny, tmp_path: Path) -> ExperimentConfig:
    """A distillation of two steps, on pairs that the test may change."""
    distill = tiny_cache.distillation(
        "",
        pairs=str(shutil.copytree(tiny_cache.pairs, tmp_path / "pairs")),
        stages=(2,),
        optim=OptimConfig(steps=2, batch_size=4, warmup_steps=1),
        checkpoint=CheckpointConfig(every=2, validate_every=0),
    )
    return ExperimentConfig(distill=distill, output=str(tmp_path / "experiment"), seeds=(0,), limit=1)


def test_what_cannot_be_used_is_refused_before_anything_is_distilled(config: ExperimentConfig) -> None:
    other = Path(config.output) / "students" / "unrefined-seed-0" / "config.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"refine_weight": 0.5}')
    for refused in (plan_experiment, experiment):
        with pytest.raises(ValueError, match=r"the run at .*unrefined-seed-0 does not match: .*refine_weight is 0\.5"):
            refused(config)
    other.unlink()
    manifest = read_manifest(config.distill.pairs, "pairs")
    only = tuple(entry for entry in manifest.shards if entry.split == "train")
    write_manifest(config.distill.pairs, replace(manifest, shards=only))
    for refused in (plan_experiment, experiment):
        with pytest.raises(ValueError, match="split validation holds no pairs"):
            refused(config)
    assert not weights_of(config)


def weights_of(config: ExperimentConfig) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("student-*.safetensors")}


def test_students_with_and_without_refinement_are_judged_beside_the_teacher(config: ExperimentConfig) -> None:
    assert len(plan_experiment(config).rows) == 2
    report = experiment(config)
    rows = {(row["method"], row["steps"]): row for row in report.rows}
    assert {("teacher", 2), ("teacher", 1), ("refined", 1), ("unrefined", 1), ("input", 0)} <= set(rows)
    assert rows["refined", 1]["psnr"] != rows["unrefined", 1]["psnr"]
    assert rows["refined", 1]["psnr_spread"] is None  # of one seed
    assert (Path(config.output) / "refinement" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_students_of_an_experiment_serve_the_next_and_seeds_are_averaged(config: ExperimentConfig) -> None:
    first = experiment(replace(config, seeds=(0, 1)))
    assert {row["method"]: row["psnr_spread"] for row in first.rows}["refined"] > 0
    students = weights_of(config)
    assert len(students) == 4
    assert experiment(replace(config, seeds=(0, 1))).rows == first.rows
    darkness = replace(config, experiment="darkness", stops=(2.0, 6.0), full_wells=(2000.0,))
    judged = experiment(darkness).rows
    darker = {row["pairs"]: row["psnr"] for row in judged if row["method"] == "input"}
    assert set(darker) == {"2-stops-2000-electrons", "6-stops-2000-electrons"}
    assert darker["6-stops-2000-electrons"] < darker["2-stops-2000-electrons"]
    assert weights_of(config) == students
    shown = {path.parent.name for path in Path(config.output).glob("*/report.json")}
    assert shown == {"refinement", "darkness"}  # neither takes the other's place


def test_the_photographs_of_darkness_follow_the_limit(config: ExperimentConfig) -> None:
    evaluated_pairs(replace(config, experiment="darkness", stops=(2.0,), full_wells=(2000.0,)))
    (more,) = evaluated_pairs(
        replace(config, experiment="darkness", stops=(2.0,), full_wells=(2000.0,), limit=2)
    ).values()
    assert read_manifest(more, "pairs").num_rows == 2
