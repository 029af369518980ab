"""Distilling the teacher into few-step students: one training stage for each halving of the steps, or one for all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import reporting, shards, storage
from pipelines.cluster import check_room, num_gpus, use_gpu
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import RECORDS_PER_SHARD, require
from pipelines.reporting import Report
from pipelines.shards import TARGET_COLUMNS
from pipelines.tracking import RunHandle, tracked_run
from pipelines.training import runs, student_registry
from pipelines.training.loop import Loop, check_workers
from pipelines.training.objective import Forward, StageContext, StepContext
from pipelines.training.order import Order
from pipelines.training.stream import StageRecords, Stream, TeacherPool, rows_per_worker
from pipelines.training.validation import ValidationImages
from pipelines.trajectories.caches import CachedRecords, OnlineRecords, find_cache
from pipelines.trajectories.crops import Batch, check_crop, plan_record_shards
from pipelines.trajectories.records import record_spec, to_levels
from pipelines.trajectories.teachers import StreamingTeacher, teacher_targets
from pipelines.weights import load_for_inference, load_hashed_network, load_lpips, load_network, save_network
from reddit_core.diffusion import eps_from_x_0, interpret, predict
from reddit_core.losses import distillation_terms, total
from reddit_core.lpips import Lpips
from reddit_core.networks import Network, build
from reddit_core.pixels import signed_from_pixels
from reddit_core.precision import autocast
from reddit_core.retinex import refinement_reflectance
from reddit_core.rollout import training_input
from reddit_core.trajectory import Levels, Targets, consistency_targets, refined_targets, student_steps
from reddit_core.weights import NetworkFile

# A loaded record: two images in uint8, two targets in float16 and the noise in float32, three channels each.
RECORD_BYTES = 2 * 3 + 2 * 6 + 12


def student_name(teacher_steps: int, *, best: bool = False) -> str:
    """File name of the weights that a stage leaves, last or best."""
    return f"student-{student_steps(teacher_steps)}{'-best' if best else ''}.safetensors"


@dataclass
class DistillObjective:
    """The refined-trajectory loss (paper eq. 11 to 13) of each stage's student.

    Attributes:
        teacher_sha256: of the weights that the targets are made with; recorded with every student.
    """

    config: DistillConfig
    validation: ValidationImages | None
    teacher_sha256: str

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(f"{steps}-to-{student_steps(steps)}" for steps in self.config.stages)

    @cached_property
    def lpips(self) -> Lpips | None:
        return load_lpips(*self.config.lpips) if self.config.loss.perceptual else None

    def begin(self, context: StageContext) -> Network:
        start = load_network(self.config.teacher)
        self.prediction = start.network.config.prediction
        self.teacher = self.stage_teacher(context)
        if self.lpips:
            self.lpips.to(context.device)
        # The teacher's targets are made without dropout, and the student could not match them exactly with it.
        student = build(start.network.config.without_dropout())
        student.load_state_dict(start.network.state_dict())
        # Without the teacher, whose memory would else be held as long as the stage lasts.
        self.file = replace(start, network=student.to(context.device), facts={})
        return student

    def stage_teacher(self, context: StageContext) -> Network | None:
        """The teacher if trajectories are `online`, else None; if progressive, the previous stage's student."""
        if self.config.trajectories != "online":
            return None
        if self.config.progressive and context.stage_index > 0:
            url = storage.join(self.config.output, student_name(self.config.stages[context.stage_index - 1]))
        else:
            url = self.config.teacher
        return load_for_inference(url, context.device, self.config.optim.precision).network

    def terms(self, network: Forward, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        device = context.device
        low, x_0 = signed_from_pixels(batch["low"], device), signed_from_pixels(batch["normal"], device)
        eps, gain = (torch.tensor(batch[name], device=device) for name in ("eps", "gain"))
        levels = to_levels(batch, device)
        z_t = training_input(
            network,
            x_0,
            eps,
            levels.a_t,
            num_steps=self.config.rollout,
            prediction=self.prediction,
            schedule=self.file.schedule,
            generator=context.generator,
            low=low,
            gain=gain,
        )
        if self.config.rollout:
            eps = eps_from_x_0(z_t, x_0, levels.a_t)  # so that z_t is add_noise(x_0, eps, a_t) again
        if set(TARGET_COLUMNS) <= set(batch):
            columns = {name: torch.tensor(batch[name], device=device) for name in TARGET_COLUMNS}
        else:
            assert self.teacher, "records without targets need a teacher"
            columns = teacher_targets(self.teacher, batch, self.config.optim.precision, eps)
        target_reflectance = refinement_reflectance(low, columns["x_u"], self.config.reflectance)
        targets = refined_targets(
            z_t, reflectance=target_reflectance, levels=levels, weight=self.config.refine_weight, **columns
        )
        if self.config.target == "consistency":
            targets = self.consistency(context, targets, z_t, levels, low=low, gain=gain)
        output = network(z_t, levels.a_t, low=low, gain=gain)
        estimate = interpret(output, z_t, levels.a_t, self.prediction)
        terms = distillation_terms(estimate, targets, x_0, eps, self.config.loss, self.lpips)
        return {"loss": total(terms, self.config.loss), **terms}

    @torch.no_grad()
    def consistency(
        self, context: StepContext, targets: Targets, z_t: Tensor, levels: Levels, *, low: Tensor, gain: Tensor
    ) -> Targets:
        """`consistency_targets` with the student's moving average, in the precision of training."""
        with autocast(context.device, self.config.optim.precision):
            averaged = partial(predict, context.averaged)
            return consistency_targets(averaged, targets, z_t, levels, low=low, gain=gain)

    def validate(self, stage_index: int, network: Network) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        if self.validation is None:
            return {}, None
        return self.validation.judge(self.weights(network), student_steps(self.config.stages[stage_index]))

    def save(self, stage_index: int, network: Network, metrics: Mapping[str, float], *, best: bool = False) -> None:
        teacher_steps = self.config.stages[stage_index]
        facts = {
            "role": "student",
            "num_steps": student_steps(teacher_steps),
            "teacher_sha256": self.teacher_sha256,
            "pairs": student_registry.describe_pairs(self.config.pairs) if self.config.pairs else "",
            "licence": self.config.tracking.licence,
            "config": runs.recorded_settings(self.config),
            "validation": dict(metrics),
        }
        url = storage.join(self.config.output, student_name(teacher_steps, best=best))
        save_network(url, replace(self.weights(network), facts=facts))

    def weights(self, network: Network) -> NetworkFile:
        return replace(self.file, network=network)


def make_stream(config: DistillConfig) -> Stream:
    """The records of all stages, from their caches or from the pairs; with teacher actors if trajectories are `stream`.

    Raises:
        ValueError: if a stage's cache is missing, or was made with other settings, which are named.
    """
    teacher, sha256 = load_hashed_network(config.teacher)
    check_crop(config.segment, teacher.network)
    read_stage = cached_stage if config.trajectories == "cache" else computed_stage
    optim = config.optim
    return Stream(
        stages=[read_stage(config, teacher_steps, teacher, sha256) for teacher_steps in config.stages],
        steps=optim.steps,
        batch_size=optim.batch_size,
        row_bytes=RECORD_BYTES * config.segment.crop**2,
        accumulate=optim.accumulate,
        teachers=make_teacher_pool(config) if config.trajectories == "stream" else None,
        teacher_sha256=sha256,
    )


def cached_stage(config: DistillConfig, teacher_steps: int, teacher: NetworkFile, sha256: str) -> StageRecords:
    """A stage's records, with targets from its cache."""
    url, manifest = find_cache(config, teacher_steps, teacher, sha256)
    order = Order(shard_rows=tuple(entry.rows for entry in manifest.shards), seed=config.optim.seed)
    return StageRecords(order=order, load=CachedRecords(url, manifest.shards), source=url, key=manifest.key)


def computed_stage(config: DistillConfig, teacher_steps: int, teacher: NetworkFile, sha256: str) -> StageRecords:
    """A stage's records, without targets, which the teacher computes during training."""
    teacher.schedule.grid(teacher_steps)  # rejects steps that the schedule does not have
    manifest = shards.read_manifest(config.pairs, "pairs")
    plan = plan_record_shards(manifest, "train", config.segment, RECORDS_PER_SHARD)
    load = OnlineRecords(config.pairs, plan, config.segment, teacher.schedule, teacher_steps)
    order = Order(shard_rows=tuple(shard.rows for shard in plan), seed=config.optim.seed)
    spec = record_spec(manifest, "train", teacher, sha256, teacher_steps, config.segment)
    return StageRecords(order=order, load=load, source=config.pairs, key=shards.spec_key(spec))


def make_teacher_pool(config: DistillConfig) -> TeacherPool:
    """The teacher actors of trajectories `stream`; they evaluate the same batches as a worker does with `online`.

    Raises:
        ValueError: if the cluster has too few GPUs for workers and teachers.
    """
    compute, gpu = config.compute, use_gpu(config.compute)
    wanted = compute.max_workers + config.teacher_actors
    if compute.gpu == "auto" and gpu and num_gpus() < wanted:  # with "yes" the cluster may scale up
        raise ValueError(
            f"{compute.max_workers} workers and {config.teacher_actors} teacher actors need {wanted} GPUs, but the "
            f"cluster has {num_gpus()}; lower them, or use --trajectories cache or online"
        )
    optim = config.optim
    rows = rows_per_worker(optim.batch_size, optim.accumulate, compute.max_workers) // optim.accumulate
    return TeacherPool(
        actor=StreamingTeacher,
        args=(config, rows, "cuda" if gpu else "cpu"),
        num_actors=config.teacher_actors,
        num_cpus=compute.cpus_per_worker,
        num_gpus=int(gpu),
    )


def distill(config: DistillConfig, parent: RunHandle | None = None) -> Report:
    """Distils every stage; resumes an earlier run of the same output.

    Raises:
        ValueError: if the cache, teacher, pairs or output cannot be used together, before anything is spent.
    """
    names = [student_name(steps) for steps in config.stages]
    check_inputs(config)
    stream = make_stream(config)
    settings = runs.record_config(config.output, config, stream)
    done = runs.finished(config.output, names)
    inputs = student_registry.input_datasets(config, stream)
    with tracked_run(
        config.tracking, config.output, config, job="distill", inputs=inputs, parent=parent, done=done
    ) as run:
        if not done:
            loop = make_loop(config, run, stream.teacher_sha256, settings)
            runs.train(loop, stream, config.output)
        last = storage.join(config.output, names[-1])
        model = student_registry.register_student(run, config, last)
    facts: dict[str, Any] = {"steps_per_stage": config.optim.steps, "refine_weight": config.refine_weight}
    facts |= {"mlflow_model": model} if model else {}
    report = Report(title="Students", rows=student_rows(config), facts=facts, url=config.output)
    return runs.save_report(report, f"The students are already distilled: {config.output}" if done else "")


def make_validation(config: DistillConfig) -> ValidationImages | None:
    return ValidationImages(config.pairs, config.checkpoint, config.lpips) if config.pairs else None


def check_inputs(config: DistillConfig) -> None:
    """Raises a ValueError if batch, workers, validation pairs or backbone cannot be used; before anything is spent."""
    require(bool(config.output), "output is empty, but the students need a place; add --output URL")
    check_workers(config.optim, config.compute)
    streams = config.trajectories == "stream"
    check_room(config.compute, more_cpus=config.teacher_actors * config.compute.cpus_per_worker if streams else 0.0)
    if validation := make_validation(config):
        validation.check()
    if config.loss.perceptual:
        least = load_lpips(*config.lpips).least_side
        require(
            config.segment.crop >= least,
            f"segment.crop is {config.segment.crop}, but the perceptual term needs {least} pixels; use larger crops",
        )


def make_loop(
    config: DistillConfig, run: RunHandle, teacher_sha256: str, settings: runs.Settings | None = None
) -> Loop:
    objective = DistillObjective(config, make_validation(config), teacher_sha256)
    return Loop.from_config(config, objective, run, settings)


def student_rows(config: DistillConfig) -> list[reporting.Row]:
    """The students, with the last validation of each."""
    rows: list[reporting.Row] = []
    for steps in config.stages:
        url = storage.join(config.output, student_name(steps))
        facts = load_network(url).facts
        rows.append({"steps": facts["num_steps"], **facts["validation"], "weights": url})
    return rows


def plan_distill(config: DistillConfig) -> Report:
    """The plan of `distill` (`--dry-run`); raises the same errors for inputs that cannot be used."""
    check_inputs(config)
    stream = make_stream(config)
    runs.is_recorded(config.output, {**runs.recorded_settings(config), **runs.contents(config, stream)})
    rows = [
        {
            "stage": f"{steps} -> {student_steps(steps)}",
            "records": part.order.num_records,
            "steps": config.optim.steps,
            "epochs": config.optim.steps * config.optim.batch_size / part.order.num_records,
        }
        for steps, part in zip(config.stages, stream.stages, strict=True)
    ]
    return Report(title="Plan of distill", rows=rows, facts={"from_step": runs.latest_step(config.output)})
