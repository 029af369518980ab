"""Undelivered data is stored completely, and deleted once it was delivered."""

import math
from pathlib import Path

import numpy as np

from pipelines.tracking import spill
from pipelines.tracking.spill import File, Point


def test_batches_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    output, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    table = tmp_path / "table.csv"
    table.write_text("a,b\n")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    points = [Point("train/loss", 0.1, 1_700_000_000_123, 3), Point("train/grad_norm", math.inf, 5, 4)]
    spill.save(str(output), points, [File("validation", step=9, pixels=pixels), File("reports", path=table)])
    spill.save(str(output), [Point("train/loss", math.nan, 1, 1)], [])
    table.unlink()

    batches = sorted(spill.load(str(output), scratch), key=lambda batch: len(batch.points))
    assert len(batches) == 2
    assert math.isnan(batches[0].points[0].value)
    assert list(batches[1].points) == points
    image, artifact = batches[1].files
    assert (image.name, image.step) == ("validation", 9)
    assert image.pixels is not None
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (artifact.name, artifact.path.name, artifact.path.read_text()) == ("reports", "table.csv", "a,b\n")

    spill.delete(batches[1])
    assert [batch.url for batch in spill.load(str(output), scratch)] == [batches[0].url]


def test_a_batch_without_its_index_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "unsent" / "half").mkdir(parents=True)
    (tmp_path / "unsent" / "half" / "0.png").write_bytes(b"")
    assert list(spill.load(str(tmp_path), tmp_path)) == []
    assert list(spill.load(str(tmp_path / "nowhere"), tmp_path)) == []
