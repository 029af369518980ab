"""The model for other programs: the same as torch at any size, and what tiles of a host do to the brightness."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.config.use import ExportConfig
from pipelines.enhancement.exporting import expected_result
from pipelines.enhancement.hosting import TOLERANCE, HostProgram, export_for_hosts
from pipelines.weights import save_network
from reddit_core.brightness import luma_moments
from reddit_core.networks.film_unet import FilmUNet, FilmUNetConfig
from reddit_core.networks.sr3_unet import UNet
from reddit_core.pixels import signed_from_unit, unit_from_signed
from reddit_core.weights import NetworkFile

BRIGHTNESS = 0.4


@pytest.fixture
def file() -> NetworkFile:
    torch.manual_seed(0)
    network = FilmUNet(FilmUNetConfig(channels=(8, 8), embedding_channels=8)).eval()
    for parameter in network.parameters():  # as if it were trained: a new one's last layer is 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return NetworkFile(network=network, brightness=BRIGHTNESS, facts={"num_steps": 2})


@torch.no_grad()
def test_it_is_the_sampler_on_whole_images(file: NetworkFile) -> None:
    image = torch.rand((1, 3, 32, 48)) / 4
    program = HostProgram(file, 2).eval()
    expected = expected_result(file, 2, program.prepare.noise[..., :32, :48], signed_from_unit(image))
    torch.testing.assert_close(program(image), unit_from_signed(expected), atol=TOLERANCE, rtol=0)
    odd = program(image[..., :31, :45])
    assert odd.shape == (1, 3, 31, 45)
    assert odd.min() >= 0 and odd.max() <= 1
    assert float(luma_moments([odd])[0]) == pytest.approx(BRIGHTNESS, abs=0.01)


@torch.no_grad()
def test_tiles_of_a_host_become_equally_bright_unless_the_gain_is_fixed(file: NetworkFile) -> None:
    dark, light = torch.full((1, 3, 32, 32), 0.02), torch.full((1, 3, 32, 32), 0.1)
    by_input, fixed = HostProgram(file, 2).eval(), HostProgram(file, 2, gain=5.0).eval()
    assert float(luma_moments([by_input(dark)])[0]) == pytest.approx(
        float(luma_moments([by_input(light)])[0]), abs=0.02
    )
    assert float(fixed.prepare(dark)[2]) == float(fixed.prepare(light)[2]) == 5.0
    assert not torch.allclose(fixed(dark), by_input(dark), atol=0.01)


@pytest.mark.slow
def test_the_file_agrees_with_torch_and_lies_beside_its_description(file: NetworkFile, tmp_path: Path) -> None:
    import onnxruntime  # noqa: PLC0415 - slow to import

    url = str(tmp_path / "student.safetensors")
    save_network(url, file)
    report = export_for_hosts(ExportConfig(weights=url, output=str(tmp_path / "out"), host=True))
    assert all(row["difference"] <= TOLERANCE for row in report.rows) and len(report.rows) >= 3
    folder = tmp_path / "out" / "denoise-reddit"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[:2]) == ("input", "tensor(float)", [1, 3])
    assert given.name == "output"
    described = json.loads((folder / "config.json").read_text())
    assert {"id": "denoise-reddit", "task": "denoise", "backend": "onnx", "num_inputs": 1}.items() <= described.items()


def test_a_gain_is_for_networks_that_are_told_one(tiny_unet: UNet, tmp_path: Path) -> None:
    url = str(tmp_path / "student.safetensors")
    save_network(url, NetworkFile(network=tiny_unet, facts={"num_steps": 2}))
    with pytest.raises(ValueError, match="gain is 4, but this network is told none"):
        export_for_hosts(ExportConfig(weights=url, output=str(tmp_path / "out"), host=True, gain=4.0))
    with pytest.raises(ValueError, match="it is used with --host only"):
        ExportConfig(weights=url, output="o", gain=4.0)
