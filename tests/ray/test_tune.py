"""Sweeps on tiny data through real Ray, tracked by a real MLflow server; with everything killed once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from jobs.cli import Sources, parse
from jobs.distill import JOB
from pipelines import distillation, tracking
from pipelines.config import DistillConfig, IngestConfig, PrecomputeConfig, TuneConfig
from pipelines.config_parts import CheckpointConfig, ComputeConfig, OptimConfig, SegmentConfig, TrackingConfig
from pipelines.pairs import ingest
from pipelines.search import plan_tune, tune
from pipelines.trajectories import precompute
from pipelines.weights import load_unet, save_unet
from reddit_core.degrade import DegradeConfig, degrade
from reddit_core.unet import UNet, UNetConfig
from reddit_core.weights import UNetFile

ROOT = Path(__file__).parents[2]
SEGMENT = SegmentConfig(crop=16, crops=4)
ONE_THREAD = ComputeConfig(threads=1)
SPACE = ("refine_weight=uniform(0,1)", "optim.learning_rate=loguniform(1e-7,1e-2)")
JOB_TIMEOUT_S = 600


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
    save_unet(config.teacher, UNetFile(unet=unet))
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


def runs_by_name(uri: str, experiment: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    by_name = {run.data.tags["reddit.run_name"]: run for run in runs}
    assert len(by_name) == len(runs), "a run is there twice"
    return by_name


def test_a_sweep_leaves_trials_a_table_plots_and_the_best_configuration(inputs: Inputs, mlflow_server) -> None:
    track = TrackingConfig(uri=mlflow_server.uri, experiment="sweep", model="swept-student")
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
        child = runs[f"{output}/trials/{row['trial']}"]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["reddit.outcome"] == "finished"
        assert child.data.params["refine_weight"] == str(row["refine_weight"])
        assert child.data.metrics["validation/psnr"] == pytest.approx(row["psnr"])

    then = tune(replace(config, then_distill=True))
    assert then.rows == report.rows
    runs = runs_by_name(mlflow_server.uri, "sweep")
    run = runs[best.output]
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent.info.run_id)
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"pairs", "trajectories-4"}
    (version,) = MlflowClient(mlflow_server.uri).search_model_versions("name = 'swept-student'")
    assert version.run_id == run.info.run_id
    assert "layout lolv1" in version.description

    again = tune(config)
    assert "already done" in again.title
    assert again.rows == report.rows
    with pytest.raises(ValueError, match="trials is 2, asked for 5"):
        tune(replace(config, trials=5))


def test_stopping_early_needs_the_state_api(inputs: Inputs) -> None:
    """Ray Train takes a stopped trial's workers back only with it, and the cluster of these tests is without."""
    base = inputs.distillation(tracking=TrackingConfig(enabled=False))
    with pytest.raises(ValueError, match=r"no dashboard.*--no-asha"):
        tune(TuneConfig(distill=base, output=str(inputs.root / "asha"), space=SPACE))


def test_no_trial_runs_the_teacher(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial does with a batch from the cache, when its teacher would fail at every evaluation."""
    config = inputs.distillation()
    objective = distillation.make_loop(config, tracking.OFF).objective
    student = objective.begin(0, torch.device("cpu"))
    teacher = load_unet(config.teacher).unet

    def only_the_student(self: UNet, *_: object) -> torch.Tensor:
        assert self is student, "the teacher was evaluated"
        return torch.zeros_like(_[0])

    monkeypatch.setattr(UNet, "forward", only_the_student)
    with pytest.raises(AssertionError, match="the teacher was evaluated"):
        teacher(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), torch.ones(1))
    stage = distillation.make_stream(config).stages[0]
    batch = stage.load(stage.order.records(0, 4))
    terms = objective.terms(student, batch, torch.Generator(), torch.device("cpu"))
    assert torch.isfinite(terms["loss"]).all()


def start_job(config: TuneConfig, log: Path) -> subprocess.Popen[bytes]:
    """`jobs/tune.py` in a process of its own, with the flags of this config."""
    base = config.distill
    flags = f"""--output {config.output} --trials {config.trials} --concurrent {config.concurrent}
        --grace-steps {config.grace_steps} --points {" ".join(config.points)}
        --distill.cache {base.cache} --distill.teacher {base.teacher} --distill.pairs {base.pairs}
        --distill.output {base.output} --distill.stages 4 --distill.segment.crop 16 --distill.segment.crops 4
        --distill.optim.steps {base.optim.steps} --distill.optim.batch-size 4 --distill.optim.warmup-steps 1
        --distill.optim.ema-decay 0.5 --distill.optim.learning-rate 1e-3 --distill.compute.threads 1
        --distill.checkpoint.every 2 --distill.checkpoint.validate-every 2 --distill.checkpoint.validation-images 1
        --distill.checkpoint.validation-crop 32
        --distill.tracking.uri {base.tracking.uri} --distill.tracking.experiment {base.tracking.experiment}"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "tune.py"), *flags.split(), "--space", *config.space],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_survives_its_worker_its_server_and_its_driver(inputs: Inputs, mlflow_server) -> None:
    track = TrackingConfig(uri=mlflow_server.uri, experiment="killed-sweep")
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
    process = start_job(config, log)
    wait_until(lambda: list(output.glob("trials/*/checkpoints/step-*")), process, log)
    workers = [one for one in psutil.Process(process.pid).children(recursive=True) if is_worker(one)]
    assert workers, "no training worker was found"
    workers[0].kill()
    mlflow_server.kill()
    wait_until(lambda: list(output.glob("trials/*/student-2.safetensors")), process, log)
    mlflow_server.start()
    wait_until(lambda: len(list(output.glob("trials/*/checkpoints/step-*/state.safetensors"))) >= 4, process, log)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("trials/*/student-2.safetensors")}
    assert len(finished) in (1, 2)

    process = start_job(config, log)
    wait_until(lambda: process.poll() is not None or (output / "best.toml").exists(), process, log)
    assert process.wait(JOB_TIMEOUT_S) == 0, log.read_text()[-3000:]
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


def is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
