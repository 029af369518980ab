"""Starting or joining Ray, its resources, and pools of actors."""

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.util.annotations import RayDeprecationWarning

from pipelines import QUIET, storage
from pipelines.config.parts import ComputeConfig, urls_of
from pipelines.console import warn

MIN_LOGICAL_CPUS = 4
# What Ray Data reserves for a task unless told otherwise.
TASK_CPUS = 1.0
ROUND = 10_000
# Files there are pages of memory (tmpfs).
MEMORY_FOLDER = "/dev/shm"
# Until Ray finds a node dead, calls to its actors fail and are repeated: three were used up before that.
MOST_RETRIES = 10
# Ray Data has no other way to say how often an actor's calls are repeated (docs/upgrading.md).
warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", RayDeprecationWarning)

Item = TypeVar("Item")


def start_ray(*, dashboard: bool = False, serves: bool = False) -> None:
    """Connects to the cluster of `RAY_ADDRESS` (set inside `ray job submit`), else starts a local one.

    A local cluster has at least four logical CPUs, because Ray Data and Ray Train starve each other on
    two. Its `dashboard`, on loopback, takes seconds to start; sweeps need it to free the resources of stopped trials.
    With `serves`, for a service, objects that its store has no room for go to another place in memory, and not to a
    disk; and its processes keep the usual priority: lowered by 15, as Ray has it, they served 0.83 times as much.
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
        # Explicit, or Ray would join any cluster that it finds on this machine.
        options["address"] = "local"
        options |= {"num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1), "include_dashboard": dashboard}
        options["dashboard_port"] = free_port()
        if serves:
            os.environ.setdefault("RAY_worker_niceness", "0")  # which the processes of Ray read
            options["object_spilling_directory"] = MEMORY_FOLDER
        # Explicit, because workers look for the dashboard among the processes of the machine, and would find that
        # of another cluster.
        variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{options['dashboard_port']}"
    ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def free_port() -> int:
    """A TCP port of the loopback interface that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rounds(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items in parts of at most `ROUND`: a Ray Data pipeline has one block per item, which its driver tracks."""
    for start in range(0, len(items), ROUND):
        yield items[start : start + ROUND]


def reject_local_urls(config: Any, shared_folder: str = "") -> None:
    """Rejects local paths where tasks may run on other machines, which do not see this machine's disks.

    Args:
        config: config of the job.
        shared_folder: a folder that all machines mount; paths below it are accepted.

    Raises:
        ValueError: names the first such setting.
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
    """Whether tasks may run on another machine; also true of a cluster without CPUs, which waits for machines."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    machines = {(node["NodeManagerHostname"], node["NodeManagerAddress"]) for node in nodes if node["Alive"]}
    return len(machines) > 1 or not resources().get("CPU")


def resources() -> dict[str, float]:
    """Resources of the whole cluster by name, such as CPU and GPU."""
    return ray.cluster_resources()  # type: ignore[no-untyped-call,no-any-return]


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(resources().get("GPU", 0))


def use_gpu(compute: ComputeConfig) -> bool:
    """Whether each worker or actor gets a GPU."""
    return compute.gpu == "yes" or (compute.gpu == "auto" and num_gpus() > 0)


def device_of(compute: ComputeConfig) -> str:
    """The torch device of each worker or actor: `cuda` or `cpu`."""
    return "cuda" if use_gpu(compute) else "cpu"


def actor_pool(compute: ComputeConfig, *, calls: int = 1, in_flight: int | None = None) -> dict[str, Any]:
    """Keyword arguments of `Dataset.map_batches` for a pool of actors of the configured size and resources.

    Ray restarts an actor whose process or node dies, and repeats its calls, each up to `MOST_RETRIES` times.

    Args:
        calls: calls that run in one actor at a time, in threads.
        in_flight: calls that are assigned to an actor, running ones included; by default as many as Ray Data chooses.
    """
    gpu = use_gpu(compute)
    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=compute.min_workers,
            max_size=compute.max_workers,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=in_flight,
            enable_true_multi_threading=calls > 1,
        ),
        # Not without limit: a process that is killed for memory is killed again at every retry.
        "max_task_retries": MOST_RETRIES,
        "num_gpus": 1 if gpu else None,
        "num_cpus": None if gpu else compute.cpus_per_worker,
    }


def check_gpus(compute: ComputeConfig) -> None:
    """Rejects workers that would wait forever for GPUs that are not there.

    Raises:
        ValueError: on a local Ray; on a cluster, which may autoscale, it only prints a warning.
    """
    if use_gpu(compute) and compute.min_workers > num_gpus():
        require_or_warn(
            f"{compute.min_workers} workers need a GPU each, but Ray has {num_gpus()}; lower compute.workers, or use "
            "--compute.gpu no"
        )


def check_room(compute: ComputeConfig, more_cpus: float = 0.0) -> None:
    """Rejects workers that would wait forever: for GPUs, or because they reserve the CPU that loads their data.

    Args:
        more_cpus: logical CPUs that are reserved besides those of the workers.

    Raises:
        ValueError: on a local Ray; on a cluster, which may autoscale, it only prints a warning.
    """
    check_gpus(compute)
    workers = min(compute.max_workers, num_gpus()) if num_gpus() and use_gpu(compute) else compute.max_workers
    reserved, there = workers * compute.cpus_per_worker + more_cpus, resources().get("CPU", 0.0)
    if reserved + TASK_CPUS <= there:
        return
    require_or_warn(
        f"the workers reserve {reserved:g} CPUs, and loading their data needs {TASK_CPUS:g} more, but Ray has "
        f"{there:g}; lower compute.workers or compute.cpus-per-worker"
    )


def require_or_warn(message: str) -> None:
    """Raises ValueError on a local Ray; on a cluster, which may autoscale, only prints a warning."""
    if not os.environ.get("RAY_ADDRESS"):
        raise ValueError(message)
    warn(f"{message}, unless machines are added")
