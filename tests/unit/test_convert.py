"""Released weights with any number of groups become safetensors that every job reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipelines import storage
from pipelines.config.use import ConvertConfig
from pipelines.convert import WEIGHTS, convert, plan_convert
from pipelines.weights import load_hashed_network, load_network, save_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.weights import NetworkFile

SHAPE = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4, prediction="eps")


@pytest.fixture
def config(tmp_path: Path, save_pth: Callable[[dict[str, Tensor]], bytes]) -> ConvertConfig:
    """Of a released network with four groups."""
    torch.manual_seed(0)
    url = str(tmp_path / "I1_gen.pth")
    state = {f"denoise_fn.{name}": value for name, value in UNet(SHAPE).state_dict().items()}
    storage.write_bytes(url, save_pth({**state, "betas": torch.linspace(1e-4, 2e-2, 129)}))
    return ConvertConfig(weights=url, output=str(tmp_path / "converted"), norm_groups=4, steps=2)


def test_what_is_written_is_the_same_network(config: ConvertConfig) -> None:
    report = plan_convert(config)
    assert not Path(config.output).exists()
    assert convert(config).facts == report.facts
    there, (released, sha256) = load_network(f"{config.output}/{WEIGHTS}"), load_hashed_network(config.weights, 4)
    assert there.network.config == SHAPE and there.schedule == released.schedule
    assert there.facts == {"converted_from_sha256": sha256, "num_steps": 2}
    inputs = {"z": torch.randn(1, 3, 8, 8), "sqrt_alpha_bar": torch.rand(1), "low": torch.randn(1, 3, 8, 8)}
    with torch.no_grad():
        assert torch.equal(there.network(**inputs), released.network(**inputs))


def test_a_second_run_finds_it_done_and_another_network_is_rejected(config: ConvertConfig) -> None:
    convert(config)
    assert convert(config).title.startswith("Already converted")
    with pytest.raises(ValueError, match=r"norm_groups is 4, asked for 2; use another output"):
        convert(replace(config, norm_groups=2))


def test_a_pth_that_needs_converting_says_so(config: ConvertConfig) -> None:
    with pytest.raises(ValueError, match=r"norm_groups \(32\).*jobs/convert\.py --norm-groups N reads a \.pth with"):
        load_network(config.weights)


def test_weights_of_this_project_need_no_converting(config: ConvertConfig, tiny_unet: UNet, tmp_path: Path) -> None:
    url = str(tmp_path / "ours.safetensors")
    save_network(url, NetworkFile(network=tiny_unet))
    with pytest.raises(ValueError, match=r"which every job reads as it is; give the URL of a released \.pth"):
        convert(replace(config, weights=url))
