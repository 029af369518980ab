"""Trains the many-step teacher: ordinary diffusion training on crops of the pairs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines import shards, storage
from pipelines.cluster import check_room
from pipelines.config.parts import SegmentConfig, TrainingLevels
from pipelines.config.teacher import TeacherConfig
from pipelines.pairs.dataset import split_brightness, split_contrast, split_shards
from pipelines.reporting import Report
from pipelines.shards import Manifest, shards_hash
from pipelines.tracking import RunHandle, tracked_run
from pipelines.training import runs
from pipelines.training.loop import Loop, check_workers
from pipelines.training.objective import Forward, StageContext, StepContext
from pipelines.training.order import Order
from pipelines.training.stream import StageRecords, Stream
from pipelines.training.validation import ValidationImages
from pipelines.trajectories.crops import Batch, RecordShard, derive_seed, gather, load_crops
from pipelines.weights import load_network, save_network
from reddit_core.diffusion import interpret
from reddit_core.losses import detail_loss, dissimilarity, teacher_loss
from reddit_core.networks import Network, NetworkConfig, build, kind_of
from reddit_core.pixels import signed_from_pixels
from reddit_core.rollout import training_input
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

WEIGHTS = "teacher.safetensors"
BEST_WEIGHTS = "teacher-best.safetensors"
SPAN_SAMPLES = 512


class Noisy(NamedTuple):
    """Noisy images and their noise, each [B, 3, H, W]; of a rollout the noise that it began with."""

    z: Tensor
    eps: Tensor


@dataclass
class TeacherObjective:
    """The denoising loss of `TeacherConfig.network_config` at continuous noise levels, after a rollout if it is set."""

    config: TeacherConfig
    validation: ValidationImages

    @property
    def stages(self) -> tuple[str, ...]:
        return ("teacher",)

    def begin(self, context: StageContext) -> Network:
        network = build(self.config.network_config)
        if self.config.init:
            network.load_state_dict(load_network(self.config.init).network.state_dict())
        return network.to(context.device)

    def terms(self, network: Forward, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        device = context.device
        low, normal = signed_from_pixels(batch["low"], device), signed_from_pixels(batch["normal"], device)
        gain = torch.tensor(batch["gain"], device=device)
        prediction = self.config.network_config.prediction
        level = draw_training_levels(self.config.schedule, len(low), context.generator, self.config.levels)
        noisy = self.noisy(network, normal, level, context.generator, low=low, gain=gain)
        output = network(noisy.z, level, low=low, gain=gain)
        error = teacher_loss(output, normal, noisy.eps, level, prediction)
        if not self.config.ssim and not self.config.detail:
            return {"loss": error}
        x_0 = interpret(output, noisy.z, level, prediction).x_0
        terms = {"loss": error, "error": error}
        if self.config.ssim:
            terms["ssim"] = dissimilarity(x_0, normal)
            terms["loss"] = terms["loss"] + self.config.ssim * terms["ssim"]
        if self.config.detail:
            terms["detail"] = detail_loss(x_0, normal)
            terms["loss"] = terms["loss"] + self.config.detail * level.square().float() * terms["detail"]
        return terms

    def noisy(
        self, network: Forward, normal: Tensor, level: Tensor, generator: torch.Generator, *, low: Tensor, gain: Tensor
    ) -> Noisy:
        """The images that the network is trained on: after a rollout if it is set, and pure noise for a regressor."""
        eps = torch.randn(normal.shape, generator=generator, device=normal.device)
        if self.config.levels == "noisiest":
            # Without the part a x_0 of the noisy image, which gives away local means of the ground truth.
            return Noisy(eps, eps)
        z = training_input(
            network,
            normal,
            eps,
            level,
            num_steps=self.config.rollout,
            prediction=self.config.network_config.prediction,
            schedule=self.config.schedule,
            generator=generator,
            low=low,
            gain=gain,
        )
        return Noisy(z, eps)

    def validate(self, stage_index: int, network: Network) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        return self.validation.judge(self.weights(network), self.config.validation_steps)

    def save(self, stage_index: int, network: Network, metrics: Mapping[str, float], *, best: bool = False) -> None:
        facts = {
            "role": "teacher",
            # How many steps its one level is for.
            **({"num_steps": 1} if self.config.levels == "noisiest" else {}),
            "pairs_key": self.manifest.key,
            "config": runs.recorded_settings(self.config),
            "validation": dict(metrics),
        }
        url = storage.join(self.config.output, BEST_WEIGHTS if best else WEIGHTS)
        save_network(url, replace(self.weights(network), facts=facts))

    @cached_property
    def manifest(self) -> Manifest:
        return shards.read_manifest(self.config.pairs, "pairs")

    def weights(self, network: Network) -> NetworkFile:
        file = NetworkFile(network=network, schedule=self.config.schedule)
        if not network.config.takes_gain:
            return file
        return replace(file, brightness=split_brightness(self.manifest), contrast=split_contrast(self.manifest))


def draw_training_levels(
    schedule: NoiseSchedule, batch: int, generator: torch.Generator, levels: TrainingLevels = "all"
) -> Tensor:
    """Continuous levels [B] where the generator is: uniform over the table's steps, then within one (Chen et al. 2020,
    WaveGrad); or the noisiest of the sampler, and nothing is drawn."""
    device = generator.device
    table = schedule.sqrt_alpha_bar.to(device)
    if levels == "noisiest":
        return table[schedule.num_steps].expand(batch)
    index = torch.randint(1, schedule.num_steps + 1, (batch,), generator=generator, device=device)
    clean, noisy = table[index - 1], table[index]
    return noisy + torch.rand(batch, dtype=torch.float64, generator=generator, device=device) * (clean - noisy)


@dataclass(frozen=True)
class CropLoader:
    """Loads training crops; the crops of every epoch are drawn independently."""

    config: TeacherConfig
    shards: tuple[RecordShard, ...]

    def __call__(self, records: NDArray[np.int64]) -> Batch:
        def load(shard: int, epoch: int, rows: NDArray[np.int64]) -> Batch:
            segment = self.segment(derive_seed(self.config.optim.seed, "epoch", epoch))
            return load_crops(self.config.pairs, self.shards[shard], segment, rows)

        return gather(records, load)

    def segment(self, seed: int) -> SegmentConfig:
        config = self.config
        return SegmentConfig(
            crop=config.crop,
            crops=config.crops_per_image,
            min_scale=config.min_scale,
            brightness_jitter=config.brightness_jitter,
            seed=seed,
        )


def make_stream(config: TeacherConfig) -> Stream:
    """Crops of the training split; one shard is mixed at a time, so that an image is decoded once for all its crops."""
    manifest = shards.read_manifest(config.pairs, "pairs")
    record_shards = tuple(
        RecordShard(name=entry.name, pairs=entry, start=0, stop=entry.rows * config.crops_per_image)
        for entry in split_shards(manifest, "train")
    )
    order = Order(shard_rows=tuple(shard.rows for shard in record_shards), seed=config.optim.seed, mix_shards=1)
    key = shards_hash([shard.pairs for shard in record_shards])
    return Stream(
        stages=[StageRecords(order=order, load=CropLoader(config, record_shards), source=config.pairs, key=key)],
        steps=config.optim.steps,
        batch_size=config.optim.batch_size,
        row_bytes=2 * 3 * config.crop**2,
        accumulate=config.optim.accumulate,
        span_steps=max(1, SPAN_SAMPLES // config.optim.batch_size),
    )


def check_inputs(config: TeacherConfig) -> None:
    """Raises a ValueError if workers, pairs or settings cannot be used, or `init` holds another network's weights."""
    check_workers(config.optim, config.compute)
    check_room(config.compute)
    ValidationImages(config.pairs, config.checkpoint).check()
    config.schedule.grid(config.validation_steps)
    if not config.init:
        return
    file = load_network(config.init)
    has = {**describe(file.network.config), "schedule": asdict(file.schedule)}
    wanted = {**describe(config.network_config), "schedule": asdict(config.schedule)}
    shards.require_match(has, wanted, config.init)


def describe(config: NetworkConfig) -> dict[str, Any]:
    return {"network": kind_of(config), "settings": asdict(config)}


def train_teacher(config: TeacherConfig) -> Report:
    """Trains the teacher; resumes an earlier run of the same output.

    Raises:
        ValueError: if the pairs or the output cannot be used, the run was started with another config, or the
            weights to start from are of another network.
    """
    check_inputs(config)
    weights = storage.join(config.output, WEIGHTS)
    stream = make_stream(config)
    settings = runs.record_config(config.output, config, stream)
    done = runs.finished(config.output, [WEIGHTS])
    with tracked_run(config.tracking, config.output, config, job="train_teacher", done=done) as run:
        if not done:
            runs.train(make_loop(config, run, settings), stream, config.output)
    row = {"weights": weights, **load_network(weights).facts["validation"]}
    report = Report(title="Teacher", rows=[row], facts={"steps": config.optim.steps}, url=config.output)
    return runs.save_report(report, f"The teacher is already trained: {weights}" if done else "")


def make_loop(config: TeacherConfig, run: RunHandle, settings: runs.Settings | None = None) -> Loop:
    objective = TeacherObjective(config, ValidationImages(config.pairs, config.checkpoint))
    return Loop.from_config(config, objective, run, settings)


def plan_train_teacher(config: TeacherConfig) -> Report:
    """The plan of `train_teacher` (`--dry-run`)."""
    check_inputs(config)
    order = make_stream(config).stages[0].order
    parameters = sum(parameter.numel() for parameter in build(config.network_config).parameters())
    row = {
        "parameters": parameters,
        "images": order.num_records // config.crops_per_image,
        "steps": config.optim.steps,
        "epochs": config.optim.steps * config.optim.batch_size / order.num_records,
        "from_step": runs.latest_step(config.output),
    }
    return Report(title="Plan of train_teacher", rows=[row])
