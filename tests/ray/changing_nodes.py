"""A cluster of three nodes with S3 as all that they share: one node dies and another joins, in precompute and distill.

python -m tests.ray.changing_nodes LOCAL_PAIRS

Each node has a loopback address of its own, so that to the jobs they are three machines.
"""

import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import ray
from ray.cluster_utils import Cluster

from jobs import distill, precompute
from jobs.cli import USAGE_ERROR, main
from pipelines import storage
from tests.ray.processes import started, wait_until

PRECOMPUTE = """--pairs s3://data/pairs --teacher s3://data/teacher.safetensors --output s3://data/changed --stages 4
    --segment.crop 32 --segment.crops 40 --records-per-shard 12 --batch-size 4 --compute.threads 1"""
DISTILL = """--pairs s3://data/pairs --teacher s3://data/teacher.safetensors --cache s3://data/changed --stages 4
    --segment.crop 32 --segment.crops 40 --output s3://data/students --optim.steps 1500 --optim.batch-size 4
    --optim.warmup-steps 2 --checkpoint.every 50 --checkpoint.validate-every 0 --compute.workers 1:2
    --compute.cpus-per-worker 2 --compute.threads 1 --tracking.no-enabled"""


def runs(node: Any, name: str) -> bool:
    """Whether a process of this kind belongs to the node."""
    return bool(started(name, below=node.all_processes["raylet"][0].process.pid))


def num_files(url: str, end: str) -> int:
    return sum(name.endswith(end) for name in storage.list_files(url))


def refused(job: Any, flags: Sequence[str]) -> bool:
    try:
        main(job, flags)
    except SystemExit as stop:
        return stop.code == USAGE_ERROR
    return False


def change(cluster: Cluster, nodes: list[Any], worker: str, address: str) -> None:
    """Kills the node that such a worker runs on, and adds another."""
    lost = next(node for node in nodes if runs(node, worker))
    cluster.remove_node(lost, allow_graceful=False)
    nodes.remove(lost)
    nodes.append(cluster.add_node(num_cpus=3, node_ip_address=address))


def main_script() -> None:
    (local_pairs,) = sys.argv[1:]
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=3, node_ip_address=f"127.0.0.{number}") for number in (2, 3)]
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    print("machines", len({node["NodeManagerAddress"] for node in ray.nodes()}), flush=True)
    assert refused(precompute.JOB, PRECOMPUTE.replace("s3://data/pairs", local_pairs).split())
    assert refused(distill.JOB, DISTILL.replace("s3://data/students", "runs/students").split())

    job = threading.Thread(target=main, args=(precompute.JOB, PRECOMPUTE.split()))
    job.start()
    wait_until(lambda: num_files("s3://data/changed", ".arrow") >= 3)
    change(cluster, nodes, "TeacherActor", "127.0.0.4")
    print("changed after", num_files("s3://data/changed", ".json"), "shards", flush=True)
    job.join()

    job = threading.Thread(target=main, args=(distill.JOB, DISTILL.split()))
    job.start()
    wait_until(lambda: num_files("s3://data/students/checkpoints", ".safetensors") >= 1)
    change(cluster, nodes, "RayTrainWorker", "127.0.0.5")
    print("changed while", "training" if job.is_alive() else "nothing ran", flush=True)
    job.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main_script()
