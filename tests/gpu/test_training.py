"""Training on the GPU: a bf16 step, records that do not change, and checkpoints that go from CPU to GPU and back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.train import Checkpoint

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, StudentTrackingConfig, TrainingComputeConfig
from pipelines.shards import TARGET_COLUMNS
from pipelines.tracking.handle import OFF
from pipelines.training import checkpoints
from pipelines.training.checkpoints import TrainState
from pipelines.training.distillation import DistillObjective
from pipelines.training.loop import Loop, Worker
from pipelines.trajectories.crops import Batch
from pipelines.trajectories.teachers import teacher_targets
from pipelines.weights import save_network
from reddit_core.networks import build
from reddit_core.networks.film_unet import FilmUNetConfig
from reddit_core.networks.sr3_unet import UNet
from reddit_core.precision import Precision
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

BATCH_SIZE, SIDE = 4, 32
CPU = torch.device("cpu")


@pytest.fixture(params=["sr3-unet", "film-unet"])
def loop(tiny_unet: UNet, tmp_path: Path, request: pytest.FixtureRequest) -> Loop:
    """Steps of a tiny student of each kind of network."""
    teacher, film = str(tmp_path / "teacher.safetensors"), request.param == "film-unet"
    network = build(FilmUNetConfig(channels=(16, 32), embedding_channels=32)) if film else tiny_unet
    brightness = 0.5 if film else None
    file = NetworkFile(network=network, schedule=NoiseSchedule(), brightness=brightness, facts={"role": "teacher"})
    save_network(teacher, file)
    optim = OptimConfig(steps=100, batch_size=BATCH_SIZE, warmup_steps=0, learning_rate=1e-3, precision="bf16")
    config = DistillConfig(
        cache=".", teacher=teacher, output=".", stages=(4,), optim=optim, tracking=StudentTrackingConfig(enabled=False)
    )
    return Loop(
        objective=DistillObjective(config, None, ""),
        optim=optim,
        checkpoint=CheckpointConfig(),
        compute=TrainingComputeConfig(),
        run=OFF,
    )


def records(*, targets: bool) -> Batch:
    """Records of random images, with or without the teacher's targets; the same at every call."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (BATCH_SIZE, SIDE, SIDE, 3), dtype=np.uint8)
    names = ("eps", *TARGET_COLUMNS) if targets else ("eps",)
    floats = {name: rng.standard_normal((BATCH_SIZE, 3, SIDE, SIDE)).astype(np.float32) for name in names}
    levels = np.sort(rng.uniform(0.1, 0.99, (BATCH_SIZE, 3)))
    seeds, gain = np.arange(BATCH_SIZE, dtype=np.uint64), np.full(BATCH_SIZE, 8, np.float32)
    return {"low": image // 8, "normal": image, **floats, "levels": levels, "seed": seeds, "gain": gain}


def train(worker: Worker, steps: int) -> None:
    for _ in range(steps):
        positions = worker.state.step * BATCH_SIZE + np.arange(BATCH_SIZE)
        worker.step({**records(targets=True), "position": positions})


def begin(loop: Loop, device: torch.device) -> Worker:
    worker = Worker(loop, 0, 1, device, None)
    worker.begin_stage(0)
    return worker


def test_bf16_steps_learn_and_leave_float32_weights(loop: Loop, device: torch.device) -> None:
    worker = begin(loop, device)
    train(worker, 1)
    first = float(worker.meter.terms["distill"])
    train(worker, 30)
    assert worker.state.skipped == 0
    assert float(worker.meter.terms["distill"]) < 0.95 * first
    kinds = {(value.dtype, value.device.type) for value in worker.state.network.parameters()}
    assert kinds == {(torch.float32, device.type)}


def test_the_teacher_online_learns_too(loop: Loop, device: torch.device) -> None:
    assert isinstance(loop.objective, DistillObjective)
    config = replace(loop.objective.config, trajectories="online", cache="", pairs=".")
    worker = begin(replace(loop, objective=DistillObjective(config, None, "")), device)
    before = {name: value.clone() for name, value in worker.state.network.state_dict().items()}
    worker.step({**records(targets=False), "position": np.arange(BATCH_SIZE)})
    assert worker.state.skipped == 0
    assert any(not torch.equal(value, before[name]) for name, value in worker.state.network.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_records_of_one_device_are_the_same_bit_for_bit(loop: Loop, device: torch.device, precision: Precision) -> None:
    network = begin(loop, device).state.network.eval()
    first, again = (teacher_targets(network, records(targets=False), precision) for _ in range(2))
    assert set(first) == set(TARGET_COLUMNS)
    assert all(torch.equal(first[name], again[name]) for name in TARGET_COLUMNS)


def same(state: TrainState, other: TrainState) -> bool:
    """Whether weights, average and optimizer agree bit for bit, on whichever devices they are."""
    pairs = [
        (state.network.state_dict(), other.network.state_dict()),
        (state.ema_network.state_dict(), other.ema_network.state_dict()),
    ]
    slots = zip(state.optimizer.state.values(), other.optimizer.state.values(), strict=True)
    return all(
        torch.equal(value.cpu(), theirs[name].cpu())
        for mine, theirs in [*pairs, *slots]
        for name, value in mine.items()
    )


def moved(worker: Worker, loop: Loop, device: torch.device) -> Worker:
    """A fresh worker on a device that goes on from a checkpoint of another's state."""
    saved = checkpoints.save(worker.state, loop.optim, {})
    other = begin(loop, device)
    checkpoints.restore(other.state, Checkpoint.from_directory(saved.folder), {})
    return other


def test_a_checkpoint_goes_from_cpu_to_gpu_and_back(loop: Loop, device: torch.device) -> None:
    first = begin(loop, CPU)
    train(first, 2)
    second = moved(first, loop, device)
    assert same(second.state, first.state) and second.state.step == 2
    assert next(second.state.network.parameters()).device.type == device.type
    train(second, 2)
    third = moved(second, loop, CPU)
    assert same(third.state, second.state) and third.state.step == 4
    train(third, 1)
    assert third.state.skipped == 0 and not same(third.state, second.state)


def test_a_run_resumes_from_its_checkpoint_as_if_nothing_had_happened(loop: Loop, device: torch.device) -> None:
    whole = begin(loop, device)
    train(whole, 3)
    resumed = moved(whole, loop, device)
    for worker in (whole, resumed):
        train(worker, 2)
    for mine, theirs in zip(whole.state.network.parameters(), resumed.state.network.parameters(), strict=True):
        # A step moves a weight by 1e-3; the order in which a GPU sums gradients shows far below that.
        assert (mine - theirs).abs().mean() < 1e-5
