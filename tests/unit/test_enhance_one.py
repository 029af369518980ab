"""One photograph to one file, without Ray."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.enhance import JOB
from pipelines.config.parts import ComputeConfig
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhance import enhance, needs_ray, plan_enhance
from pipelines.weights import load_student

ROOT = Path(__file__).parents[2]
ONE_THREAD = ComputeConfig(threads=1)


@pytest.fixture
def night(tmp_path: Path) -> Path:
    path = tmp_path / "night.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 50, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def config(weights: str, night: Path, result: Path, **changes: object) -> EnhanceConfig:
    settings: dict[str, Any] = {"weights": weights, "source": str(night), "output": str(result), "compute": ONE_THREAD}
    settings |= changes
    return EnhanceConfig(**settings)


def test_the_file_that_is_named(weights: str, night: Path, tmp_path: Path) -> None:
    for number, suffix in enumerate(("png", "jpg", "tif")):
        output = tmp_path / f"better.{suffix}"
        made = config(weights, night, output, compare=number == 1)
        assert not needs_ray(made)
        report = enhance(made)
        assert [row["count"] for row in report.rows] == [1, 0, 0]
        assert Image.open(output).format == {"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[suffix]
    assert Image.open(tmp_path / "better-compare.jpg").size == (120, 40)
    expected = load_student(weights).enhance(np.asarray(Image.open(night)))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "better.png")), expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".json") == []


def test_its_job_does_not_start_ray(weights: str, night: Path, tmp_path: Path) -> None:
    code = f"""import sys
from jobs.cli import main
from jobs.enhance import JOB
main(JOB, ["--source", {str(night)!r}, "--output", {str(tmp_path / "a.png")!r}, "--weights", {weights!r}])
sys.exit("ray" in sys.modules)"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert Image.open(tmp_path / "a.png").size == (60, 40)


def test_a_photograph_at_a_signed_url(
    weights: str, signed_photograph: tuple[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, data = signed_photograph
    for output in ("better.jpg", "folder"):
        main(JOB, ["--source", url, "--output", str(tmp_path / output), "--weights", weights, "--compute.threads", "1"])
    assert "hush" not in "".join(capsys.readouterr())
    assert [b"hush" in path.read_bytes() for path in tmp_path.rglob("*.json")] == [False, False]
    better = (tmp_path / "better.jpg").read_bytes()
    assert (tmp_path / "folder" / "my cat.jpg").read_bytes() == better != data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "night.png"}, "lies in the folder of the photographs"),
        ({"output": "better.nef"}, "RAW files cannot be written"),
        ({"source": "many"}, "is one file, but .*many is a folder; give a folder"),
        ({"max_megapixels": 0.001}, "at most 0.001 are enhanced; raise --max-megapixels"),
        ({"max_megapixels": 0.0}, "max_megapixels is 0.0, but must be above 0"),
    ],
)
def test_what_cannot_be(weights: str, night: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "many").mkdir()
    night.with_name("many").joinpath("a.png").write_bytes(night.read_bytes())
    changes = {name: str(tmp_path / value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        enhance(config(weights, night, tmp_path / "better.png", **changes))


def test_the_plan_says_what_the_run_says(weights: str, night: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    night.rename(source / "night.png")
    (source / "broken.jpg").write_bytes(b"not a picture")
    (source / "notes.txt").write_text("none")
    Image.new("RGB", (400, 300)).save(source / "large.webp")
    plan = plan_enhance(config(weights, source, tmp_path / "out", max_megapixels=0.1))
    assert {row["photographs"]: row["count"] for row in plan.rows} == {"to enhance": 1, "done before": 0, "left out": 2}
    assert plan.facts["megapixels"] == pytest.approx(40 * 60 / 1e6)
    assert "0.1 megapixels, but at most 0.1 are enhanced" in plan.facts["left out: large.webp"]
    assert "it is not an image in one of" in plan.facts["left out: broken.jpg"]
    assert plan.facts["not read: notes.txt"] == ".txt is no format that is read"
