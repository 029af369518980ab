"""Joining or starting Ray, quietly."""

import logging
import os

import ray

MIN_LOGICAL_CPUS = 4
# Ray Data and Ray Train report progress through our own lines instead (see RAY notes in infra/README.md).
QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray() -> None:
    """Connects to the cluster of `RAY_ADDRESS` (set inside `ray job submit`), else starts a local one.

    A local cluster has at least four logical CPUs, because Ray Data and Ray Train starve each other on two.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    variables = {"env_vars": {name: os.environ[name] for name in QUIET}}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=variables, logging_level=logging.ERROR)
    else:
        cpus = max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
        ray.init(num_cpus=cpus, runtime_env=variables, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def num_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))
