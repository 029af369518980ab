"""Joining or starting Ray, quietly."""

import logging
import os
from typing import Any

import ray

from pipelines.config_parts import ComputeConfig

MIN_LOGICAL_CPUS = 4
# Ray Data and Ray Train report progress through our own lines instead (see RAY notes in infra/README.md).
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray(*, dashboard: bool = False) -> None:
    """Connects to the cluster of `RAY_ADDRESS` (set inside `ray job submit`), else starts a local one.

    A local cluster has at least four logical CPUs, because Ray Data and Ray Train starve each other on
    two. Its `dashboard`, on loopback, costs seconds; sweeps need it to take back what stopped trials held.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {name: os.environ[name] for name in QUIET}},
        "logging_level": logging.ERROR,
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"num_cpus": max(MIN_LOGICAL_CPUS, os.cpu_count() or 1), "include_dashboard": dashboard}
    ray.init(**options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("GPU", 0))


def torch_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker: what was asked for, else an equal share of this machine's cores."""
    return compute.threads or max(1, (os.cpu_count() or 1) // compute.workers)
