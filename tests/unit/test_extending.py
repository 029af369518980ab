"""docs/extending.md, "Add a network", followed for a toy: built, saved, sampled, distilled, and tiled or refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipelines.config.jobs import DistillConfig
from pipelines.enhancement.exporting import UnrolledSampler
from pipelines.training.distillation import DistillObjective
from pipelines.training.objective import StageContext
from pipelines.weights import load_network, load_student, save_network
from reddit_core import networks
from reddit_core.diffusion import predict
from reddit_core.networks import Network, Prediction, build, kind_of
from reddit_core.networks.layers import GroupNorm
from reddit_core.sampler import ddim_sample
from reddit_core.shared_statistics import SharedNetwork
from reddit_core.student import Student
from reddit_core.weights import NetworkFile, decode_network, encode_network

KIND = "toy"


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Step 1 of the page: the shape of the network."""

    channels: int = 8
    pooled: bool = False
    prediction: Prediction = "v"

    @property
    def size_multiple(self) -> int:
        return 2

    @property
    def takes_gain(self) -> bool:
        return False

    def without_dropout(self) -> "ToyConfig":
        return self

    def key_entries(self) -> dict[str, Any]:
        return {}


class ToyNetwork(Network):
    """Step 2: a convolution on both images, a norm over the whole image, and the level as one more channel."""

    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Conv2d(7, config.channels, 3, padding=1)
        self.norm = GroupNorm(2, config.channels)
        self.last = nn.Conv2d(config.channels, 3, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1) if config.pooled else nn.Identity()

    def forward(
        self,
        z: Float[Tensor, "b 3 h w"],
        sqrt_alpha_bar: Float[Tensor, " b"],
        *,
        low: Float[Tensor, "b 3 h w"],
        gain: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        level = sqrt_alpha_bar[:, None, None, None].expand_as(z[:, :1])
        features = self.norm(self.first(torch.cat([z, low, level], dim=1))).relu()
        result: Tensor = self.last(features + self.pool(features))
        return result

    def global_layers(self) -> dict[str, nn.Module]:
        return {"norm": self.norm}


class PoolingNetwork(ToyNetwork):
    """As `ToyNetwork`, and says that its pool looks at the whole image."""

    def global_layers(self) -> dict[str, nn.Module]:
        return {"norm": self.norm, "pool": self.pool}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 3: the entry of the table."""
    monkeypatch.setattr(networks, "NETWORKS", {**networks.NETWORKS, KIND: (ToyConfig, ToyNetwork)})


@pytest.fixture
def file() -> NetworkFile:
    torch.manual_seed(0)
    return NetworkFile(network=build(ToyConfig()), facts={"num_steps": 2})


@pytest.fixture
def photograph() -> np.typing.NDArray[np.uint8]:
    """[150, 131, 3], darker at one end."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 60, (150, 131, 3)) * np.linspace(0.2, 1, 131)[None, :, None]).astype(np.uint8)


def test_it_is_built_saved_and_loaded(file: NetworkFile, tmp_path: Path) -> None:
    data = encode_network(file)
    assert data == encode_network(decode_network(data))
    loaded = decode_network(data)
    assert isinstance(loaded.network, ToyNetwork) and loaded.network.config == ToyConfig()
    assert kind_of(loaded.network.config) == KIND and loaded.num_steps == 2
    url = str(tmp_path / "student-2.safetensors")
    save_network(url, file)
    saved = load_network(url).network.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in file.network.state_dict().items())


def test_a_file_of_an_unknown_kind_is_refused(file: NetworkFile, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_network(file)
    monkeypatch.setattr(networks, "NETWORKS", {k: v for k, v in networks.NETWORKS.items() if k != KIND})
    with pytest.raises(ValueError, match="of kind 'toy', but only"):
        decode_network(data)


def test_it_predicts(file: NetworkFile) -> None:
    z, low = torch.randn(2, 3, 8, 6), torch.rand(2, 3, 8, 6) * 2 - 1
    estimate = predict(file.network, z, torch.tensor([0.3, 0.9]), low=low)
    assert estimate.x_0.shape == z.shape and estimate.eps.dtype == torch.float64


def test_it_enhances_a_photograph_whole_and_in_tiles_alike(
    file: NetworkFile, photograph: np.typing.NDArray[np.uint8], tmp_path: Path
) -> None:
    url = str(tmp_path / "student-2.safetensors")
    save_network(url, file)
    student = load_student(url)
    whole, tiled = student.enhance(photograph), student.enhance(photograph, tile=64, overlap=16)
    assert whole.shape == tiled.shape == photograph.shape
    assert np.abs(whole.astype(int) - tiled.astype(int)).mean() < 2


@pytest.mark.parametrize(
    ("network_class", "reason"),
    [(ToyNetwork, "does not name it among its global layers"), (PoolingNetwork, "tiles cannot share its statistics")],
)
def test_tiling_refuses_a_layer_over_the_whole_image_that_it_does_not_know(
    network_class: type[ToyNetwork], reason: str, photograph: np.typing.NDArray[np.uint8]
) -> None:
    student = Student(NetworkFile(network=network_class(ToyConfig(pooled=True))), steps=2)
    assert student.enhance(photograph).shape == photograph.shape  # in one piece
    with pytest.raises(ValueError, match=reason):
        student.enhance(photograph, tile=64, overlap=16)
    with pytest.raises(ValueError, match=reason):
        SharedNetwork(student.network)


def test_a_teacher_of_it_is_distilled_into_a_student_of_it(file: NetworkFile, tmp_path: Path) -> None:
    url = str(tmp_path / "teacher.safetensors")
    save_network(url, file)
    config = DistillConfig(teacher=url, output=str(tmp_path / "students"), cache=str(tmp_path / "cache"))
    student = DistillObjective(config, None, "").begin(StageContext(stage_index=0, device=torch.device("cpu")))
    assert isinstance(student, ToyNetwork) and student is not file.network
    assert torch.equal(student.first.weight, file.network.get_parameter("first.weight"))


def test_its_exported_sampler_is_the_sampler(file: NetworkFile) -> None:
    low, noise = torch.rand(1, 3, 8, 8) * 2 - 1, torch.randn(1, 3, 8, 8)
    unrolled = UnrolledSampler(file, 2)(noise, low=low)
    torch.testing.assert_close(unrolled, ddim_sample(file.network, noise, file.schedule, 2, low=low))
