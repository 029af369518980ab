"""Distilling the teacher into few-step students: one training stage for each halving of the steps."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import reporting, shards, storage
from pipelines.cluster import check_room, num_gpus, use_gpu
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import RECORDS_PER_SHARD
from pipelines.reporting import Report
from pipelines.tracking import RunHandle
from pipelines.training import runs, student_registry
from pipelines.training.loop import Loop, check_workers
from pipelines.training.objective import Batch, Network
from pipelines.training.order import Order
from pipelines.training.stream import Beside, Stage, Stream, share_of
from pipelines.training.validation import ValidationImages
from pipelines.trajectories.caches import CachedRecords, OnlineRecords, find_cache
from pipelines.trajectories.crops import check_crop, plan_shards, to_images
from pipelines.trajectories.records import levels_of, record_spec
from pipelines.trajectories.teachers import StreamingTeacher, teacher_targets
from pipelines.weights import load_for_inference, load_hashed_unet, load_lpips, load_unet, save_unet
from reddit_core.diffusion import add_noise, interpret
from reddit_core.losses import distillation_terms, total
from reddit_core.lpips import Lpips
from reddit_core.networks.sr3_unet import UNet
from reddit_core.retinex import reflectance
from reddit_core.trajectory import refined_targets
from reddit_core.weights import UNetFile

# A loaded record: two images in uint8, two targets in float16 and the noise in float32, three channels each.
RECORD_BYTES = 2 * 3 + 2 * 6 + 12


def sha256_of(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(url)).hexdigest()


def student_name(stage: int, *, best: bool = False) -> str:
    """The weights that the stage of a `stage`-step teacher leaves for a student of half its steps, last or best."""
    return f"student-{stage // 2}{'-best' if best else ''}.safetensors"


@dataclass
class DistillObjective:
    """The refined-trajectory loss (paper eq. 11 to 13) of each stage's student."""

    config: DistillConfig
    validation: ValidationImages | None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(f"{stage}-to-{stage // 2}" for stage in self.config.stages)

    @cached_property
    def lpips(self) -> Lpips | None:
        return load_lpips(self.config.lpips) if self.config.loss.perceptual else None

    def begin(self, stage: int, device: torch.device) -> UNet:
        start = load_unet(self.config.teacher, self.config.norm_groups)
        self.schedule, self.prediction = start.schedule, start.unet.config.prediction
        self.teacher = self.stage_teacher(stage, device)
        if self.lpips:
            self.lpips.to(device)
        # The teacher makes its targets without dropout, which would only blur what the student has to meet.
        student = UNet(replace(start.unet.config, dropout=0.0))
        student.load_state_dict(start.unet.state_dict())
        return student.to(device)

    def stage_teacher(self, stage: int, device: torch.device) -> UNet | None:
        """The original teacher; when progressive, the previous stage's student; none where it has run before."""
        if self.config.trajectories != "online":
            return None
        if self.config.progressive and stage > 0:
            url = storage.join(self.config.output, student_name(self.config.stages[stage - 1]))
        else:
            url = self.config.teacher
        return load_for_inference(url, self.config.norm_groups, device, self.config.optim.precision).unet

    def terms(
        self, network: Network, batch: Batch, generator: torch.Generator, device: torch.device
    ) -> dict[str, Tensor]:
        low, x_0 = to_images(batch["low"], device), to_images(batch["normal"], device)
        eps, levels = torch.tensor(batch["eps"], device=device), levels_of(batch, device)
        z_t = add_noise(x_0, eps, levels.a_t)
        if "x_target_0" in batch:
            x_u, x_target_0 = (torch.tensor(batch[name], device=device) for name in ("x_u", "x_target_0"))
        else:
            assert self.teacher, "records without targets need a teacher"
            segment, x_target_0 = teacher_targets(self.teacher, batch, self.config.optim.precision)
            x_u = segment.x_u
        low_reflectance = reflectance(low, self.config.reflectance)
        targets = refined_targets(z_t, x_u, x_target_0, low_reflectance, levels, self.config.refine_weight)
        output = network(z_t, low, levels.a_t)
        estimate = interpret(output, z_t, levels.a_t, self.prediction)
        terms = distillation_terms(estimate, targets, x_0, eps, self.config.loss, self.lpips)
        return {"loss": total(terms, self.config.loss), **terms}

    def validate(self, stage: int, unet: UNet) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        if self.validation is None:
            return {}, None
        return self.validation.judge(unet, self.schedule, self.config.stages[stage] // 2)

    def save(self, stage: int, unet: UNet, metrics: Mapping[str, float], *, best: bool = False) -> None:
        num_steps = self.config.stages[stage] // 2
        facts = {
            "role": "student",
            "num_steps": num_steps,
            "teacher_sha256": sha256_of(self.config.teacher),
            "pairs": student_registry.describe_pairs(self.config.pairs) if self.config.pairs else "",
            "licence": self.config.tracking.licence,
            "config": runs.facts_of(self.config),
            "validation": dict(metrics),
        }
        file = UNetFile(unet=unet, schedule=self.schedule, facts=facts)
        save_unet(storage.join(self.config.output, student_name(self.config.stages[stage], best=best)), file)


def make_stream(config: DistillConfig) -> Stream:
    """The records of all stages, from their caches or straight from the pairs; where they stream, with the teacher.

    Raises:
        ValueError: if a stage's cache is missing, or was made with other settings; each is named.
    """
    teacher, sha256 = load_hashed_unet(config.teacher, config.norm_groups)
    check_crop(config.segment, teacher.unet)
    stages = []
    for stage in config.stages:
        if config.trajectories == "cache":
            url, manifest = find_cache(config, stage, teacher, sha256)
            rows, load = tuple(entry.rows for entry in manifest.shards), CachedRecords(url, manifest.shards)
            stages.append(
                Stage(order=Order(shard_rows=rows, seed=config.optim.seed), load=load, source=url, key=manifest.key)
            )
            continue
        teacher.schedule.grid(stage)  # refuses steps that the schedule does not have
        manifest = shards.read_manifest(config.pairs, "pairs")
        plan = plan_shards(manifest, "train", config.segment, RECORDS_PER_SHARD)
        online = OnlineRecords(config.pairs, plan, config.segment, teacher.schedule, stage)
        order = Order(shard_rows=tuple(shard.rows for shard in plan), seed=config.optim.seed)
        spec = record_spec(manifest, "train", teacher, sha256, stage, config.segment)
        stages.append(Stage(order=order, load=online, source=config.pairs, key=shards.spec_key(spec)))
    beside = teachers_beside(config) if config.trajectories == "stream" else None
    optim = config.optim
    return Stream(
        stages=stages,
        steps=optim.steps,
        batch_size=optim.batch_size,
        row_bytes=RECORD_BYTES * config.segment.crop**2,
        accumulate=optim.accumulate,
        beside=beside,
    )


def teachers_beside(config: DistillConfig) -> Beside:
    """The teacher actors of `stream`, which evaluate the batches that a worker would with the teacher `online`.

    Raises:
        ValueError: if the cluster has too few GPUs for workers and teachers.
    """
    compute, gpu = config.compute, use_gpu(config.compute)
    wanted = compute.max_workers + config.teacher_actors
    if compute.gpu == "auto" and gpu and num_gpus() < wanted:  # who says yes may have a cluster that grows
        raise ValueError(
            f"{compute.max_workers} workers and {config.teacher_actors} teacher actors need {wanted} GPUs, but the "
            f"cluster has {num_gpus()}; lower them, or use --trajectories cache or online"
        )
    optim = config.optim
    rows = share_of(optim.batch_size, optim.accumulate, compute.max_workers) // optim.accumulate
    return Beside(
        actor=StreamingTeacher,
        args=(config, rows, "cuda" if gpu else "cpu"),
        num_actors=config.teacher_actors,
        num_cpus=compute.cpus_per_worker,
        num_gpus=int(gpu),
    )


def distill(config: DistillConfig, parent: RunHandle | None = None) -> Report:
    """Distils every stage, or goes on where an earlier run under the same output stopped.

    Raises:
        ValueError: if the cache, teacher, pairs or output cannot be used together, before anything is spent.
    """
    names = [student_name(stage) for stage in config.stages]
    check_inputs(config)
    stream = make_stream(config)
    settings = runs.record_config(config.output, config, stream)
    done = runs.finished(config.output, names)
    inputs = student_registry.inputs_of(config, stream)
    with runs.tracked_run(
        config.tracking, config.output, config, job="distill", inputs=inputs, parent=parent, done=done
    ) as run:
        if not done:
            runs.fit(runs.make_trainer(make_loop(config, run, settings), stream, config.output))
        last = storage.join(config.output, names[-1])
        model = student_registry.register(run, config, last)
    facts: dict[str, Any] = {"steps_per_stage": config.optim.steps, "refine_weight": config.refine_weight}
    facts |= {"mlflow_model": model} if model else {}
    report = Report(title="Students", rows=student_rows(config), facts=facts, url=config.output)
    return runs.save_report(report, f"The students are already distilled: {config.output}" if done else "")


def validation_of(config: DistillConfig) -> ValidationImages | None:
    return ValidationImages(config.pairs, config.checkpoint, config.lpips) if config.pairs else None


def check_inputs(config: DistillConfig) -> None:
    """Refuses a batch, workers, validation pairs or a backbone that could not be used, before anything is spent."""
    check_workers(config.optim, config.compute)
    streams = config.trajectories == "stream"
    check_room(config.compute, more_cpus=config.teacher_actors * config.compute.cpus_per_worker if streams else 0.0)
    if validation := validation_of(config):
        validation.check()
    elif config.loss.perceptual:
        load_lpips(config.lpips)


def make_loop(config: DistillConfig, run: RunHandle, settings: runs.Settings | None = None) -> Loop:
    objective = DistillObjective(config, validation_of(config))
    return Loop.of(config, objective, run, settings)


def student_rows(config: DistillConfig) -> list[reporting.Row]:
    """What each stage left, with its last validation."""
    rows: list[reporting.Row] = []
    for stage in config.stages:
        url = storage.join(config.output, student_name(stage))
        facts = load_unet(url).facts
        rows.append({"steps": facts["num_steps"], **facts["validation"], "weights": url})
    return rows


def plan_distill(config: DistillConfig) -> Report:
    """What each stage would be trained on; refuses what `distill` would."""
    check_inputs(config)
    stream = make_stream(config)
    runs.is_recorded(config.output, runs.with_records(runs.settings_of(config), stream))
    rows = [
        {
            "stage": f"{stage} -> {stage // 2}",
            "records": part.order.num_records,
            "steps": config.optim.steps,
            "epochs": config.optim.steps * config.optim.batch_size / part.order.num_records,
        }
        for stage, part in zip(config.stages, stream.stages, strict=True)
    ]
    return Report(title="Plan of distill", rows=rows, facts={"from_step": runs.latest_step(config.output)})
