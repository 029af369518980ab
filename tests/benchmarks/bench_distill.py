"""One distillation step: from the cache, with the teacher online, and as the released loop makes it.

    python tests/benchmarks/bench_distill.py [--device auto|cpu|cuda] [--rounds 7] [--profile]

`cached` and `online` are steps of the product's own worker on the same records, with and without the teacher's targets.
`released` is the authors' way, written down from the method (docs/method.md) in plain PyTorch, on the same crops: a
U-Net of their kind, float32, one t for the batch, the teacher in the loop, and PyTorch's default settings; `--network
released` takes that U-Net for our steps too. At least 1.5 times as many steps are wanted from the cache as online (5/3
is all that two of five forwards can give). Against the released loop, 6 times are wanted on a CPU and 20 on a GPU; with
its own network 1.7 and 6. `share` is the rate of a cached step's operations, forward and backward, over that of a large
bf16 matrix product: at least 0.35 is wanted on a GPU.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from measuring import (
    DeviceName,
    NetworkName,
    Size,
    compare,
    facts_about,
    flops_of,
    make_network,
    make_records,
    matmul,
    pick_device,
    released_network,
    seconds_of,
    show_with_profiles,
    size_for,
    take_turns,
    top_operations,
)
from torch import Tensor
from torch.nn import functional

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import CheckpointConfig, OptimConfig, StudentTrackingConfig, TrainingComputeConfig
from pipelines.reporting import Report
from pipelines.tracking.handle import OFF
from pipelines.training.distillation import DistillObjective
from pipelines.training.loop import Loop, Worker
from pipelines.weights import save_network
from reddit_core.networks import Network
from reddit_core.pixels import signed_from_pixels
from reddit_core.precision import Precision
from reddit_core.retinex import ReflectanceConfig, reflectance
from reddit_core.weights import NetworkFile

CACHED_TARGET = 1.5
RELEASED_TARGETS = {"default": {"cpu": 6.0, "cuda": 20.0}, "released": {"cpu": 1.7, "cuda": 6.0}}
SHARE_TARGET = 0.35
REFINE_WEIGHT = 0.8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    device: DeviceName = "auto"
    network: NetworkName = "default"
    """Of our steps."""
    precision: Precision = "bf16"
    """Of our steps; the released loop is float32."""
    rounds: int = 7
    """Turns of each, of which the median counts."""
    batch: int = 0
    """Records to a step; 0 takes 8 on a CPU, 32 on a GPU."""
    crop: int = 0
    """Side of the crops; 0 takes 128."""
    threads: int = 1
    """Torch CPU threads."""
    compile: bool = False
    """Our steps through torch.compile."""
    profile: bool = False
    """Also show which operations the time of a step goes to."""


class ReleasedLoop:
    """A step of the released training, for a network that predicts `eps`: a_t, a_u, a_s are numbers of the batch."""

    def __init__(self, size: Size, device: torch.device) -> None:
        config = replace(released_network(on_gpu=device.type == "cuda"), prediction="eps")
        self.teacher = make_network(config).to(device).eval()
        self.student = copy.deepcopy(self.teacher).train()
        self.average = copy.deepcopy(self.teacher)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-4, foreach=False, fused=False)
        records = make_records(size, targets=False)
        self.low, self.normal = (
            signed_from_pixels(records["low"], device),
            signed_from_pixels(records["normal"], device),
        )
        self.eps = torch.tensor(records["eps"], device=device)
        self.levels = tuple(float(level) for level in records["levels"][0])

    def estimate(self, network: Network, z: Tensor, a: float) -> tuple[Tensor, Tensor]:
        eps = network(z, torch.full((len(z),), a, device=z.device), low=self.low)
        return (z - (1 - a * a) ** 0.5 * eps) / a, eps

    @torch.no_grad()
    def targets(self, z_t: Tensor) -> tuple[Tensor, Tensor]:
        a_t, a_u, a_s = self.levels
        sigma_t, sigma_u, sigma_s = ((1 - a * a) ** 0.5 for a in self.levels)
        x_t, eps_t = self.estimate(self.teacher, z_t, a_t)
        x_u, eps_u = self.estimate(self.teacher, a_u * x_t + sigma_u * eps_t, a_u)
        z_s = a_s * x_u + sigma_s * eps_u
        z_s = z_s + REFINE_WEIGHT * a_s * (reflectance(self.low, ReflectanceConfig(range="released")) - x_u)
        k = sigma_s / sigma_t
        x_target = (z_s - k * z_t) / (a_s - k * a_t)
        return x_target, (z_t - a_t * x_target) / sigma_t

    def step(self) -> None:
        a_t = self.levels[0]
        z_t = a_t * self.normal + (1 - a_t * a_t) ** 0.5 * self.eps
        x_target, eps_target = self.targets(z_t)
        x_0, eps = self.estimate(self.student, z_t, a_t)
        distill = torch.maximum(functional.mse_loss(x_0, x_target), functional.mse_loss(eps, eps_target))
        pixel = torch.maximum(functional.mse_loss(x_0, self.normal), functional.mse_loss(eps, self.eps))
        self.optimizer.zero_grad()
        (distill + pixel).backward()
        self.optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(self.average.parameters(), self.student.parameters(), strict=True):
                averaged.mul_(0.999).add_(parameter, alpha=0.001)


def our_worker(settings: Settings, size: Size, device: torch.device) -> Worker:
    """The worker of `distill`, begun on its first stage."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(Path(folder) / "teacher.safetensors")
        save_network(teacher, NetworkFile(network=make_network(size.network), brightness=0.5))
        optim = OptimConfig(batch_size=size.batch, precision=settings.precision, compile=settings.compile)
        config = DistillConfig(
            trajectories="online",  # the worker has a teacher, for the batches that come without targets
            pairs=".",
            teacher=teacher,
            output=".",
            stages=(4,),
            optim=optim,
            tracking=StudentTrackingConfig(enabled=False),
        )
        loop = Loop(
            objective=DistillObjective(config, None, ""),
            optim=optim,
            checkpoint=CheckpointConfig(),
            compute=TrainingComputeConfig(),
            run=OFF,
        )
        worker = Worker(loop, 0, 1, device, None)
        worker.begin_stage(0)
    return worker


def bench(settings: Settings) -> tuple[Report, dict[str, str]]:
    """The ratios, and, if wanted, the profile of each kind of step."""
    device = pick_device(settings.device, settings.threads)
    size = size_for(device, settings.crop, settings.batch, settings.network)
    worker, released = our_worker(settings, size, device), ReleasedLoop(size, device)
    with_targets, without = (make_records(size, targets=targets) for targets in (True, False))
    calls: dict[str, Callable[[], object]] = {
        "cached": lambda: worker.step(with_targets),
        "online": lambda: worker.step(without),
        "released": released.step,
    }
    product, product_flops = matmul(device)
    costs = take_turns({"matmul": product, **calls}, settings.rounds, device)
    limits = {"online": (CACHED_TARGET, "5/3"), "released": (RELEASED_TARGETS[settings.network][device.type], "-")}
    rows = [
        {
            "cached against": name,
            "seconds_cached": seconds_of(costs["cached"]),
            "seconds_other": seconds_of(costs[name]),
            **compare(costs[name], costs["cached"]),
            "wanted": wanted,
            "limit": limit,
        }
        for name, (wanted, limit) in limits.items()
    ]
    rate = flops_of(make_network(size.network), size, training=True) / seconds_of(costs["cached"])
    share = rate / (product_flops / seconds_of(costs["matmul"]))
    profiles = {name: top_operations(call, device) for name, call in calls.items()} if settings.profile else {}
    facts = {**facts_about(device, size), "precision": settings.precision, "compile": settings.compile}
    facts |= {"share of the bf16 matmul rate": share, "share wanted on a GPU": SHARE_TARGET}
    return Report(title="A distillation step from the cache", rows=rows, facts=facts), profiles


if __name__ == "__main__":
    show_with_profiles(*bench(tyro.cli(Settings)))
