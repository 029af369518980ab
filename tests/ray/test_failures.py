"""Training through failures: workers and nodes that die, a cluster that shrinks and grows, storage that fails."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.config.parts import CheckpointConfig, OptimConfig, TrainingComputeConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.training import recovery, runs
from pipelines.training.teacher import train_teacher
from pipelines.weights import load_network
from tests.ray.processes import PATIENCE_S, ROOT, started, wait_until
from tests.ray.tiny import Tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A run that nothing disturbed."""
    config = tiny.training(
        tmp_path_factory.mktemp("failures") / "whole",
        optim=OptimConfig(steps=200, batch_size=4, warmup_steps=2, ema_decay=0.9),
        checkpoint=CheckpointConfig(every=20, validate_every=0),
    )
    train_teacher(config)
    return config


def weights_of(config: TeacherConfig) -> bytes:
    return Path(config.output, "teacher.safetensors").read_bytes()


def in_background(config: TeacherConfig) -> threading.Thread:
    """The run, once it has left its first checkpoint."""
    job = threading.Thread(target=train_teacher, args=(config,))
    job.start()
    wait_until(Path(config.output, "checkpoints", "step-000000020").exists, job.is_alive)
    return job


def test_a_killed_worker_is_replaced_and_the_weights_are_the_same_bit_for_bit(
    whole: TeacherConfig, tmp_path: Path
) -> None:
    config = replace(whole, output=str(tmp_path / "run"))
    job = in_background(config)
    (worker,) = started("RayTrainWorker")
    worker.kill()
    assert not Path(config.output, "teacher.safetensors").exists()
    job.join(PATIENCE_S)
    assert weights_of(config) == weights_of(whole)


def test_a_rate_that_blows_up_stops_the_run_at_its_last_good_checkpoint(whole: TeacherConfig, tmp_path: Path) -> None:
    optim = replace(whole.optim, steps=20, learning_rate=1e30, max_nonfinite=2)
    checkpoint = replace(whole.checkpoint, every=1)
    config = replace(whole, output=str(tmp_path / "run"), optim=optim, checkpoint=checkpoint)
    kept = []
    for _ in range(2):  # run again, it ends there again, and takes nothing away
        with pytest.raises(ValueError, match=r"training stopped at step (\d+) after too many non-finite") as stopped:
            train_teacher(config)
        last_skipped = int(re.findall(r"at step (\d+)", str(stopped.value))[0])
        kept.append(sorted(path.name for path in Path(config.output, "checkpoints").glob("step-*")))
        assert kept[-1] and kept[-1][-1] < f"step-{last_skipped - 2:09d}", (
            "it holds weights after which nothing is finite"
        )
    assert kept[0] == kept[1]


def test_a_run_resumes_from_the_newest_checkpoint_that_is_whole(whole: TeacherConfig, tmp_path: Path) -> None:
    config = replace(whole, output=str(tmp_path / "run"), compute=TrainingComputeConfig(threads=1, max_failures=0))
    checkpoints = Path(config.output, "checkpoints")
    in_the_way = checkpoints / "step-000000100"
    checkpoints.mkdir(parents=True)
    in_the_way.write_text("so that the run ends here")
    with pytest.raises(OSError, match="storage failed during training"):
        train_teacher(config)
    in_the_way.unlink()
    newest = checkpoints / "step-000000080" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    snapshot = checkpoints / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot.read_text()[:100])
    recovery.drop_damaged(str(checkpoints))
    assert runs.latest_step(config.output) == 60
    train_teacher(config)
    assert weights_of(config) == weights_of(whole)


def test_storage_that_fails_in_mid_run_is_one_error_and_the_run_resumes_when_it_is_fixed(
    whole: TeacherConfig, tmp_path: Path
) -> None:
    config = replace(whole, output=str(tmp_path / "run"), compute=TrainingComputeConfig(threads=1, max_failures=0))
    in_the_way = Path(config.output, "checkpoints", "step-000000100")
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the checkpoint's folder should be")
    with pytest.raises(OSError, match=r"storage failed during training .*run the same command again"):
        train_teacher(config)
    assert (in_the_way.parent / "step-000000080").is_dir()
    in_the_way.unlink()
    train_teacher(config)
    assert weights_of(config) == weights_of(whole)


def test_a_store_that_only_fsspec_knows_holds_a_run(whole: TeacherConfig, tmp_path: Path) -> None:
    config = replace(whole, output=f"local://{tmp_path}/run", optim=replace(whole.optim, steps=40))
    train_teacher(config)
    assert runs.latest_step(config.output) == 40
    assert (tmp_path / "run" / "checkpoints" / "step-000000040" / "state.safetensors").exists()


@pytest.mark.parametrize("kind", ["fixed", "elastic"])
def test_a_killed_node(whole: TeacherConfig, tmp_path: Path, kind: str) -> None:
    """Another node takes over; an elastic run goes on with the workers that are left, and takes a new node in."""
    output = str(tmp_path / "run")
    arguments = [sys.executable, "-m", "tests.ray.train_without_a_node", whole.pairs, output, kind]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "killed" in result.stdout
    if kind == "fixed":
        assert weights_of(replace(whole, output=output)) == weights_of(whole)
        return
    sizes = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("workers ")]
    assert sizes == [2, 1, 2]
    assert all(
        torch.isfinite(value).all()
        for value in load_network(f"{output}/teacher.safetensors").network.state_dict().values()
    )
