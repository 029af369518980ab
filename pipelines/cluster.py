"""Joining or starting Ray, quietly."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import ray
from rich.console import Console

from pipelines import QUIET, storage
from pipelines.config.parts import ComputeConfig, urls_of

MIN_LOGICAL_CPUS = 4
# What Ray Data reserves for a task unless told otherwise.
TASK_CPUS = 1.0
ROUND = 10_000

Item = TypeVar("Item")


def start_ray(*, dashboard: bool = False) -> None:
    """Connects to the cluster of `RAY_ADDRESS` (set inside `ray job submit`), else starts a local one.

    A local cluster has at least four logical CPUs, because Ray Data and Ray Train starve each other on
    two. Its `dashboard`, on loopback, costs seconds; sweeps need it to take back what stopped trials held.
    """
    if ray.is_initialized():
        return
    variables = {name: os.environ[name] for name in QUIET}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": variables},
        "logging_level": logging.ERROR,
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    if not os.environ.get("RAY_ADDRESS"):
        # Said outright: else Ray joins any cluster that it finds on this machine.
        options["address"] = "local"
        options |= {"num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1), "include_dashboard": dashboard}
        options["dashboard_port"] = free_port()
        # Said outright, because workers look for the dashboard among the processes of the machine, and several
        # clusters on one machine confuse them.
        variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{options['dashboard_port']}"
    ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rounds(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in parts that one Ray Data pipeline can take, each as a block that its driver keeps track of."""
    for start in range(0, len(items), ROUND):
        yield items[start : start + ROUND]


def refuse_local_urls(config: Any, shared_folder: str = "") -> None:
    """Refuses local paths where work may land on other machines, which would not find them or leave them there.

    Args:
        config: the job's.
        shared_folder: a folder that all machines mount; paths below it are what they see too.

    Raises:
        ValueError: naming the first such setting.
    """
    if not is_spread_out():
        return
    shared = storage.resolve(shared_folder) if shared_folder else ""
    for name, url in urls_of(config):
        if storage.is_local(url) and not (shared and f"{url}/".startswith(f"{shared.rstrip('/')}/")):
            raise ValueError(
                f"{name} is {url}, a local path, but the cluster's machines do not see each other's disks; use s3:// "
                "or another store that all can open, or state the folder that they all mount: --shared-folder FOLDER"
            )


def is_spread_out() -> bool:
    """Whether work may land on another machine; a cluster without any CPU waits for machines to be added."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {(node["NodeManagerHostname"], node["NodeManagerAddress"]) for node in nodes if node["Alive"]}
    return len(machines) > 1 or not resources().get("CPU")


def resources() -> dict[str, float]:
    """What the whole cluster has."""
    return ray.cluster_resources()  # type: ignore[no-untyped-call,no-any-return]


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(resources().get("GPU", 0))


def use_gpu(compute: ComputeConfig) -> bool:
    """Whether each worker or actor gets a GPU."""
    return compute.gpu == "yes" or (compute.gpu == "auto" and num_gpus() > 0)


def check_gpus(compute: ComputeConfig) -> None:
    """Workers that would wait without end for GPUs that are not there.

    Raises:
        ValueError: if Ray is local; a cluster may grow, so there it is only pointed out.
    """
    if use_gpu(compute) and compute.min_workers > num_gpus():
        point_out(
            f"{compute.min_workers} workers need a GPU each, but Ray has {num_gpus()}; lower compute.workers, or use "
            "--compute.gpu no"
        )


def check_room(compute: ComputeConfig, more_cpus: float = 0.0) -> None:
    """What would wait without end: too few GPUs, or workers that reserve every CPU, so that nothing loads their data.

    Args:
        more_cpus: what is reserved beside the workers.

    Raises:
        ValueError: if Ray is local; a cluster may grow, so there it is only pointed out.
    """
    check_gpus(compute)
    workers = min(compute.max_workers, num_gpus()) if num_gpus() and use_gpu(compute) else compute.max_workers
    reserved, there = workers * compute.cpus_per_worker + more_cpus, resources().get("CPU", 0.0)
    if reserved + TASK_CPUS <= there:
        return
    point_out(
        f"the workers reserve {reserved:g} CPUs, and loading their data needs {TASK_CPUS:g} more, but Ray has "
        f"{there:g}; lower compute.workers or compute.cpus-per-worker"
    )


def point_out(message: str) -> None:
    """Refuses what a local Ray has no room for; on a cluster, which may grow, says it and goes on."""
    if not os.environ.get("RAY_ADDRESS"):
        raise ValueError(message)
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"{message}, unless machines are added", markup=False)


def torch_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker: what was asked for, else an equal share of this machine's cores."""
    return compute.threads or max(1, (os.cpu_count() or 1) // compute.max_workers)


def steady_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker where bytes must depend neither on the number of workers nor on the machine."""
    return compute.threads or max(1, int(compute.cpus_per_worker))
