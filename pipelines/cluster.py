"""Joining or starting Ray, quietly."""

import logging
import os
import socket
from typing import Any

import ray

from pipelines import QUIET
from pipelines.config_parts import ComputeConfig

MIN_LOGICAL_CPUS = 4


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


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("GPU", 0))


def torch_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker: what was asked for, else an equal share of this machine's cores."""
    return compute.threads or max(1, (os.cpu_count() or 1) // compute.max_workers)
