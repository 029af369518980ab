"""Precompute on a cluster of three nodes; the one that holds the teacher actor is killed midway.

python -m tests.ray.lose_a_node PAIRS TEACHER OUTPUT
"""

import logging
import os
import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipelines.config.jobs import PrecomputeConfig
from pipelines.config.parts import ComputeConfig, SegmentConfig
from pipelines.trajectories.precompute import precompute
from tests.ray.processes import started, wait_until


def holds_the_teacher(raylet: int) -> bool:
    return bool(started("TeacherActor", below=raylet))


def main() -> None:
    pairs, teacher, output = sys.argv[1:]
    os.environ.pop("RAY_ADDRESS", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    config = PrecomputeConfig(
        pairs=pairs,
        teacher=teacher,
        output=output,
        stages=(4,),
        segment=SegmentConfig(crop=32, crops=40),
        records_per_shard=12,
        batch_size=4,
        compute=ComputeConfig(threads=1),
    )
    job = threading.Thread(target=precompute, args=(config,))
    job.start()
    wait_until(lambda: len(list(Path(output).rglob("shards/*.json"))) >= 3, job.is_alive)
    (lost,) = [node for node in nodes if holds_the_teacher(node.all_processes["raylet"][0].process.pid)]
    cluster.remove_node(lost, allow_graceful=False)
    print("killed the node after", len(list(Path(output).rglob("shards/*.json"))), "shards", flush=True)
    job.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
