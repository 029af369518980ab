"""Training in the test's own process, which trainings through Ray are compared with."""

import torch

from pipelines.training.loop import Loop, Worker
from pipelines.training.stream import Stream


def train_here(loop: Loop, stream: Stream) -> None:
    """Trains as a single worker does, but without Ray and its data; leaves the weights."""
    worker = Worker(loop, 0, 1, torch.device("cpu"), None)
    for step in range(loop.num_steps):
        if step % stream.steps == 0:
            worker.begin_stage(step // stream.steps)
        worker.step(stream.load(step, step + 1, 0, 1))
        if worker.state.step == stream.steps:
            loop.objective.save(worker.state.stage_index, worker.state.ema_network, {})
