"""Training on a cluster that loses the node of a worker midway, and gets another one.

python -m tests.ray.train_without_a_node PAIRS OUTPUT fixed|elastic
"""

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from pipelines.config.parts import CheckpointConfig, OptimConfig, StudentTrackingConfig, TrainingComputeConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.training import runs, teacher
from tests.ray.processes import started, wait_until
from tests.ray.tiny import UNET

# Elastic: long enough for a new node to be taken in, which Ray Train looks for once a minute.
STEPS = {"fixed": 200, "elastic": 5000}


def trains(raylet: int) -> bool:
    return bool(started("RayTrainWorker", below=raylet))


def num_workers(nodes: list[Any]) -> int:
    return sum(trains(node.all_processes["raylet"][0].process.pid) for node in nodes)


def main() -> None:
    pairs, output, kind = sys.argv[1:]
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=3) for _ in range(2)]
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    config = TeacherConfig(
        pairs=pairs,
        output=output,
        network="sr3-unet",
        unet=UNET,
        crop=16,
        crops_per_image=2,
        optim=OptimConfig(steps=STEPS[kind], batch_size=4, warmup_steps=2, ema_decay=0.9),
        compute=TrainingComputeConfig(workers=1 if kind == "fixed" else (1, 2), cpus_per_worker=2, threads=1),
        checkpoint=CheckpointConfig(every=20, validate_every=0),
        tracking=StudentTrackingConfig(enabled=False),
    )
    job = threading.Thread(target=teacher.train_teacher, args=(config,))
    job.start()
    wait_until(lambda: Path(output, "checkpoints", "step-000000020").exists())
    print("workers", max(1, num_workers(nodes)), flush=True)
    lost = next(node for node in nodes if trains(node.all_processes["raylet"][0].process.pid))
    cluster.remove_node(lost, allow_graceful=False)
    nodes.remove(lost)
    print("killed the node at step", runs.latest_step(output), flush=True)
    if kind == "elastic":
        before = runs.latest_step(output)
        wait_until(lambda: runs.latest_step(output) > before + 40)
        print("workers", num_workers(nodes), flush=True)
        nodes.append(cluster.add_node(num_cpus=3))
        wait_until(lambda: num_workers(nodes) == 2 or not job.is_alive())
        print("workers", num_workers(nodes), flush=True)
    job.join()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
