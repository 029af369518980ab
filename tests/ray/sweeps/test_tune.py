"""Sweeps on tiny data through real Ray, tracked by a real MLflow server; with everything killed once."""

import gc
import json
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from jobs.cli import INTERRUPTED, Sources, parse
from jobs.distill import JOB
from pipelines import tracking
from pipelines.config.jobs import TuneConfig
from pipelines.config.parts import StudentTrackingConfig, TrainingComputeConfig
from pipelines.search import tune as search
from pipelines.search.sweep import Sweep
from pipelines.search.tune import plan_tune, tune
from pipelines.training import distillation
from pipelines.training.objective import StageContext, StepContext
from pipelines.weights import load_network
from reddit_core.networks.sr3_unet import UNet
from tests.ray.processes import JobProcess, started
from tests.ray.training import train_here

pytestmark = pytest.mark.xdist_group("mlflow")  # with the others that need the server
SPACE = ("refine_weight=uniform(0,1)", "optim.learning_rate=loguniform(1e-7,1e-2)")


def runs_by_name(uri: str, experiment: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    by_name = {run.data.tags["reddit.run_name"]: run for run in runs}
    assert len(by_name) == len(runs), "a run is there twice"
    return by_name


def test_a_sweep_leaves_trials_a_table_plots_and_the_best_configuration(inputs, mlflow_server) -> None:
    track = StudentTrackingConfig(uri=mlflow_server.uri, experiment="sweep", model="swept-student", licence="CC BY 4.0")
    output = inputs.root / "sweep"
    config = TuneConfig(
        distill=inputs.distillation(tracking=track),
        output=str(output),
        space=SPACE,
        trials=2,
        trial_steps=4,
        concurrent=2,
        asha=False,
    )
    assert plan_tune(config).facts["trials"] == 2
    report = tune(config)
    assert [row["outcome"] for row in report.rows] == ["finished"] * 2
    assert report.rows[0]["psnr"] >= report.rows[1]["psnr"]

    rows = json.loads((output / "report.json").read_text())["rows"]
    assert {row["step"] for row in rows} == {4}
    assert 0.4 in {row["refine_weight"] for row in rows}, "the distillation's own values are tried first"
    best = parse(JOB, Sources(config=str(output / "best.toml")), [])
    values = {key: rows[0][key] for key in ("refine_weight", "optim.learning_rate")}
    assert (best.refine_weight, best.optim.learning_rate) == tuple(values.values())
    assert best.optim.steps == 6, "the best configuration is of full length"
    plots = sorted(path.name for path in (output / "plots").iterdir())
    assert plots == ["learning_curves.png", "optim.learning_rate.png", "refine_weight.png"]
    assert all(min(Image.open(output / "plots" / name).size) > 100 for name in plots)

    runs = runs_by_name(mlflow_server.uri, "sweep")
    parent = runs.pop(str(output))
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/psnr"] == pytest.approx(rows[0]["psnr"])
    assert {entry.dataset.name for entry in parent.inputs.dataset_inputs} == {"pairs", "trajectories-4"}
    files = MlflowClient(mlflow_server.uri).list_artifacts(parent.info.run_id)
    assert {file.path for file in files} == {"best.toml", "plots", "trials.json"}
    assert set(runs) == {f"{output}/trials/{row['trial']}" for row in rows}
    for row in rows:
        check_trial(mlflow_server.uri, runs[f"{output}/trials/{row['trial']}"], parent.info.run_id, row)

    # As if its students were there already; that it trains them is shown by a test below.
    full = Sweep(config).full_config(values)
    stream = distillation.make_stream(full)
    train_here(distillation.make_loop(full, tracking.OFF, stream.teacher_sha256), stream)
    then = tune(replace(config, then_distill=True))
    assert then.rows == report.rows
    runs = runs_by_name(mlflow_server.uri, "sweep")
    run = runs[best.output]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"pairs", "trajectories-4"}
    (version,) = MlflowClient(mlflow_server.uri).search_model_versions("name = 'swept-student'")
    assert version.run_id == run.info.run_id
    assert all(fact in version.description for fact in ("layout lolv1", "licence of the data: CC BY 4.0"))

    # As if the server had been away when a trial ended: running the done sweep again tells it.
    client = MlflowClient(mlflow_server.uri)
    child = runs[f"{output}/trials/{rows[0]['trial']}"]
    client.update_run(child.info.run_id, status="RUNNING")
    again = tune(config)
    assert "already done" in again.title
    assert again.rows == report.rows
    assert client.get_run(child.info.run_id).info.status == "FINISHED"
    with pytest.raises(ValueError, match="trials is 2, asked for 5"):
        tune(replace(config, trials=5))


def check_trial(uri: str, child: Run, parent_id: str, row: Mapping[str, Any]) -> None:
    """What MLflow has of a trial that reached its end."""
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent_id
    assert child.data.tags["reddit.outcome"] == "finished"
    assert {entry.dataset.name for entry in child.inputs.dataset_inputs} == {"pairs", "trajectories-4"}
    assert child.data.params["refine_weight"] == str(row["refine_weight"])
    assert child.data.metrics["validation/psnr"] == pytest.approx(row["psnr"])
    assert {"validation/psnr_gt_mean", "train/loss", "train/grad_norm", "train/learning_rate"} <= set(
        child.data.metrics
    )
    images = MlflowClient(uri).list_artifacts(child.info.run_id, "images")
    assert any(Path(image.path).name.startswith("validation~4-to-2+step+4") for image in images)


def test_stopping_early_needs_the_state_api(inputs) -> None:
    """Ray Train takes a stopped trial's workers back only with it, and the cluster of these tests is without."""
    base = inputs.distillation(tracking=StudentTrackingConfig(enabled=False))
    with pytest.raises(ValueError, match=r"no dashboard.*--no-asha"):
        tune(TuneConfig(distill=base, output=str(inputs.root / "asha"), space=SPACE))


def test_no_trial_holds_or_runs_a_teacher(inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial keeps, and does with a batch from the cache: the student, which starts from its weights, is all."""
    config = inputs.distillation()
    loop = distillation.make_loop(config, tracking.OFF, "")
    gc.collect()
    before = [one for one in gc.get_objects() if isinstance(one, UNet)]
    stage_context = StageContext(stage_index=0, device=torch.device("cpu"))
    student = loop.objective.begin(stage_context)
    gc.collect()
    held = [one for one in gc.get_objects() if isinstance(one, UNet) and all(one is not old for old in before)]
    assert held == [student]
    assert isinstance(loop.objective, distillation.DistillObjective) and loop.objective.teacher is None

    evaluated: list[object] = []

    def watched(
        self: UNet, z: torch.Tensor, level: torch.Tensor, *, low: torch.Tensor, gain: torch.Tensor | None = None
    ) -> torch.Tensor:
        evaluated.append(self)
        return torch.zeros_like(z)

    monkeypatch.setattr(UNet, "forward", watched)
    for trajectories, networks in (("cache", 1), ("online", 3)):
        setting = replace(config, trajectories=trajectories, cache=config.cache if trajectories == "cache" else "")
        objective = distillation.make_loop(setting, tracking.OFF, "").objective
        student = objective.begin(stage_context)
        stage = distillation.make_stream(setting).stages[0]
        batch = stage.load(stage.order.records(0, 4))
        evaluated.clear()
        context = StepContext(
            **vars(stage_context), step=0, global_step=0, averaged=student, generator=torch.Generator()
        )
        terms = objective.terms(student, batch, context)
        assert torch.isfinite(terms["loss"]).all()
        assert (len(evaluated), evaluated.count(student)) == (networks, 1)


@pytest.mark.slow  # a third training; the first test has all but that its last one is made through Ray
def test_a_sweep_distils_its_best_configuration_at_full_length(inputs, mlflow_server) -> None:
    track = StudentTrackingConfig(uri=mlflow_server.uri, experiment="then-distil", model="")
    base = inputs.distillation(output=str(inputs.root / "full"), tracking=track)
    output = str(inputs.root / "then-distil")
    report = tune(
        TuneConfig(
            distill=base,
            output=output,
            space=SPACE,
            trials=1,
            trial_steps=2,
            concurrent=1,
            asha=False,
            then_distill=True,
        )
    )
    assert report.facts["then_distill"] == "Students"
    facts = load_network(f"{base.output}/student-2.safetensors").facts
    assert facts["config"]["optim"]["steps"] == 6
    runs = runs_by_name(mlflow_server.uri, "then-distil")
    run = runs[base.output]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", runs[output].info.run_id)
    assert run.data.metrics["validation/psnr"] == pytest.approx(facts["validation"]["psnr"])


@pytest.mark.slow
def test_trials_that_failed_resume_when_the_cause_is_fixed(inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_FAILURES", 0)
    # A cache of its own: worker processes of the other sweeps still hold the shards of theirs.
    cache = shutil.copytree(inputs.tiny.cache, inputs.root / "broken-cache")
    compute = TrainingComputeConfig(threads=1, max_failures=0)
    base = inputs.distillation(cache=str(cache), tracking=StudentTrackingConfig(enabled=False), compute=compute)
    output = inputs.root / "fixed"
    config = TuneConfig(distill=base, output=str(output), space=SPACE, trials=2, concurrent=1, asha=False)
    for shard in cache.rglob("*.arrow"):
        shard.rename(shard.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match=r"none of 2 trials reached step 6 .*fix the cause"):
            tune(config)
    finally:
        for shard in cache.rglob("*.away"):
            shard.rename(shard.with_suffix(".arrow"))
    failed = {path.name for path in (output / "trials").iterdir()}
    rows = tune(config).rows
    assert {row["trial"] for row in rows} == failed
    assert [row["outcome"] for row in rows] == ["finished"] * 2


def start_job(config: TuneConfig, log: Path, *more: str) -> JobProcess:
    """`jobs/tune.py` in a process of its own, with the flags of this config."""
    base = config.distill
    flags = f"""--output {config.output} --trials {config.trials} --concurrent {config.concurrent}
        --points {" ".join(config.points)}
        --distill.cache {base.cache} --distill.teacher {base.teacher} --distill.pairs {base.pairs}
        --distill.output {base.output} --distill.stages 4 --distill.segment.crop 16 --distill.segment.crops 3
        --distill.optim.steps {base.optim.steps} --distill.optim.batch-size 4 --distill.optim.warmup-steps 1
        --distill.optim.ema-decay 0.5 --distill.optim.learning-rate 1e-3 --distill.compute.threads 1
        --distill.checkpoint.every 2 --distill.checkpoint.validate-every 2 --distill.checkpoint.validation-images 1
        --distill.checkpoint.validation-crop 32
        --distill.tracking.uri {base.tracking.uri} --distill.tracking.experiment {base.tracking.experiment}
        {" ".join(more)} --space {" ".join(config.space)}"""
    return JobProcess("tune", flags, log)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_survives_its_worker_its_server_and_its_driver(inputs, mlflow_server) -> None:
    track = StudentTrackingConfig(uri=mlflow_server.uri, experiment="killed-sweep")
    optim = replace(inputs.distillation().optim, steps=40)
    output = inputs.root / "killed"
    config = TuneConfig(
        distill=inputs.distillation(tracking=track, optim=optim),
        output=str(output),
        space=SPACE,
        # One trial at a time, the third so bad that it is stopped: the fourth starts only if it gave its CPU back.
        points=("optim.learning_rate=2e-3", "optim.learning_rate=1e-7"),
        trials=4,
        concurrent=1,
        grace_steps=4,
    )
    log = inputs.root / "killed.log"
    grace = ("--grace-steps", str(config.grace_steps))
    process = start_job(config, log, *grace)
    process.wait_until(lambda: list(output.glob("trials/*/checkpoints/step-*")))
    workers = started("RayTrainWorker", below=process.pid)
    assert workers, "no training worker was found"
    workers[0].kill()
    mlflow_server.kill()
    process.wait_until(lambda: list(output.glob("trials/*/student-2.safetensors")))
    mlflow_server.start()
    process.kill_when(lambda: len(list(output.glob("trials/*/checkpoints/step-*/state.safetensors"))) >= 4)
    finished = {path: path.stat().st_mtime_ns for path in output.glob("trials/*/student-2.safetensors")}
    assert len(finished) in (1, 2)

    process = start_job(config, log, *grace)
    assert process.wait() == 0, process.printed[-3000:]
    assert finished == {path: path.stat().st_mtime_ns for path in finished}, "a finished trial was run again"
    rows = json.loads((output / "report.json").read_text())["rows"]
    assert len(rows) == 4
    outcomes = {row["optim.learning_rate"]: row["outcome"] for row in rows}
    assert outcomes[1e-3] == "finished"
    assert outcomes[1e-7] == "stopped"

    runs = runs_by_name(mlflow_server.uri, "killed-sweep")
    assert set(runs) == {str(output), *(f"{output}/trials/{row['trial']}" for row in rows)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = MlflowClient(mlflow_server.uri)
    for row in rows:
        if row["outcome"] == "finished":
            run = runs[f"{output}/trials/{row['trial']}"]
            history = client.get_metric_history(run.info.run_id, "validation/psnr")
            assert {point.step for point in history} == set(range(2, 41, 2))


@pytest.mark.slow
def test_a_sweep_that_was_interrupted_is_not_done_and_resumes(inputs) -> None:
    output = inputs.root / "interrupted"
    optim = replace(inputs.distillation().optim, steps=40)
    track = StudentTrackingConfig(uri=f"sqlite:///{inputs.root}/interrupted.db")
    base = inputs.distillation(tracking=track, optim=optim)
    points = ("optim.learning_rate=2e-3",)
    config = TuneConfig(
        distill=base, output=str(output), space=SPACE, points=points, trials=2, concurrent=1, asha=False
    )
    log = inputs.root / "interrupted.log"
    process = start_job(config, log, "--no-asha")
    process.wait_until(lambda: list(output.glob("trials/*/student-2.safetensors")))
    process.process.send_signal(signal.SIGINT)
    assert process.wait() == INTERRUPTED
    assert "error: interrupted; run the same command again to resume" in process.printed
    assert not (output / "best.toml").exists()
    process = start_job(config, log, "--no-asha")
    assert process.wait() == 0, process.printed[-3000:]
    rows = json.loads((output / "report.json").read_text())["rows"]
    assert [row["outcome"] for row in rows] == ["finished"] * 2
