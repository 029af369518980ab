"""ONNX Runtime and torch.export against the sampler."""

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.config.use import ExportConfig
from pipelines.enhancement import exporting
from pipelines.enhancement.exporting import export, onnx_session, plan_export, run_onnx
from pipelines.model_card import HEADING
from pipelines.weights import save_network
from reddit_core.brightness import luma_moments
from reddit_core.networks import Prediction
from reddit_core.networks.film_unet import FilmUNet, FilmUNetConfig
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.sampler import ddim_sample
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile


def file_of(prediction: Prediction = "v", **facts: Any) -> NetworkFile:
    torch.manual_seed(0)
    config = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4, prediction=prediction)
    return NetworkFile(network=UNet(config).eval(), facts=facts)


@pytest.mark.parametrize(("prediction", "steps"), [("v", 2), ("eps", 1), ("x", 2)])
def test_what_is_exported_gives_the_samplers_results(prediction: Prediction, steps: int) -> None:
    file = file_of(prediction)
    inputs = exporting.example(file, exporting.EXAMPLE_SIZE)
    with torch.no_grad():
        found = exporting.UnrolledSampler(file, steps)(**inputs)
        expected = ddim_sample(file.network, inputs["noise"], file.schedule, steps, low=inputs["low"])
    torch.testing.assert_close(found, expected)


@pytest.mark.slow  # each export takes as long as a hundred other tests; the quick one is of the default network, below
@pytest.mark.parametrize(("prediction", "steps"), [("v", 2), ("eps", 1), ("x", 2)])
def test_exports_give_the_samplers_results(
    tmp_path: Path, prediction: Prediction, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(prediction, num_steps=steps)
    weights, output = tmp_path / "student.safetensors", tmp_path / "exported"
    save_network(str(weights), file)
    (tmp_path / "README.md").write_text(f"{HEADING}\n\nthe card\n")
    report = export(ExportConfig(weights=str(weights), output=str(output)))
    assert len(report.rows) == 4
    assert all(row["diff"] <= 1e-4 for row in report.rows)
    card = (output / "README.md").read_text()
    assert card == f"{HEADING}\n\nthe card\n\n`student.onnx`: ONNX opset 20, ONNX IR version 9.\n"
    assert json.loads((output / "report.json").read_text())["steps"] == steps

    onnx_bytes, pt2_bytes = ((output / name).read_bytes() for name in ("student.onnx", "student.pt2"))
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from torch by"):
        list(exporting.check_parity(file, steps, onnx_bytes, pt2_bytes))

    # At sizes that the job itself did not look at.
    session = onnx_session(onnx_bytes)
    program = torch.export.load(io.BytesIO(pt2_bytes)).module()
    for shape in ((1, 3, 20, 34), (3, 3, 6, 4)):
        low, noise = torch.rand(shape) * 2 - 1, torch.randn(shape)
        with torch.no_grad():
            expected = ddim_sample(file.network, noise, NoiseSchedule(), steps, low=low)
            torch.testing.assert_close(program(noise, low=low), expected, atol=1e-4, rtol=0)
        found = run_onnx(session, noise.numpy(), low=low.numpy())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


def test_brightness_is_an_input_with_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = FilmUNet(FilmUNetConfig(channels=(8, 16), norm_groups=4, embedding_channels=16)).eval()
    file = NetworkFile(network=network, brightness=0.45, facts={"num_steps": 1})
    weights, output = tmp_path / "student.safetensors", tmp_path / "exported"
    save_network(str(weights), file)
    report = export(ExportConfig(weights=str(weights), output=str(output), opset=18))
    assert len(report.rows) == 4
    assert all(row["diff"] <= 1e-4 for row in report.rows)
    facts = json.loads((output / "report.json").read_text())
    assert (facts["steps"], facts["ONNX opset"], facts["ONNX IR version"]) == (1, 18, 8)
    card = (output / "README.md").read_text()
    assert "0.450 by default" in card and "ONNX opset 18, ONNX IR version 8" in card
    onnx_bytes, pt2_bytes = ((output / name).read_bytes() for name in ("student.onnx", "student.pt2"))
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from torch by"):
        list(exporting.check_parity(file, 1, onnx_bytes, pt2_bytes))
    session = onnx_session(onnx_bytes)
    program = torch.export.load(io.BytesIO(pt2_bytes)).module()
    low, noise = torch.rand(1, 3, 24, 40) * 0.2 - 1, torch.randn(1, 3, 24, 40)
    for brightness in (0.45, 0.3):
        asked = torch.tensor([brightness])
        with torch.no_grad():
            expected = exporting.expected_result(file, 1, noise, low, brightness=brightness)
            torch.testing.assert_close(program(noise, low=low, brightness=asked), expected, atol=1e-4, rtol=0)
        assert luma_moments([(expected + 1) / 2])[0].item() == pytest.approx(brightness, abs=0.01)
        given = run_onnx(session, noise.numpy(), low=low.numpy(), brightness=asked.numpy())
        np.testing.assert_allclose(given, expected.numpy(), atol=1e-4, rtol=0)
        if brightness == file.brightness:
            np.testing.assert_array_equal(run_onnx(session, noise.numpy(), low=low.numpy()), given)


def test_a_card_is_made_where_there_is_none(tmp_path: Path) -> None:
    file = file_of(validation={"psnr": 20.5}, pairs_key="abc")
    config = ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out"))
    card = exporting.card_of(config, file, 2).decode()
    assert "2 DDIM steps" in card
    assert "20.5" in card
    assert "abc" in card


def test_the_card_says_what_the_weights_know(tmp_path: Path) -> None:
    """With the facts that a distillation leaves."""
    file = file_of(
        num_steps=2,
        teacher_sha256="abc",
        pairs="288 pairs (key 123) of LOLv1",
        licence="research only",
        config={"refine_weight": 0.02, "loss": {"pixel": 0.5}},
        validation={"psnr": 20.5},
    )
    config = ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out"))
    card = exporting.card_of(config, file, 2).decode()
    for said in (
        "2 DDIM steps",
        "20.5",
        "abc",
        "288 pairs (key 123) of LOLv1",
        "research only",
        "0.02",
        "multiples of 2",
    ):
        assert said in card


def test_a_readme_that_is_no_card_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# All my experiments\n")
    config = ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out"))
    card = exporting.card_of(config, file_of(num_steps=2), 2).decode()
    assert card.startswith(HEADING) and "experiments" not in card and "Unrolled" not in card


@pytest.mark.parametrize("beside", [False, True])
def test_the_card_says_where_the_steps_differ(tmp_path: Path, beside: bool) -> None:
    if beside:
        (tmp_path / "README.md").write_text(f"{HEADING}\n\nA student for 2 DDIM steps\n")
    config = ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out"))
    card = exporting.card_of(config, file_of(num_steps=2), 4).decode()
    assert "A student for 2 DDIM steps" in card
    assert card.endswith("\nUnrolled for 4 steps, distilled for 2.\n")


def test_the_plan_says_what_would_be_written(tmp_path: Path) -> None:
    save_network(str(tmp_path / "w.safetensors"), file_of(num_steps=4))
    report = plan_export(ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out")))
    assert report.facts["steps"] == 4
    assert not (tmp_path / "out").exists()


def test_bad_input_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_network(str(tmp_path / "w.safetensors"), file_of())
    config = ExportConfig(weights=str(tmp_path / "w.safetensors"), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="add --steps N"):
        export(config)
    with pytest.raises(ValueError, match="does not divide"):
        export(ExportConfig(weights=config.weights, output=config.output, steps=3))
    with pytest.raises(ValueError, match="opset is 11, but must be from 16 to 23"):
        ExportConfig(weights=config.weights, output=config.output, opset=11)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ValueError, match=r"export needs onnxscript; install them with pip install"):
        export(config)
