"""The worker loop by itself: a step and its rate, sharing a batch out, skipping what is not finite, checkpoints."""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from torch.multiprocessing.spawn import spawn

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, StudentTrackingConfig, TrainingComputeConfig
from pipelines.tracking.buffer import BufferedWriter
from pipelines.tracking.handle import OFF
from pipelines.tracking.spill import File, Point
from pipelines.training import checkpoints, runs
from pipelines.training.distillation import DistillObjective, student_name
from pipelines.training.loop import Loop, Worker, check_workers, learning_rate
from pipelines.training.objective import StageContext
from pipelines.training.precision import in_precision
from pipelines.training.step_meter import StepMeter
from pipelines.training.stream import PADDING, rows_per_worker, worker_positions
from pipelines.training.validation import mean_metric
from pipelines.trajectories.crops import Batch
from pipelines.weights import load_network, save_network
from reddit_core.networks import Network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.precision import lay_out_for_inference
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

BATCH_SIZE = 8
CPU = torch.device("cpu")


@pytest.fixture
def loop(tiny_unet: UNet, tmp_path: Path) -> Loop:
    teacher = str(tmp_path / "teacher.safetensors")
    save_network(teacher, NetworkFile(network=tiny_unet, schedule=NoiseSchedule(), facts={"role": "teacher"}))
    return make_loop(teacher, accumulate=1)


def make_loop(teacher: str, accumulate: int) -> Loop:
    optim = OptimConfig(steps=4, batch_size=BATCH_SIZE, accumulate=accumulate, warmup_steps=0)
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


def records(positions: np.ndarray) -> Batch:
    """Cached records of 16 x 16 pixels, each a pure function of its position."""

    def draw(position: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(max(position, 0))
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        names = ("eps", "x_u", "x_target_0")
        floats = {name: rng.standard_normal((3, 16, 16)).astype(np.float32) for name in names}
        columns: dict[str, np.ndarray] = {
            "low": image // 8,
            "normal": image,
            "gain": np.array(8, np.float32),
            "levels": np.array([0.3, 0.6, 0.8]),
        }
        return {**columns, **floats}

    drawn = [draw(int(position)) for position in positions]
    return {**{name: np.stack([row[name] for row in drawn]) for name in drawn[0]}, "position": positions}


def gradients(loop: Loop, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    worker = Worker(loop, rank, world_size, CPU, None)
    worker.begin_stage(0)
    share = rows_per_worker(BATCH_SIZE, loop.optim.accumulate, world_size)
    batch, found = records(worker_positions(BATCH_SIZE, share, 0, rank)), []
    for _ in range(2):
        worker.accumulate_gradients(batch, worker.step_context())
        parameters = worker.state.network.named_parameters()
        found.append({name: value.grad.clone() for name, value in parameters if value.grad is not None})
        worker.state.optimizer.zero_grad(set_to_none=True)
    # Or a process that has just begun would not end with the same bits as one that went on.
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items()), "the order of sums has changed"
    return found[0]


def gradients_of_another(index: int, *arguments: Any) -> None:
    """Of a spawned process; this one has rank 0."""
    gradients_of_a_worker(index + 1, *arguments)


def gradients_of_a_worker(rank: int, world_size: int, teacher: str, accumulate: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.save(gradients(make_loop(teacher, accumulate), rank, world_size), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def config_of(loop: Loop) -> DistillConfig:
    assert isinstance(loop.objective, DistillObjective)
    return loop.objective.config


# 3 do not divide the batch. The first is this process; every other takes seconds to import torch.
@pytest.mark.parametrize(("world_size", "accumulate"), [(3, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_workers_that_share_a_batch_have_the_gradients_of_one(
    loop: Loop, tmp_path: Path, world_size: int, accumulate: int
) -> None:
    alone = gradients(loop, 0, 1)
    scale = max(float(value.abs().max()) for value in alone.values())
    arguments = (world_size, config_of(loop).teacher, accumulate, str(tmp_path))
    others = spawn(gradients_of_another, arguments, nprocs=world_size - 1, join=False)
    gradients_of_a_worker(0, *arguments)
    while not others.join():
        pass
    for rank in range(world_size):
        shared = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_position_of_a_batch_is_dealt_once(num_workers: int, accumulate: int) -> None:
    share = rows_per_worker(BATCH_SIZE, accumulate, num_workers)
    assert share % accumulate == 0
    dealt = np.concatenate([worker_positions(BATCH_SIZE, share, 3, rank) for rank in range(num_workers)])
    assert dealt[dealt != PADDING].tolist() == list(range(3 * BATCH_SIZE, 4 * BATCH_SIZE))


def test_more_workers_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 4, but must be at least workers x accumulate = 8"):
        check_workers(OptimConfig(batch_size=4), TrainingComputeConfig(workers=(1, 8)))


def spoil(batch: Batch, name: str) -> Batch:
    values = batch[name].copy()
    values[0, 0, 0, 0] = np.nan
    return {**batch, name: values}


def differs(network: Network, weights: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["eps", "x_u", "x_target_0"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(loop: Loop, name: str) -> None:
    worker = Worker(loop, 0, 1, CPU, None)
    worker.begin_stage(0)
    good = records(np.arange(BATCH_SIZE))
    before = {name: value.clone() for name, value in worker.state.network.state_dict().items()}
    worker.step(spoil(good, name))
    assert (worker.state.skipped, worker.state.step) == (1, 1)
    assert not differs(worker.state.network, before)
    assert int(worker.state.ema.n_averaged) == 0
    worker.step({**good, "position": good["position"] + BATCH_SIZE})
    assert worker.state.skipped == 1
    assert differs(worker.state.network, before)


@pytest.mark.parametrize(
    ("shape", "rates"), [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])]
)
def test_the_rate_warms_up_and_takes_its_shape(shape: str, rates: list[float]) -> None:
    optim = OptimConfig(steps=110, warmup_steps=10, learning_rate=1.0, rate_shape=shape)  # type: ignore[arg-type]
    assert [learning_rate(optim, step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert [learning_rate(optim, step) for step in (10, 60, 110)] == pytest.approx(rates, abs=1e-12)


def test_the_average_follows_the_weights_faster_at_first(loop: Loop) -> None:
    worker = Worker(replace(loop, optim=replace(loop.optim, ema_decay=0.15)), 0, 1, CPU, None)
    worker.begin_stage(0)
    expected = {name: value.clone() for name, value in worker.state.network.state_dict().items()}
    for step, decay in enumerate((None, 2 / 11, 0.15)):  # the first one copies, then (1 + n) / (10 + n), at most 0.15
        worker.step(records(step * BATCH_SIZE + np.arange(BATCH_SIZE)))
        weights = worker.state.network.state_dict()
        share = min(decay or 0.0, 0.15)
        expected = {name: share * value + (1 - share) * weights[name] for name, value in expected.items()}
    for name, value in worker.state.ema_network.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_gradients_are_clipped_before_the_step(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(replace(loop, optim=replace(loop.optim, grad_clip=1e-3)), 0, 1, CPU, None)
    worker.begin_stage(0)
    norms: list[float] = []

    def look() -> None:
        norms.append(float(torch.nn.utils.get_total_norm(p.grad for p in worker.state.network.parameters())))

    monkeypatch.setattr(worker.state.optimizer, "step", look)
    worker.step(records(np.arange(BATCH_SIZE)))
    assert norms == [pytest.approx(1e-3, rel=1e-3)]
    assert worker.meter.norm > 1e-2, "what is shown is the norm before"


def test_the_best_weights_are_kept_also_after_a_restart(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config_of(loop), output=str(tmp_path))
    figures = iter((17.0, 19.0, 18.0, 18.5))
    monkeypatch.setattr(DistillObjective, "validate", lambda *_: ({"psnr": next(figures)}, None))

    def begin() -> Worker:
        worker = Worker(replace(loop, objective=DistillObjective(config, None, "")), 0, 1, CPU, None)
        worker.begin_stage(0)
        return worker

    def kept() -> float:
        return float(load_network(f"{tmp_path}/student-2-best.safetensors").facts["validation"]["psnr"])

    worker, psnr = begin(), []
    for _ in range(3):
        worker.validate()
        psnr.append(kept())
    assert psnr == [17.0, 19.0, 19.0]
    restarted = begin()
    checkpoints.restore(restarted.state, saved(worker), {})
    restarted.validate()
    assert kept() == 19.0


class Transport:
    """The way to a server that takes everything at once."""

    server = "nowhere"

    def __init__(self) -> None:
        self.points: list[Point] = []

    def send_metrics(self, points: Sequence[Point]) -> None:
        self.points += points

    def send_file(self, file: File) -> None:
        raise AssertionError(file)

    def spill(self, points: Sequence[Point], files: Sequence[File]) -> bool:
        raise AssertionError(points)

    def send_spilled(self) -> None:
        pass

    def read_load(self) -> Mapping[str, float]:
        return {}


def test_a_restarted_worker_tells_the_last_validation_again_as_the_same(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed one may have got no further than its checkpoint."""
    monkeypatch.setattr(DistillObjective, "validate", lambda *_: ({"psnr": 17.0}, None))
    loop = replace(loop, objective=DistillObjective(config_of(loop), None, ""), checkpoint=CheckpointConfig(every=9))
    monkeypatch.setattr(DistillObjective, "save", lambda *_, **__: None)
    told = []
    checkpoint = None
    for _ in range(2):
        transport = Transport()
        with BufferedWriter(transport) as writer:
            worker = Worker(loop, 0, 1, CPU, cast(Any, writer))
            worker.begin_stage(0)
            if checkpoint:
                worker.resume(checkpoint)
            else:
                worker.validate()
                checkpoint = saved(worker)
        told.append(transport.points)
        assert worker.metrics == {"psnr": 17.0}
    assert told[0] == told[1]
    assert [(point.name, point.value) for point in told[0]] == [("validation/psnr", 17.0)]


def test_a_student_records_the_teacher_that_its_records_were_made_with(loop: Loop, tmp_path: Path) -> None:
    """Whatever lies at the teacher's URL when it is saved."""
    config = replace(config_of(loop), output=str(tmp_path))
    objective = DistillObjective(config, None, "abc123")
    student = objective.begin(StageContext(stage_index=0, device=CPU))
    Path(config.teacher).unlink()
    for best in (False, True):
        objective.save(0, student, {"psnr": 17.0}, best=best)
        facts = load_network(f"{tmp_path}/{student_name(4, best=best)}").facts
        assert (facts["teacher_sha256"], facts["num_steps"]) == ("abc123", 2)


def test_a_consistency_student_learns_from_its_own_average(loop: Loop) -> None:
    config = config_of(loop)
    consistent = replace(loop, objective=DistillObjective(replace(config, target="consistency"), None, ""))
    batch = records(np.arange(BATCH_SIZE))
    distances = []
    for shift in (0.0, 1.0):
        worker = Worker(consistent, 0, 1, CPU, None)
        worker.begin_stage(0)
        with torch.no_grad():
            for parameter in worker.state.ema_network.parameters():
                parameter.add_(shift)
        distances.append(float(worker.accumulate_gradients(batch, worker.step_context())["distill"]))
        assert all(parameter.grad is not None for parameter in worker.state.parameters)
        assert all(parameter.grad is None for parameter in worker.state.ema_network.parameters())
    assert np.isfinite(distances).all()
    assert distances[0] != pytest.approx(distances[1]), "the target does not depend on the average"


def test_a_rollout_hands_the_teacher_the_students_own_noisy_image(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config_of(loop), trajectories="online", cache="", pairs="p", rollout=2)
    objective = DistillObjective(config, None, "")
    worker = Worker(replace(loop, objective=objective), 0, 1, CPU, None)
    worker.begin_stage(0)
    seen: list[tuple[str, torch.Tensor, bool]] = []
    forward = UNet.forward

    def watched(self: UNet, z: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        role = "teacher" if self is objective.teacher else "student"
        seen.append((role, z, torch.is_grad_enabled()))
        return forward(self, z, *args, **kwargs)

    monkeypatch.setattr(UNet, "forward", watched)
    batch = records(np.arange(BATCH_SIZE))
    del batch["x_u"], batch["x_target_0"]
    terms = objective.terms(in_precision(worker.network, CPU, "fp32"), batch, worker.step_context())
    assert torch.isfinite(terms["loss"]).all()
    roles = [(role, gradients) for role, _, gradients in seen]
    assert roles == [*[("student", False)] * 2, *[("teacher", False)] * 2, ("student", True)]
    of_teacher, of_student = seen[2][1], seen[4][1]
    torch.testing.assert_close(of_teacher, of_student, rtol=1e-5, atol=1e-5)


def test_a_rollout_needs_its_teacher_online() -> None:
    with pytest.raises(ValueError, match=r"rollout is 2, but trajectories from a cache .* add --trajectories online"):
        DistillConfig(cache="c", teacher="t", output="o", rollout=2)


def test_a_progressive_stage_is_taught_by_the_student_before_it(loop: Loop, tmp_path: Path) -> None:
    config = config_of(loop)
    base = replace(config, output=str(tmp_path), pairs="p", stages=(4, 2), trajectories="online", cache="")
    first = load_network(base.teacher)
    with torch.no_grad():
        for parameter in first.network.parameters():
            parameter.add_(1)
    save_network(f"{tmp_path}/student-2.safetensors", first)
    taught_by = {}
    for progressive in (False, True):
        objective = DistillObjective(replace(base, progressive=progressive), None, "")
        student = objective.begin(StageContext(stage_index=1, device=CPU))
        teacher = load_network(base.teacher).network
        assert not differs(student, teacher.state_dict()), "it starts from the original teacher"
        assert objective.teacher
        taught_by[progressive] = objective.teacher
    assert not differs(taught_by[False], load_network(base.teacher).network.state_dict())
    assert not differs(taught_by[True], first.network.state_dict())


def saved(worker: Worker) -> Checkpoint:
    return Checkpoint.from_directory(checkpoints.save(worker.state, worker.loop.optim, worker.loop.settings).folder)


def test_a_checkpoint_holds_what_the_run_is_made_with_and_serves_no_other(loop: Loop) -> None:
    worker = Worker(replace(loop, settings={"records": ["a cache's key"], "refine_weight": 0.1}), 0, 1, CPU, None)
    worker.begin_stage(0)
    checkpoint = saved(worker)
    checkpoints.restore(worker.state, checkpoint, worker.loop.settings)
    with pytest.raises(ValueError, match=r"records is .*a cache's key.* asked for .*another"):
        checkpoints.restore(worker.state, checkpoint, {**worker.loop.settings, "records": ["another"]})


def test_a_full_disk_is_an_error_of_storage_and_leaves_nothing(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(checkpoints, "STATE_FILE", "/dev/full")  # which an absolute name leads to from any folder
    worker = Worker(loop, 0, 1, CPU, None)
    worker.begin_stage(0)
    with pytest.raises(OSError, match="No space left on device"):
        saved(worker)
    assert not list(tmp_path.glob("reddit-checkpoint-*"))


def test_an_interrupted_training_is_no_finished_one() -> None:
    class Interrupted:
        """As Ray Train's trainer after Ctrl-C."""

        def fit(self) -> NoReturn:
            sys.exit(0)

    with pytest.raises(KeyboardInterrupt):
        runs.fit(Interrupted())  # type: ignore[arg-type]


def test_the_progress_line_and_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    meter = StepMeter(num_steps=20, batch_size=4)
    for step in range(1, 21):
        meter.waited(0.001)
        meter.stepped("4-to-2", step, {"loss": torch.tensor(0.25), "distill": torch.tensor(0.125)}, torch.tensor(3.0))
        metrics = meter.due({"learning_rate": 1e-4, "skipped": 0.0})
        assert bool(metrics) == (step in (10, 20))
    names = {"loss", "distill", "learning_rate", "skipped", "grad_norm", "samples_per_second", "data_wait_share"}
    assert set(metrics) == {f"train/{name}" for name in names}
    assert (metrics["train/loss"], metrics["train/grad_norm"], metrics["train/learning_rate"]) == (0.25, 3.0, 1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("4-to-2 20/20 steps, ")
    assert "/s, 0 s left, loss 0.2500 distill 0.1250, waiting for data " in lines[-1]


def test_a_fused_optimizer_resumes_from_a_checkpoint_as_if_nothing_had_happened(loop: Loop) -> None:
    """On a GPU the optimizer is fused; its kernel takes moments of another memory layout without a word."""

    def begin() -> Worker:
        worker = Worker(loop, 0, 1, CPU, None)
        worker.begin_stage(0)
        lay_out_for_inference(worker.state.network, "bf16")  # another layout than that of a checkpoint
        worker.state.optimizer = torch.optim.AdamW(worker.state.network.parameters(), fused=True)
        return worker

    whole, resumed = begin(), begin()
    batches = [records(step * BATCH_SIZE + np.arange(BATCH_SIZE)) for step in range(3)]
    whole.step(batches[0])
    checkpoints.restore(resumed.state, saved(whole), {})
    for batch in batches[1:]:
        whole.step(batch)
        resumed.step(batch)
    assert not differs(resumed.state.network, whole.state.network.state_dict())


def test_a_student_has_no_dropout_whatever_its_teacher_had(tmp_path: Path) -> None:
    config = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4, dropout=0.5)
    teacher = NetworkFile(network=UNet(config), schedule=NoiseSchedule(), facts={})
    url = str(tmp_path / "teacher.safetensors")
    save_network(url, teacher)
    objective = DistillObjective(DistillConfig(cache="c", teacher=url, output="o"), None, "")
    student = objective.begin(StageContext(stage_index=0, device=CPU)).train()
    z, level = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    torch.testing.assert_close(student(z, level, low=z), teacher.network.eval()(z, level, low=z))
    assert student.config == replace(config, dropout=0.0)


def test_validation_leaves_flat_images_out_of_sharpness_alone() -> None:
    assert mean_metric("sharpness", [math.nan, 1.0, 2.0]) == 1.5
    assert math.isnan(mean_metric("sharpness", [math.nan]))
    assert math.isnan(mean_metric("psnr", [math.nan, 20.0])), "a network that diverged must not look better"
