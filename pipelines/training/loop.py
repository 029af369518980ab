"""The training loop of teachers and students: batches from Ray Data, workers of Ray Train, checkpoints.

A run is a sequence of stages with the same number of steps each. The global step determines everything about the
state of a run but its weights: the records that come next (`order.py`), the noise that is drawn, the learning rate.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipelines.config.parts import CheckpointConfig, ComputeConfig, OptimConfig, TrainingComputeConfig, require
from pipelines.tracking import RunHandle, RunWriter
from pipelines.tracking.buffer import now_ms
from pipelines.training import checkpoints
from pipelines.training.checkpoints import TrainState
from pipelines.training.objective import Forward, Objective, StageContext, StepContext
from pipelines.training.precision import compile_errors, compiled, in_precision
from pipelines.training.step_meter import StepMeter
from pipelines.training.stream import PADDING, rows_per_worker, worker_positions
from pipelines.trajectories.crops import Batch

# The validation metric by which the best weights of a stage are kept.
BEST_METRICS = ("psnr_given", "psnr")
# Steps between two checks for preemption, which all workers wait for.
PREEMPTION_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Everything that a worker needs to train.

    Attributes:
        settings: determine what is learned, and go into every checkpoint.
        board: handle of the actor that takes the progress to the driver's terminal, if there is one.
    """

    objective: Objective
    optim: OptimConfig
    checkpoint: CheckpointConfig
    compute: TrainingComputeConfig
    run: RunHandle
    settings: Mapping[str, Any] = field(default_factory=dict)
    board: Any = None

    @classmethod
    def from_config(cls, config: Any, objective: Objective, run: RunHandle, settings: Mapping[str, Any] | None) -> Self:
        """The loop of a training job, from the parts of its config."""
        parts = {name: getattr(config, name) for name in ("optim", "checkpoint", "compute")}
        return cls(objective=objective, run=run, settings=settings or {}, **parts)

    @property
    def num_steps(self) -> int:
        return self.optim.steps * len(self.objective.stages)


def check_workers(optim: OptimConfig, compute: ComputeConfig) -> None:
    """Raises a ValueError if a batch is too small to give every worker's micro-batches a sample each."""
    parts = compute.max_workers * optim.accumulate
    require(
        optim.batch_size >= parts,
        f"batch_size is {optim.batch_size}, but must be at least workers x accumulate = {parts}; raise or lower one",
    )


def train_worker(config: dict[str, Loop]) -> str:
    """Trains on one worker, from the newest checkpoint to the end of the last stage.

    Returns:
        Where and why the run stopped early; empty if it did not.
    """
    loop = config["loop"]
    # The run's logging_config filters Ray Train's own handlers only; its records still reach the worker's root logger,
    # some from loggers that are named after files.
    for name in ("", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)
    context = ray.train.get_context()
    rank, device = context.get_world_rank(), ray.train.torch.get_device()
    # Ray has set the number of threads to that of the reserved CPUs, which are logical CPUs.
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    torch.set_num_threads(loop.compute.threads or cores)
    with ExitStack() as stack:
        writer = RunWriter(loop.run) if rank == 0 else None
        if writer:
            stack.callback(writer.close)
        if loop.optim.compile:
            stack.enter_context(compile_errors())
        return Worker(loop, rank, context.get_world_size(), device, writer).train()


class Worker:
    """One training worker: its training state, and the work before and after each step."""

    def __init__(self, loop: Loop, rank: int, world_size: int, device: torch.device, writer: RunWriter | None) -> None:
        self.loop, self.rank, self.world_size, self.device, self.writer = loop, rank, world_size, device, writer
        self.meter = StepMeter(loop.num_steps, loop.optim.batch_size, loop.board)
        self.metrics: dict[str, float] = {}
        self.preemption_seen, self.stopped = False, ""

    def train(self) -> str:
        """Trains to the end, or until too many losses are not finite; returns why it stopped early, or nothing."""
        checkpoint = ray.train.get_checkpoint()
        step = checkpoints.checkpoint_step(checkpoint) if checkpoint else 0
        steps = self.loop.optim.steps
        if step == self.loop.num_steps:
            return ""
        self.begin_stage(step // steps)
        if checkpoint and step % steps:
            self.resume(checkpoint)
        for batch in self.batches(step):
            if self.state.step == steps:
                self.begin_stage(self.state.stage_index + 1)
            self.step(batch)
            self.after_step()
            if self.stopped:
                break
        return self.stopped

    def begin_stage(self, stage_index: int) -> None:
        """Starts a stage with the objective's network, and a new optimizer and average."""
        torch.manual_seed(self.loop.optim.seed)
        network = self.loop.objective.begin(StageContext(stage_index=stage_index, device=self.device))
        self.state = TrainState.begin(stage_index, network, self.loop.optim)
        forward = compiled(network, self.device) if self.loop.optim.compile else network
        self.parallel = DistributedDataParallel(forward) if self.world_size > 1 else None
        if self.parallel:
            self.warm_up_ddp(self.parallel)
        self.network: Forward = self.parallel or forward

    def resume(self, checkpoint: ray.train.Checkpoint) -> None:
        """Restores a checkpoint of the current stage."""
        checkpoints.restore(self.state, checkpoint, self.loop.settings)
        self.log_validation()

    def warm_up_ddp(self, parallel: DistributedDataParallel) -> None:
        """Runs one discarded backward pass, so that DDP rebuilds its gradient buckets before the first step.

        It does so after the first pass of a process. With three or more workers that changes the order in which
        gradients are summed, and so the last bits of the weights would differ after a restart.
        """
        size = self.state.network.config.size_multiple
        z, level = torch.zeros(1, 3, size, size, device=self.device), torch.ones(1, device=self.device)
        # Not compiled, because no batch has this size.
        with torch.compiler.set_stance("force_eager") if self.loop.optim.compile else nullcontext():
            parallel(z, level, low=z, gain=level).sum().backward()
        self.state.optimizer.zero_grad(set_to_none=True)

    def batches(self, start_step: int) -> Iterator[Batch]:
        """This worker's share of every batch from a global step on; its positions are checked first."""
        optim, step = self.loop.optim, start_step
        share = rows_per_worker(optim.batch_size, optim.accumulate, self.world_size)
        dataset = ray.train.get_dataset_shard("train")
        batches = iter(dataset.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2, drop_last=True))
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.meter.waited(time.perf_counter() - started)
            if batch is None:
                return
            due = worker_positions(optim.batch_size, share, step, self.rank)
            if not np.array_equal(batch["position"], due):
                raise RuntimeError(f"worker {self.rank} received positions {batch['position']}, not {due}")
            step += 1
            yield batch

    def step(self, batch: Batch) -> None:
        """One optimizer step; if the loss or a gradient is not finite, nothing is updated, and the step is counted."""
        state, optim = self.state, self.loop.optim
        context = self.step_context()
        torch.manual_seed(step_seed(optim.seed, state.stage_index, state.step, self.rank) + 1)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(optim, state.step)
        terms = self.accumulate_gradients(batch, context)
        norm = torch.nn.utils.clip_grad_norm_(state.parameters, optim.grad_clip)
        self.is_finite = bool(torch.isfinite(norm))
        if self.is_finite:
            state.optimizer.step()
            state.average()
        else:
            state.skipped += 1
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        self.meter.stepped(self.loop.objective.stages[state.stage_index], state.global_step(optim), terms, norm)

    def step_context(self) -> StepContext:
        """The context of the next step."""
        state, seed = self.state, self.loop.optim.seed
        generator = torch.Generator(self.device)
        generator.manual_seed(step_seed(seed, state.stage_index, state.step, self.rank))
        return StepContext(
            stage_index=state.stage_index,
            device=self.device,
            step=state.step,
            global_step=state.global_step(self.loop.optim),
            averaged=state.ema_network,
            generator=generator,
        )

    def accumulate_gradients(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Backward passes over the micro-batches; returns the mean of each term over this worker's share.

        Every row's loss is divided by the batch size, whichever worker has it; the scale undoes DDP's mean over them.
        """
        parts = self.loop.optim.accumulate
        size = len(batch["position"]) // parts
        counts = torch.tensor(batch["position"] != PADDING, dtype=torch.float32, device=self.device)
        scale = self.world_size / self.loop.optim.batch_size
        sums: dict[str, Tensor] = {}
        if parts > 1 and self.loop.optim.compile:  # to accumulate in: a CUDA graph overwrites its own gradients
            for parameter in self.state.parameters:
                parameter.grad = torch.zeros_like(parameter)
        for part in range(parts):
            micro = {name: values[part * size : (part + 1) * size] for name, values in batch.items()}
            with ExitStack() as stack:
                if self.parallel and part < parts - 1:
                    stack.enter_context(self.parallel.no_sync())
                network = in_precision(self.network, self.device, self.loop.optim.precision)
                terms = self.loop.objective.terms(network, micro, context)
                count = counts[part * size : (part + 1) * size]
                torch.autograd.backward((terms["loss"] * count).sum() * scale)
            for name, values in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + (values.detach() * count).sum()
        return {name: value / counts.sum().clamp(min=1) for name, value in sums.items()}

    def after_step(self) -> None:
        """Logs, validates, saves weights and checkpoints, each if it is due; sets `stopped` if the run must end."""
        state, every, steps = self.state, self.loop.checkpoint, self.loop.optim.steps
        self.log_progress()
        if state.skipped > self.loop.optim.max_nonfinite:
            self.stopped = f"at step {state.global_step(self.loop.optim)} after too many non-finite losses"
            return
        ends = state.step == steps
        validates = bool(every.validate_every) and (state.step % every.validate_every == 0 or ends)
        if validates and self.rank == 0:
            self.validate()
        if ends and self.rank == 0:
            self.loop.objective.save(state.stage_index, state.ema_network, self.metrics)
        self.report(ends=ends, validates=validates)

    def log_progress(self) -> None:
        """Shows the progress, and logs the metrics since the last time, every few steps."""
        state, optim = self.state, self.loop.optim
        rates = {"learning_rate": learning_rate(optim, state.step - 1), "skipped": float(state.skipped)}
        if self.rank == 0 and (metrics := self.meter.due(rates)) and self.writer:
            self.writer.metrics(metrics, state.global_step(optim))

    def report(self, *, ends: bool, validates: bool) -> None:
        """Reports to Ray Train, on every worker: with a checkpoint if one is due, else after a validation only."""
        state = self.state
        # Weights after a step that was not finite are no state to resume from; earlier checkpoints are kept.
        due = (state.step % self.loop.checkpoint.every == 0 or self.preempted()) and self.is_finite
        saves = due or ends
        if not saves and not validates:
            return
        saved = checkpoints.save(state, self.loop.optim, self.loop.settings) if saves and self.rank == 0 else None
        step = state.global_step(self.loop.optim)
        checkpoints.report({**self.metrics, "stage": state.stage_index, "step": step}, saved)

    def preempted(self) -> bool:
        """Whether a node is about to be preempted: true once, at a step at which all workers check."""
        if self.preemption_seen or self.state.step % PREEMPTION_EVERY:
            return False
        self.preemption_seen = ray.train.get_preemption_info() is not None
        return self.preemption_seen

    def validate(self) -> None:
        state = self.state
        metrics, grid = self.loop.objective.validate(state.stage_index, state.ema_network)
        step = state.global_step(self.loop.optim)
        state.validated = {"metrics": metrics, "step": step, "timestamp_ms": now_ms()}
        self.log_validation()
        best = next((self.metrics[name] for name in BEST_METRICS if name in self.metrics), -math.inf)
        if best > state.best:
            state.best = best
            self.loop.objective.save(state.stage_index, state.ema_network, self.metrics, best=True)
        if self.writer:
            if grid is not None:
                self.writer.image(f"validation/{self.loop.objective.stages[state.stage_index]}", grid, step)
            self.writer.flush()  # a sweep may stop this trial for what it is about to report
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        print(f"{self.loop.objective.stages[state.stage_index]} step {state.step}: validation {figures}", flush=True)

    def log_validation(self) -> None:
        """Logs the last validation, with the time at which it was made.

        Repeated after a restart, because a killed worker may not have sent it; a point sent twice is stored once.
        """
        if found := self.state.validated:
            self.metrics = found["metrics"]
            if self.writer:
                named = {f"validation/{name}": value for name, value in self.metrics.items()}
                self.writer.metrics(named, found["step"], found["timestamp_ms"])


def step_seed(seed: int, stage: int, step: int, rank: int) -> int:
    """The seed of all draws of one step on one worker, 62 bits."""
    return int(np.random.SeedSequence((seed, stage, step, rank)).generate_state(1, np.uint64)[0] >> 2)


def learning_rate(optim: OptimConfig, step: int) -> float:
    """The learning rate of a step of a stage: linear warm-up, then `rate_shape`, which ends at 0 unless constant."""
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    shapes = {"constant": 1.0, "cosine": 0.5 * (1 + np.cos(np.pi * share)), "linear": 1 - share}
    return float(optim.learning_rate * shapes[optim.rate_shape])
