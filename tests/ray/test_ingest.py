"""Ingest through Ray Data: content, splits, broken files, reruns, kills, and what two datasets share."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image

from pipelines import shards
from pipelines.config.jobs import IngestConfig
from pipelines.pairs.dataset import decode_pair, split_shards
from pipelines.pairs.index import IndexRow, read_index
from pipelines.pairs.ingest import duplicates_between, ingest, plan_ingest
from pipelines.pairs.inventory import pair_spec
from pipelines.shards import Manifest
from tests.ray.files import contents
from tests.ray.processes import JobProcess

pytestmark = pytest.mark.usefixtures("ray_cluster")
ORIENTATION = 0x0112


def config_of(source: Path, output: Path, **settings: Any) -> IngestConfig:
    return IngestConfig(
        output=str(output), source=str(source), **{"validation_share": 0.3, "pairs_per_shard": 2, **settings}
    )


def manifest_of(output: Path) -> Manifest:
    return shards.read_manifest(str(output), "pairs")


def index_of(output: Path) -> dict[str, IndexRow]:
    return read_index(str(output), manifest_of(output))


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    """Every row of every shard by pair_id, with its split."""
    return {
        row["pair_id"]: {**row, "split": entry.split}
        for entry in manifest_of(output).shards
        for row in shards.read_shard(str(output), entry).to_pylist()
    }


def quarantine(output: Path) -> dict[str, dict[str, str]]:
    rows = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    return {row["pair_id"].removeprefix("our485/"): row for row in rows}


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_pairs_come_back_as_they_were_and_a_rerun_does_nothing(lol_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs"
    report = ingest(config_of(lol_folder, output))
    rows = rows_of(output)
    assert report.title.startswith("ingested: 8 pairs")
    assert sorted(rows) == [f"our485/{number}" for number in range(1, 9)]
    for pair_id, row in rows.items():
        number = pair_id.rpartition("/")[2]
        files = [lol_folder / "our485" / side / f"{number}.png" for side in ("low", "high")]
        assert [row["low"], row["normal"]] == [file.read_bytes() for file in files]
        low, normal = decode_pair(row)
        assert np.array_equal(low, pixels(files[0]))
        assert np.array_equal(normal, pixels(files[1]))
        assert (row["height"], row["width"]) == low.shape[:2] == (48, 64)
    manifest = manifest_of(output)
    listed = {pair: split for split, facts in manifest.facts["splits"].items() for pair in facts["pair_ids"]}
    assert listed == {pair_id: row["split"] for pair_id, row in rows.items()}
    assert listed == {pair_id: row.split for pair_id, row in index_of(output).items()}
    assert all(entry.rows <= 2 for entry in manifest.shards)
    assert not shards.verify(str(output), manifest.shards)
    before = contents(output)
    assert set(before) == {
        *("index.arrow", "manifest.json", "quarantine.jsonl"),
        *(f"shards/{entry.name}.{kind}" for entry in manifest.shards for kind in ("arrow", "json")),
    }
    assert ingest(config_of(lol_folder, output)).title.startswith("already done: 8 pairs")
    assert contents(output) == before
    with pytest.raises(ValueError, match="split test holds no pairs"):
        split_shards(manifest, "test")
    with pytest.raises(ValueError, match="split_seed is 0, asked for 1"):
        ingest(config_of(lol_folder, output, split_seed=1))
    moved = lol_folder.rename(tmp_path / "moved")
    assert ingest(config_of(moved, output)).title.startswith("already done: 8 pairs")
    assert contents(output) == before
    for path in (moved / "our485" / "low").iterdir():
        Image.open(path).rotate(180).save(path)
    with pytest.raises(ValueError, match=r"our485/1 at .*moved.* is not what .*pairs holds under this name"):
        ingest(config_of(moved, output))


def test_equal_normal_images_are_one_scene_in_any_encoding(lol_folder: Path, tmp_path: Path) -> None:
    high = lol_folder / "our485" / "high"
    Image.open(high / "1.png").save(high / "5.webp", lossless=True, exact=True)
    (high / "5.png").unlink()
    (high / "7.png").write_bytes((high / "3.png").read_bytes())
    for seed in range(3):
        output = tmp_path / f"pairs{seed}"
        ingest(config_of(lol_folder, output, split_seed=seed, validation_share=0.5))
        index = index_of(output)
        for one, other in (("1", "5"), ("3", "7")):
            pair, partner = index[f"our485/{one}"], index[f"our485/{other}"]
            assert (pair.scene, pair.split) == (partner.scene, partner.split)
        assert len({row.scene for row in index.values()}) == 6


def spoil(folder: Path) -> None:
    """Makes each of the eight pairs odd in its own way, and a ninth without a partner."""
    low, high = folder / "our485" / "low", folder / "our485" / "high"
    (high / "1.png").write_bytes((high / "1.png").read_bytes()[:700])
    (low / "2.png").write_bytes((low / "2.png").read_bytes()[:400])
    Image.fromarray(pixels(low / "3.png")[:40]).save(low / "3.png")
    grey16 = pixels(low / "4.png")[:, :, 0].astype(np.uint16) << 8
    Image.fromarray(grey16).save(low / "4.png")
    Image.fromarray(pixels(low / "5.png")).convert("L").save(low / "5.png")
    Image.fromarray(pixels(high / "6.png")).convert("RGBA").save(high / "6.png")
    turned = Image.Exif()
    turned[ORIENTATION] = 6  # shown a quarter turn clockwise of how it is stored
    Image.fromarray(np.rot90(pixels(high / "7.png"))).save(high / "7.png", exif=turned)
    (low / "9.png").write_bytes((low / "8.png").read_bytes())


def test_broken_images_are_converted_or_quarantined_and_counted(lol_folder: Path, tmp_path: Path) -> None:
    plain = {number: pixels(lol_folder / "our485" / "high" / f"{number}.png") for number in range(1, 9)}
    lows = {number: pixels(lol_folder / "our485" / "low" / f"{number}.png") for number in range(1, 9)}
    spoil(lol_folder)
    output = tmp_path / "pairs"
    with pytest.raises(ValueError, match=r"2 of 9 pairs are broken \(22.2%\), but max_bad is 5.0%.*raise --max-bad"):
        ingest(config_of(lol_folder, output))
    with pytest.raises(ValueError, match=r"4 of 9 pairs are broken \(44.4%\), but max_bad is 40.0%"):
        ingest(config_of(lol_folder, output, max_bad=0.4))
    assert not (output / "manifest.json").exists()
    kept = {path: path.read_bytes() for path in (output / "shards").glob("*")}
    assert kept
    ingest(config_of(lol_folder, output, max_bad=0.5))
    assert {path: path.read_bytes() for path in kept} == kept
    reasons = {number: row["reason"] for number, row in quarantine(output).items()}
    assert sorted(reasons) == ["1", "2", "3", "9"]
    assert reasons["1"].startswith("its normal image is unusable: ")
    assert reasons["2"].startswith("its low image is unusable: ")
    assert reasons["3"] == "its low image is 64x40, but its normal one 64x48"
    assert reasons["9"] == "its normal image is missing"
    assert manifest_of(output).facts["broken"] == 4
    decoded = {int(name.rpartition("/")[2]): decode_pair(row) for name, row in rows_of(output).items()}
    assert sorted(decoded) == [4, 5, 6, 7, 8]
    for number, (_, normal) in decoded.items():
        assert np.array_equal(normal, plain[number])
    assert np.array_equal(decoded[4][0], np.repeat(lows[4][:, :, :1], 3, axis=2))
    assert np.array_equal(decoded[5][0][:, :, 0], np.asarray(Image.fromarray(lows[5]).convert("L")))


def test_a_fixed_image_is_taken_by_a_rerun(lol_folder: Path, tmp_path: Path) -> None:
    low, output = lol_folder / "our485" / "low" / "2.png", tmp_path / "pairs"
    whole = low.read_bytes()
    low.write_bytes(whole[:300])
    ingest(config_of(lol_folder, output, max_bad=0.5))
    before = contents(output)
    assert ingest(config_of(lol_folder, output, max_bad=0.5)).title.startswith("already done: 7 pairs")
    assert contents(output) == before
    low.write_bytes(whole)
    assert ingest(config_of(lol_folder, output, max_bad=0.0)).title.startswith("ingested: 8 pairs")
    assert quarantine(output) == {}
    assert rows_of(output)["our485/2"]["low"] == whole


def test_an_image_fixed_after_too_many_were_broken_is_taken(lol_folder: Path, tmp_path: Path) -> None:
    low, output, straight = lol_folder / "our485" / "low" / "2.png", tmp_path / "pairs", tmp_path / "straight"
    ingest(config_of(lol_folder, straight))
    whole = low.read_bytes()
    low.write_bytes(whole[:300])
    with pytest.raises(ValueError, match="1 of 8 pairs are broken"):
        ingest(config_of(lol_folder, output))
    low.write_bytes(whole)
    ingest(config_of(lol_folder, output))
    assert contents(output) == contents(straight)


def test_a_normal_image_that_changed_since_the_survey_is_surveyed_again(lol_folder: Path, tmp_path: Path) -> None:
    low, high = (lol_folder / "our485" / side for side in ("low", "high"))
    output, straight, whole = tmp_path / "pairs", tmp_path / "straight", (low / "2.png").read_bytes()
    one_shard = {"validation_share": 0.0, "pairs_per_shard": 8}
    (low / "2.png").write_bytes(whole[:300])
    with pytest.raises(ValueError, match="1 of 8 pairs are broken"):
        ingest(config_of(lol_folder, output, **one_shard))
    (low / "2.png").write_bytes(whole)
    (high / "4.png").write_bytes((high / "6.png").read_bytes())
    with pytest.raises(ValueError, match="our485/4: its normal image changed"):
        ingest(config_of(lol_folder, output, **one_shard))
    ingest(config_of(lol_folder, output, **one_shard))
    ingest(config_of(lol_folder, straight, **one_shard))
    assert contents(output) == contents(straight)


def test_pairs_added_later_get_shards_of_their_own(lol_folder: Path, tmp_path: Path) -> None:
    output, later = tmp_path / "pairs", tmp_path / "later"
    for side in ("low", "high"):
        (later / side).mkdir(parents=True)
        for number in (2, 5, 8):
            file = lol_folder / "our485" / side / f"{number}.png"
            file.rename(later / side / file.name)
    ingest(config_of(lol_folder, output))
    old, old_index = contents(output), index_of(output)
    for file in later.rglob("*.png"):
        file.rename(lol_folder / "our485" / file.parent.name / file.name)
    report = ingest(config_of(lol_folder, output))
    assert report.facts["new pairs"] == 3
    new, index = contents(output), index_of(output)
    assert {name: new[name] for name in old if name.startswith("shards/")} == {
        name: data for name, data in old.items() if name.startswith("shards/")
    }
    assert {name: index[name] for name in old_index} == old_index
    assert len(rows_of(output)) == len(index) == 8
    fresh = tmp_path / "fresh"
    ingest(config_of(lol_folder, fresh))
    assert {name: row.split for name, row in index.items()} == {n: row.split for n, row in index_of(fresh).items()}


def test_given_splits_and_the_official_test_set(lol_folder: Path, tmp_path: Path) -> None:
    for side in ("low", "high"):
        (lol_folder / "eval15" / side).mkdir(parents=True)
        official = (lol_folder / "our485" / side / "3.png").read_bytes()
        (lol_folder / "eval15" / side / "1.png").write_bytes(official)
    splits, output = tmp_path / "splits.csv", tmp_path / "pairs"
    splits.write_text("pair_id,split\nour485/1,validation\nour485/2,train\n")
    ingest(config_of(lol_folder, output, splits=str(splits)))
    by_name = {name: row.split for name, row in index_of(output).items()}
    assert by_name["our485/1"] == "validation"
    assert by_name["our485/2"] == "train"
    assert by_name["eval15/1"] == "test"
    assert quarantine(output)["3"]["kind"] == "left out"
    assert [entry.rows for entry in split_shards(manifest_of(output), "test")] == [1]
    splits.write_text("pair_id,split\nour485/1,train\n")
    with pytest.raises(ValueError, match="puts our485/1 in train, but it was ingested as validation"):
        ingest(config_of(lol_folder, output, splits=str(splits)))
    splits.write_text("pair_id,split\nour485/77,train\n")
    with pytest.raises(ValueError, match="does not hold, such as 'our485/77'; pair ids look like 'eval15/1'"):
        ingest(config_of(lol_folder, output, splits=str(splits)))


def test_photographs_are_darkened_the_same_way_every_time(lol_folder: Path, tmp_path: Path) -> None:
    source = lol_folder / "our485" / "high"
    for name in ("one", "two"):
        ingest(config_of(source, tmp_path / name, layout="degrade"))
    rows = rows_of(tmp_path / "one")
    assert len(rows) == 8
    for name, row in rows.items():
        low, normal = decode_pair(row)
        assert row["normal"] == (source / name).read_bytes()
        assert low.mean() < 0.6 * normal.mean()
    assert {n: r["low"] for n, r in rows.items()} == {n: r["low"] for n, r in rows_of(tmp_path / "two").items()}
    assert len({hashlib.sha256(row["low"]).hexdigest() for row in rows.values()}) == 8


def test_a_table_with_files_that_are_not_there(lol_folder: Path, tmp_path: Path) -> None:
    table, output = lol_folder / "pairs.csv", tmp_path / "pairs"
    lines = [f"our485/low/{number}.png,our485/high/{number}.png" for number in (1, 2)]
    gone = ["gone/1.png,our485/high/3.png", "our485/low/4.png,gone/4.png"]
    lines += [*gone, "nosuch://b/5.png,our485/high/5.png", "our485/low/6.png,our485/high/6.png"]
    table.write_text("\n".join(["low,normal", *lines]))
    ingest(config_of(table, output, layout="table", max_bad=0.5))
    assert sorted(rows_of(output)) == ["our485/low/1", "our485/low/2", "our485/low/6"]
    reasons = {name: row["reason"] for name, row in quarantine(output).items()}
    assert reasons["gone/1"] == "its low image is unusable: it cannot be read (No such file or directory)"
    assert reasons["nosuch://b/5"].startswith(
        "its low image is unusable: it cannot be read (nosuch://b/5.png cannot be"
    )
    assert reasons["low/4"] == "its normal image is unusable: it cannot be read (No such file or directory)"


def test_what_two_datasets_share_is_reported(lol_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for side in ("low", "high"):
        (other / side).mkdir(parents=True)
        for number, name in ((1, "a"), (2, "b"), (3, "c")):
            image: Image.Image = Image.open(lol_folder / "our485" / side / f"{number}.png")
            if (side, name) == ("low", "b"):
                image = image.point(lambda value: 255 - value)
            changed = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if name == "c" else image
            changed.save(other / side / f"{name}.webp", lossless=True, exact=True)
    first, second = tmp_path / "first", tmp_path / "second"
    ingest(config_of(lol_folder, first))
    folders = {"low": str(other / "low"), "normal": str(other / "high")}
    report = ingest(config_of(other, second, layout="folders", against=str(first), **folders))
    found = {row["a"]: (row["b"], row["same"]) for row in duplicates_between(str(second), str(first))}
    assert found == {"a": ("our485/1", "pair"), "b": ("our485/2", "normal")}
    assert report.facts["pairs also in the other dataset"] == 1
    assert report.facts["pairs that share only the normal image with it"] == 1
    assert len((second / "duplicates.jsonl").read_text().splitlines()) == 2
    rerun = ingest(config_of(other, second, layout="folders", against=str(first), **folders))
    assert rerun.title.startswith("already done")
    assert json.loads((second / "report.json").read_text())["pairs also in the other dataset"] == 1
    with pytest.raises(ValueError, match="nowhere holds no finished pairs"):
        ingest(config_of(lol_folder, tmp_path / "third", against=str(tmp_path / "nowhere")))
    assert not (tmp_path / "third").exists()


def test_the_plan_writes_nothing_and_says_what_is_left(lol_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs"
    (lol_folder / "our485" / "low" / "8.png").unlink()
    config = config_of(lol_folder, output, max_bad=0.2)
    facts = plan_ingest(config).facts
    assert not output.exists()
    assert (facts["to ingest"], facts["broken as listed"], facts["already ingested"]) == (7, 1, 0)
    ingest(config)
    megabytes = sum(entry.bytes for entry in manifest_of(output).shards) / 1e6
    assert facts["MB, about"] == pytest.approx(megabytes, rel=0.25)
    assert plan_ingest(config).facts["to ingest"] == 0


@pytest.mark.parametrize("stage", [pytest.param("survey", marks=pytest.mark.slow), "shards"])
def test_a_killed_job_ends_with_the_same_bytes(stage: str, lol_folder: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    ingest(config_of(lol_folder, straight, pairs_per_shard=4))
    # A named pipe that nobody writes to holds the job at this image, while it finishes what else it can.
    held = lol_folder / "our485" / ("high" if stage == "survey" else "low") / "5.png"
    data = held.read_bytes()
    held.unlink()
    os.mkfifo(held)
    num_parts = 2 if stage == "survey" else len(manifest_of(straight).shards)
    folder = killed / ("survey/shards" if stage == "survey" else "shards")
    flags = f"--source {lol_folder} --output {killed} --validation-share 0.3 --pairs-per-shard 4"
    job = JobProcess("ingest", flags, tmp_path / "log", ray.get_runtime_context().gcs_address)
    job.kill_when(lambda: len(list(folder.glob("*.json"))) == num_parts - 1)
    assert not (killed / "manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
    assert len(done) == num_parts - 1
    held.unlink()
    held.write_bytes(data)
    ingest(config_of(lol_folder, killed, pairs_per_shard=4))
    assert contents(killed) == contents(straight)
    if stage == "shards":
        assert {path: path.stat().st_mtime_ns for path in done} == done


def test_half_written_shards_and_old_plans_are_cleared_away(lol_folder: Path, tmp_path: Path) -> None:
    output, straight = tmp_path / "pairs", tmp_path / "straight"
    ingest(config_of(lol_folder, straight))
    stale = output / "shards" / "train-00000-0123456789ab.arrow"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half a shard")
    key = shards.spec_key(pair_spec(config_of(lol_folder, output)))
    shards.write_shard(f"{output}/survey", f"{key}-0123456789ab", pa.table({"pair_id": ["1"]}))
    (output / "survey" / "shards" / f"{key}-0123456789ab.arrow").unlink()  # as a kill between two deletions leaves it
    ingest(config_of(lol_folder, output))
    assert contents(output) == contents(straight)


def test_credentials_reach_no_file(lol_folder: Path, tmp_path: Path) -> None:
    table, output = lol_folder / "pairs.csv", tmp_path / "pairs"
    whole = [f"our485/low/{number}.png,our485/high/{number}.png" for number in (1, 2)]
    secret = "https://me:hunter2@127.0.0.1:9/low.png?X-Amz-Signature=hunter2,our485/high/gone.png"
    table.write_text("\n".join(["low,normal", *whole, secret]))
    ingest(config_of(table, output, layout="table", max_bad=0.5))
    assert len(quarantine(output)) == 1
    for path in output.rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes()
