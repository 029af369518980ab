"""Data as people really have it, through the jobs: odd sources, pairs of odd sizes, inputs that move."""

import contextlib
import errno
import json
import os
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.cli import main
from jobs.ingest import JOB
from pipelines import shards
from pipelines.config.parts import ComputeConfig, StudentTrackingConfig
from pipelines.config.use import DEFAULT_STUDENT, EvaluateConfig
from pipelines.evaluation.evaluate import evaluate
from pipelines.images import encode_png
from pipelines.pairs.ray_tasks import tone_columns
from pipelines.shards import PAIR_SCHEMA, Manifest
from pipelines.training.distillation import distill
from pipelines.training.teacher import train_teacher
from pipelines.trajectories.precompute import precompute
from pipelines.weights import load_network
from reddit_core.brightness import luma_moments_of_pixels
from tests.ray.processes import started
from tests.ray.tiny import NOT_TRACKED, Tiny

pytestmark = pytest.mark.usefixtures("ray_cluster")

CAFE, CAFE_DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
LONG, BRACKETS = "é" * 108, "photo[edited]::#1?"
# Bytes of the largest process that judges, as of one that enhances.
MOST_MEMORY = 4e9
NOT_USERS = (".ipynb_checkpoints/1-checkpoint.png", "@eaDir/1.png/SYNOFILE_THUMB_M.png", ".thumbnails/x.png", "._a.jpg")


def make_odd(root: Path, elsewhere: Path) -> None:
    """Changes eight ordinary pairs: linked, renamed, cut off, tiny, swapped, the same twice; and programs' files."""
    low, high = (root / "our485" / side for side in ("low", "high"))
    low.rename(elsewhere)
    low.symlink_to(elsewhere)
    for number, names in {
        1: (CAFE, CAFE_DECOMPOSED),
        2: ("IMG_2", "img_2"),
        6: (LONG, LONG),
        7: (BRACKETS,) * 2,
    }.items():
        for side, name in zip((low, high), names, strict=True):
            (side / f"{number}.png").rename(side / f"{name}.png")
    shutil.copyfile(high / "3.png", low / "3.png")
    swapped = [(side / "8.png").read_bytes() for side in (high, low)]
    for side, data in zip((low, high), swapped, strict=True):
        (side / "8.png").write_bytes(data)
    Image.open(low / "4.png").save(low / "4.jpg")
    (low / "4.png").unlink()
    (low / "4.jpg").write_bytes((low / "4.jpg").read_bytes()[:-2])
    for side in (low, high):
        Image.open(side / f"{BRACKETS}.png").crop((0, 0, 8, 8)).save(side / f"{BRACKETS}.png")
        for name in NOT_USERS:
            (side / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(side / "5.png", side / name)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder called `locked` can be read; tests may run as root, who can read every folder."""
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if os.fspath(path).endswith("/locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.usefixtures("locked")
def test_a_source_as_people_have_it_becomes_pairs(
    lol_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_odd(lol_folder, tmp_path / "disk")
    (lol_folder / "our485" / "high" / "locked").mkdir()
    settings = tmp_path / "settings.toml"
    settings.write_bytes("layout = 'lolv1' # é\rallow_truncated = true\rmax-bad = 0.5\r".encode("utf-16"))
    output = tmp_path / "pairs"
    main(JOB, ["--config", str(settings), "--source", str(lol_folder), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "images that programs made, left out: 8, such as our485/high/" in printed
    assert f"no SSIM and no LPIPS: 1, such as our485/{BRACKETS}" in printed
    assert "brighter than its normal one, as if they were swapped: 1, such as our485/8" in printed
    broken = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert {row["pair_id"]: row["reason"] for row in broken} == {
        "our485/3": "its low image is the same picture as its normal one; give each pair two exposures",
        "our485/high/locked/": "the folder cannot be read (Permission denied); fix its permissions",
    }
    manifest = shards.read_manifest(str(output), "pairs")
    assert manifest.facts["broken"] == 2
    pair_ids = [pair_id for split in manifest.facts["splits"].values() for pair_id in split["pair_ids"]]
    assert sorted(pair_ids) == sorted(f"our485/{name}" for name in ("4", "5", "8", CAFE, "IMG_2", LONG, BRACKETS))


def test_a_table_of_a_spreadsheet_becomes_pairs(lol_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "lists" / "pairs.csv"
    table.parent.mkdir()
    lines = [
        "sep=;",
        "Low;Normal;Split",
        *(f"../LOLv1/our485/low/{n}.png;../LOLv1/our485/high/{n}.png;train" for n in "12"),
    ]
    table.write_bytes("\r".join(lines).encode("utf-16"))
    output = tmp_path / "pairs"
    main(JOB, ["--layout", "table", "--source", str(table), "--output", str(output)])
    facts = shards.read_manifest(str(output), "pairs").facts
    assert facts["splits"]["train"]["pair_ids"] == ["LOLv1/our485/low/1", "LOLv1/our485/low/2"]


def write_validation(url: str, images: dict[str, NDArray[np.uint8]]) -> None:
    """A validation split whose low images are a fifth as bright."""
    rows = [
        {
            **{"pair_id": name, "low": encode_png(normal // 5), "normal": encode_png(normal), "sha256": "0"},
            **{"height": normal.shape[0], "width": normal.shape[1]},
            **tone_columns(normal // 5, *luma_moments_of_pixels(normal)),
        }
        for name, normal in images.items()
    ]
    entry = shards.write_shard(url, "validation-0", pa.Table.from_pylist(rows, PAIR_SCHEMA), split="validation")
    shards.write_manifest(url, Manifest(kind="pairs", spec={"source": "test"}, shards=(entry,)))


def evaluation(folder: Path, weights: str, steps: int = 2) -> EvaluateConfig:
    """Of a student on the pairs below a folder."""
    return EvaluateConfig(
        pairs=str(folder / "pairs"),
        output=str(folder / "report"),
        weights=(f"student:{steps}={weights}",),
        shown=(f"student:{steps}",),
        compute=ComputeConfig(threads=1),
        tracking=StudentTrackingConfig(enabled=False),
    )


def test_pairs_of_odd_sizes_and_a_black_one_are_judged(
    tmp_path: Path, weights: str, photographs: dict[str, NDArray[np.uint8]]
) -> None:
    whole = photographs["astronaut"]
    images = {"tiny": whole[:8, :8], "wide": np.tile(whole[:2], (1, 11, 1)), "black": 0 * whole, "usual": whole}
    write_validation(str(tmp_path / "pairs"), {**images, "high": np.tile(whole[:, :2], (15, 1, 1))})
    config = evaluation(tmp_path, weights)
    report = evaluate(config)
    left_out = report.facts["images_left_out_of_means"]
    assert {name: left_out[name] for name in ("psnr_gt_mean", "ssim", "ssim_gt_mean")} == {
        **{"psnr_gt_mean": 1, "ssim": 3, "ssim_gt_mean": 4},
    }
    assert "psnr" not in left_out
    saved = json.loads((tmp_path / "report" / "report.json").read_text())
    assert saved["images_left_out_of_means"] == left_out
    assert Image.open(tmp_path / "report" / "before_after.png").height < 5 * 700
    moved = shutil.move(tmp_path / "pairs", tmp_path / "moved")
    assert evaluate(replace(config, pairs=str(moved))).title.startswith("Already evaluated")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pair_of_24_megapixels_is_judged_within_memory(
    tmp_path: Path, photographs: dict[str, NDArray[np.uint8]]
) -> None:
    """By the shipped student: the attention of the tiny network, at half of the resolution, is not made for this."""
    large = np.asarray(Image.fromarray(photographs["astronaut"]).resize((6000, 4000)))
    write_validation(str(tmp_path / "pairs"), {"large": large})
    sizes, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            for process in started("ray::"):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    sizes.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        report = evaluate(evaluation(tmp_path, str(DEFAULT_STUDENT), steps=1))
    finally:
        done.set()
        watcher.join()
    assert {row["method"] for row in report.rows} == {"input", "clahe", "student"}
    assert 1e9 < max(sizes) < MOST_MEMORY, "a gigabyte, or nothing was watched"


@pytest.mark.slow
def test_no_training_ends_at_a_tiny_validation_pair(tiny: Tiny, tmp_path: Path) -> None:
    pairs = shutil.copytree(tiny.pairs, tmp_path / "pairs")
    write_validation(str(tmp_path / "tiny"), {"tiny": np.arange(192, dtype=np.uint8).reshape(8, 8, 3)})
    manifest = shards.read_manifest(str(pairs), "pairs")
    (entry,) = shards.read_manifest(str(tmp_path / "tiny"), "pairs").shards
    train = [shard for shard in manifest.shards if shard.split == "train"]
    for file in (tmp_path / "tiny" / "shards").iterdir():
        shutil.copy(file, Path(pairs) / "shards")
    shards.write_manifest(str(pairs), replace(manifest, shards=(*train, entry)))
    config = tiny.training(tmp_path / "run", pairs=str(pairs))
    train_teacher(replace(config, checkpoint=replace(config.checkpoint, validate_every=4)))
    assert load_network(f"{config.output}/teacher.safetensors").facts["role"] == "teacher"


@pytest.mark.slow
def test_pairs_cache_and_teacher_may_move_between_two_runs(tiny_cache: Tiny, tmp_path: Path) -> None:
    config = tiny_cache.distillation(tmp_path / "students", stages=(4,), progressive=False, tracking=NOT_TRACKED)
    distill(config)
    student = tmp_path / "students" / "student-2.safetensors"
    before = student.read_bytes()
    other = Tiny(tmp_path / "other")
    shutil.copytree(tiny_cache.root, other.root)
    moved = replace(config, pairs=other.pairs, cache=other.cache, teacher=other.teacher)
    assert "already distilled" in distill(moved).title
    student.unlink()
    shutil.rmtree(tmp_path / "students" / "checkpoints" / "step-000000006")
    distill(moved)
    assert student.read_bytes() == before
    states = precompute(other.precompute()).facts["state"]
    assert "already done" in states
