"""Training state, and its checkpoints: one safetensors file with everything that is needed to resume, no pickle."""

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from safetensors import safe_open
from safetensors.torch import save as encode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipelines import shards
from pipelines.config.parts import OptimConfig
from reddit_core.networks import Network

STATE_FILE = "state.safetensors"
STEP_PREFIX = "step-"
# Names in the file of the fields of `TrainState` that are no tensors.
FACTS = {"stage": "stage_index", "step": "step", "skipped": "skipped", "best": "best", "validated": "validated"}


def ema_update(decay: float) -> Any:
    """`ema <- d ema + (1 - d) weights`, where d warms up as (1 + n) / (10 + n) until it reaches `decay`."""

    @torch.no_grad()
    def update(averaged: tuple[Tensor, ...], current: tuple[Tensor, ...], num_averaged: Tensor) -> None:
        n = float(num_averaged)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return update


@dataclass(kw_only=True)
class TrainState:
    """Everything that a training step changes.

    Attributes:
        stage_index: position of the current stage, from 0.
        step: optimizer steps made in the stage.
        skipped: steps of the stage whose loss or gradient was not finite.
        network: the network that is trained, float32.
        ema: its exponential moving average.
        best: the stage's best validation so far (`loop.BEST_METRICS`).
        validated: its last validation: `metrics`, the global `step`, and `timestamp_ms`; empty before the first.
    """

    stage_index: int
    step: int
    skipped: int
    network: Network
    ema: AveragedModel
    optimizer: torch.optim.AdamW
    best: float = -math.inf
    validated: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, stage_index: int, network: Network, optim: OptimConfig) -> "TrainState":
        network.train().requires_grad_(True)
        ema = AveragedModel(network, multi_avg_fn=ema_update(optim.ema_decay), use_buffers=False)
        ema.eval().requires_grad_(False)
        fused = next(network.parameters()).device.type == "cuda"
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=fused
        )
        return cls(stage_index=stage_index, step=0, skipped=0, network=network, ema=ema, optimizer=optimizer)

    @property
    def ema_network(self) -> Network:
        """The averaged network."""
        network = self.ema.module
        assert isinstance(network, Network)
        return network

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The network's parameters, cached: walking its modules takes longer than averaging on a GPU."""
        return list(self.network.parameters())

    @cached_property
    def averages(self) -> list[Tensor]:
        """The averaged network's parameters."""
        return [parameter.detach() for parameter in self.ema_network.parameters()]

    def average(self) -> None:
        """Updates the average as `AveragedModel.update_parameters` does, with the cached parameters."""
        values = [parameter.detach() for parameter in self.parameters]
        if self.ema.n_averaged > 0:
            assert self.ema.multi_avg_fn
            self.ema.multi_avg_fn(self.averages, values, self.ema.n_averaged)
        else:
            torch._foreach_copy_(self.averages, values)
        self.ema.n_averaged += 1

    def global_step(self, optim: OptimConfig) -> int:
        return self.stage_index * optim.steps + self.step


@dataclass(frozen=True)
class SavedState:
    """A state in a local folder, to be uploaded under a name that contains its global step."""

    folder: str
    name: str


def save(state: TrainState, optim: OptimConfig, settings: Mapping[str, Any]) -> SavedState:
    """Writes the state and the run's settings to a temporary folder.

    Raises:
        OSError: if it cannot be written, for example because the disk is full.
    """
    tensors = {f"unet/{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in state.ema_network.state_dict().items()}
    for name, parameter in state.network.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    facts = {name: getattr(state, attribute) for name, attribute in FACTS.items()}
    facts["averaged"] = int(state.ema.n_averaged)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = encode(contiguous, {"state": json.dumps(facts), "settings": json.dumps(settings)})
    folder = tempfile.mkdtemp(prefix="reddit-checkpoint-")
    try:
        (Path(folder) / STATE_FILE).write_bytes(data)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return SavedState(folder, f"{STEP_PREFIX}{state.global_step(optim):09d}")


def report(metrics: Mapping[str, Any], saved: SavedState | None) -> None:
    """Reports to Ray Train; must be called on every worker. The state is uploaded while training continues."""
    ray.train.report(
        dict(metrics),
        checkpoint=Checkpoint.from_directory(saved.folder) if saved else None,
        checkpoint_dir_name=saved.name if saved else None,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )


def checkpoint_step(checkpoint: Checkpoint) -> int:
    """The global step at which a checkpoint was saved, from its folder's name."""
    return int(Path(checkpoint.path).name.removeprefix(STEP_PREFIX))


def restore(state: TrainState, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Loads a checkpoint's weights, average and optimizer into a newly begun state.

    Raises:
        ValueError: if the checkpoint belongs to a run with other settings or records.
    """
    with checkpoint.as_directory() as folder, safe_open(Path(folder) / STATE_FILE, "pt") as file:
        metadata = file.metadata()
        facts = json.loads(metadata["state"])
        found = json.loads(metadata["settings"])
        shards.require_match(found, settings, f"the checkpoint {checkpoint.path}")
        parts: dict[str, dict[str, Tensor]] = {"unet": {}, "ema": {}, "optimizer": {}}
        names: list[str] = file.keys()
        for key in names:
            part, _, name = key.partition("/")
            parts[part][name] = file.get_tensor(key)
    state.network.load_state_dict(parts["unet"])
    state.ema_network.load_state_dict(parts["ema"])
    state.ema.n_averaged.fill_(facts["averaged"])
    fused = state.optimizer.defaults["fused"]
    for name, parameter in state.network.named_parameters():
        keys = ("step", "exp_avg", "exp_avg_sq")
        values = {key: parts["optimizer"].get(f"{name}/{key}") for key in keys}
        state.optimizer.state[parameter] = {
            key: place_like(key, value, parameter, fused=fused) for key, value in values.items() if value is not None
        }
    for name, attribute in FACTS.items():
        setattr(state, attribute, facts[name])


def place_like(key: str, value: Tensor, parameter: Tensor, *, fused: bool) -> Tensor:
    """A restored value of AdamW's state, on the device and in the memory layout that the optimizer's kernel requires.

    AdamW keeps its step count on the CPU, unless it is fused: then on the parameter's device.
    """
    if key == "step":
        return value.to(parameter.device) if fused else value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
