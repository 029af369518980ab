"""CPU threads of workers; apart from `cluster.py`, so that what runs without Ray does not import it."""

import os

from pipelines.config.parts import ComputeConfig


def torch_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker: the configured number, else an equal share of this machine's cores."""
    return compute.threads or max(1, (os.cpu_count() or 1) // compute.max_workers)


def steady_threads(compute: ComputeConfig) -> int:
    """CPU threads of one worker whose results must depend neither on the number of workers nor on the machine."""
    return compute.threads or max(1, int(compute.cpus_per_worker))
