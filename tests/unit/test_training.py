"""The worker loop by itself: sharing a batch out, and skipping what is not finite."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.train import Checkpoint

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, ComputeConfig, OptimConfig, TrackingConfig
from pipelines.delivery.run_handle import OFF
from pipelines.training import checkpoints
from pipelines.training.checkpoints import TrainState
from pipelines.training.distillation import DistillObjective
from pipelines.training.loop import Batch, Loop, Worker, check_workers
from pipelines.training.stream import PADDING, positions_of, share_of
from pipelines.weights import save_unet
from reddit_core.schedule import NoiseSchedule
from reddit_core.unet import UNet, UNetConfig, use_channels_last
from reddit_core.weights import UNetFile

BATCH_SIZE = 8
CPU = torch.device("cpu")


@pytest.fixture
def loop(tiny_unet: UNet, tmp_path: Path) -> Loop:
    teacher = str(tmp_path / "teacher.safetensors")
    save_unet(teacher, UNetFile(unet=tiny_unet, schedule=NoiseSchedule(), facts={"role": "teacher"}))
    return make_loop(teacher, accumulate=1)


def make_loop(teacher: str, accumulate: int) -> Loop:
    optim = OptimConfig(steps=4, batch_size=BATCH_SIZE, accumulate=accumulate, warmup_steps=0)
    config = DistillConfig(
        cache=".", teacher=teacher, output=".", stages=(4,), optim=optim, tracking=TrackingConfig(enabled=False)
    )
    return Loop(
        objective=DistillObjective(config, None),
        optim=optim,
        checkpoint=CheckpointConfig(),
        compute=ComputeConfig(),
        run=OFF,
    )


def records(positions: np.ndarray) -> Batch:
    """Cached records of 16 x 16 pixels, each a pure function of its position."""

    def draw(position: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(max(position, 0))
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        names = ("eps", "x_u", "x_target_0")
        floats = {name: rng.standard_normal((3, 16, 16)).astype(np.float32) for name in names}
        return {"low": image // 8, "normal": image, **floats, "levels": np.array([0.3, 0.6, 0.8])}

    drawn = [draw(int(position)) for position in positions]
    return {**{name: np.stack([row[name] for row in drawn]) for name in drawn[0]}, "position": positions}


def gradients(loop: Loop, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    worker = Worker(loop, rank, world_size, CPU, None)
    worker.begin_stage(0)
    share = share_of(BATCH_SIZE, loop.optim.accumulate, world_size)
    worker.accumulate_gradients(records(positions_of(BATCH_SIZE, share, 0, rank)), torch.Generator())
    return {
        name: parameter.grad for name, parameter in worker.state.unet.named_parameters() if parameter.grad is not None
    }


def gradients_of_a_worker(rank: int, world_size: int, teacher: str, accumulate: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.save(gradients(make_loop(teacher, accumulate), rank, world_size), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 2)])  # 3 do not divide the batch
def test_workers_that_share_a_batch_have_the_gradients_of_one(
    loop: Loop, tmp_path: Path, world_size: int, accumulate: int
) -> None:
    alone = gradients(loop, 0, 1)
    scale = max(float(value.abs().max()) for value in alone.values())
    arguments = (world_size, loop.objective.config.teacher, accumulate, str(tmp_path))  # type: ignore[attr-defined]
    mp.spawn(gradients_of_a_worker, arguments, nprocs=world_size)
    for rank in range(world_size):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_position_of_a_batch_is_dealt_once(num_workers: int, accumulate: int) -> None:
    share = share_of(BATCH_SIZE, accumulate, num_workers)
    assert share % accumulate == 0
    dealt = np.concatenate([positions_of(BATCH_SIZE, share, 3, rank) for rank in range(num_workers)])
    assert dealt[dealt != PADDING].tolist() == list(range(3 * BATCH_SIZE, 4 * BATCH_SIZE))


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 4, but must be at least workers x accumulate = 8"):
        check_workers(OptimConfig(batch_size=4), ComputeConfig(workers=(1, 8)))


def spoil(batch: Batch, name: str) -> Batch:
    values = batch[name].copy()
    values[0, 0, 0, 0] = np.nan
    return {**batch, name: values}


def changed(state: TrainState, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in state.unet.state_dict().items())


@pytest.mark.parametrize("name", ["eps", "x_u", "x_target_0"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(loop: Loop, name: str) -> None:
    worker = Worker(loop, 0, 1, CPU, None)
    worker.begin_stage(0)
    good = records(np.arange(BATCH_SIZE))
    before = {name: value.clone() for name, value in worker.state.unet.state_dict().items()}
    worker.step(spoil(good, name))
    assert (worker.state.skipped, worker.state.step) == (1, 1)
    assert not changed(worker.state, before)
    assert int(worker.state.ema.n_averaged) == 0
    worker.step({**good, "position": good["position"] + BATCH_SIZE})
    assert worker.state.skipped == 1
    assert changed(worker.state, before)


def test_a_fused_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_happened(loop: Loop) -> None:
    """On a GPU the optimizer is fused; its kernel takes moments of another memory layout without a word."""

    def begin() -> Worker:
        worker = Worker(loop, 0, 1, CPU, None)
        worker.begin_stage(0)
        use_channels_last(worker.state.unet, bf16=True)  # the layout of a GPU
        worker.state.optimizer = torch.optim.AdamW(worker.state.unet.parameters(), fused=True)
        return worker

    whole, resumed = begin(), begin()
    batches = [records(step * BATCH_SIZE + np.arange(BATCH_SIZE)) for step in range(3)]
    whole.step(batches[0])
    checkpoints.restore(resumed.state, Checkpoint.from_directory(checkpoints.save(whole.state, loop.optim).folder))
    for batch in batches[1:]:
        whole.step(batch)
        resumed.step(batch)
    assert not changed(resumed.state, whole.state.unet.state_dict())


def test_a_student_has_no_dropout_whatever_its_teacher_had(tmp_path: Path) -> None:
    config = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4, dropout=0.5)
    teacher = UNetFile(unet=UNet(config), schedule=NoiseSchedule(), facts={})
    url = str(tmp_path / "teacher.safetensors")
    save_unet(url, teacher)
    objective = DistillObjective(DistillConfig(cache="c", teacher=url, output="o"), None)
    student = objective.begin(0, torch.device("cpu")).train()
    z, level = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    torch.testing.assert_close(student(z, z, level), teacher.unet.eval()(z, z, level))
    assert student.config == replace(config, dropout=0.0)
