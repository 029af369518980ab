"""Shards and manifests: deterministic, checked, and refused when they are not what was asked for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import shards
from pipelines.shards import Manifest, OtherVersionError, ShardEntry

SPEC = {"source": "s3://bucket/pairs", "crop": 64, "seed": 0, "stage": 16}


def pair_table(rows: int = 3) -> pa.Table:
    columns = {
        "pair_id": [f"scene-{row}" for row in range(rows)],
        "low": [bytes([row]) * 10 for row in range(rows)],
        "normal": [bytes([row + 100]) * 20 for row in range(rows)],
        "width": [64] * rows,
        "height": [48] * rows,
        "low_curve": [0.15] * rows,
        "curve_deviation": [0.2] * rows,
        "normal_luma": [0.45] * rows,
        "normal_contrast": [0.2] * rows,
        "sha256": [f"{row:064x}" for row in range(rows)],
    }
    return pa.table(columns, schema=shards.PAIR_SCHEMA)


def trajectory_table(rows: int, crop: int) -> pa.Table:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, rows, crop, crop, 3), np.uint8)
    tensors = rng.normal(size=(2, rows, 3, crop, crop)).astype(np.float16)
    values = {
        "pair_id": [f"scene-{row}" for row in range(rows)],
        "scale": [0.5] * rows,
        "crop_y": [1] * rows,
        "crop_x": [2] * rows,
        "orientation": [5] * rows,
        "draw": [0] * rows,
        "gain": [9.0] * rows,
        "seed": [2**63 + row for row in range(rows)],
        "nodes": [[2, 1, 0]] * rows,
        "levels": [[0.5, 0.7, 1.0]] * rows,
        "low": shards.tensor_column(images[0]),
        "normal": shards.tensor_column(images[1]),
        "x_u": shards.tensor_column(tensors[0]),
        "x_target_0": shards.tensor_column(tensors[1]),
    }
    return pa.table(values, schema=shards.trajectory_schema(crop))


def manifest_of(*entries: ShardEntry) -> Manifest:
    return Manifest(kind="pairs", spec=SPEC, shards=entries, facts={"quarantined": 0})


def test_a_pair_shard_comes_back(tmp_path: Path) -> None:
    entry = shards.write_shard(str(tmp_path), "train-00000", pair_table(), split="train")
    assert (entry.rows, entry.split) == (3, "train")
    assert entry.bytes == (tmp_path / "shards" / "train-00000.arrow").stat().st_size
    assert shards.read_shard(str(tmp_path), entry).equals(pair_table())
    assert shards.read_commit_record(str(tmp_path), "train-00000") == entry


def test_trajectories_are_tensors_that_come_back_bit_for_bit(tmp_path: Path) -> None:
    table = trajectory_table(4, 8)
    entry = shards.write_shard(str(tmp_path), "t", table)
    back = shards.read_shard(str(tmp_path), entry)
    assert back.schema.equals(shards.trajectory_schema(8)) and back.equals(table)
    x_u = back["x_u"].combine_chunks().to_numpy_ndarray()
    assert x_u.shape == (4, 3, 8, 8) and x_u.dtype == np.float16
    assert back["seed"].to_pylist()[0] == 2**63


def test_a_trajectory_record_costs_little_more_than_its_pixels() -> None:
    """18 p^2: two uint8 crops of 3 p^2 and two float16 tensors of 6 p^2; noise comes from its seed."""
    sizes = [len(shards.encode_table(trajectory_table(rows, 64))) for rows in (8, 40)]
    assert (sizes[1] - sizes[0]) / 32 <= 1.02 * 18 * 64**2


def test_the_bytes_follow_from_the_table(tmp_path: Path) -> None:
    table = pair_table(6)
    in_pieces = pa.concat_tables([table.slice(0, 2), table.slice(2, 4)])
    assert shards.encode_table(table) == shards.encode_table(pair_table(6)) == shards.encode_table(in_pieces)
    one, other = (shards.write_shard(str(tmp_path / name), "a", table) for name in ("one", "other"))
    assert one == other


@given(st.data())
@settings(max_examples=25)
def test_any_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("flip")
    entry = shards.write_shard(str(root), "a", pair_table())
    path = root / "shards" / "a.arrow"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.arrow is damaged: .* not the committed .* delete its \.json beside it"):
        shards.read_shard(str(root), entry)
    assert shards.verify(str(root), [entry]) == ["a"]


def test_verify_names_the_damaged_and_the_missing(tmp_path: Path) -> None:
    entries = [shards.write_shard(str(tmp_path), name, pair_table()) for name in ("a", "b", "c")]
    assert shards.verify(str(tmp_path), entries) == []
    (tmp_path / "shards" / "a.arrow").unlink()
    (tmp_path / "shards" / "b.arrow").write_bytes(b"")
    assert shards.verify(str(tmp_path), entries) == ["a", "b"]


def test_only_committed_shards_count(tmp_path: Path) -> None:
    assert shards.committed_shards(str(tmp_path)) == {}
    whole = shards.write_shard(str(tmp_path), "whole", pair_table())
    shards.write_shard(str(tmp_path), "uncommitted", pair_table())
    (tmp_path / "shards" / "uncommitted.json").unlink()
    shards.write_shard(str(tmp_path), "lost", pair_table())
    (tmp_path / "shards" / "lost.arrow").unlink()
    assert shards.committed_shards(str(tmp_path)) == {"whole": whole}


def test_commit_records_are_read_once_each_and_not_where_they_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {name: shards.write_shard(str(tmp_path), name, pair_table()) for name in ("a", "b", "c", "d", "e")}
    monkeypatch.setattr(shards, "RECORDS_PER_READ", 2)
    assert list(shards.committed_shards(str(tmp_path)).items()) == list(entries.items())
    (tmp_path / "shards" / "a.arrow").unlink()
    known = {name: entries[name] for name in ("a", "b", "d")}
    for name in known:
        (tmp_path / "shards" / f"{name}.json").write_text("not read")
    assert shards.committed_shards(str(tmp_path), known) == {name: entries[name] for name in ("b", "c", "d", "e")}


def test_the_key_is_the_hash_of_the_content_of_the_spec() -> None:
    reordered = dict(reversed(SPEC.items()))
    assert shards.spec_key(SPEC) == shards.spec_key(reordered)
    assert len(shards.spec_key(SPEC)) == 16
    for name, value in {"crop": 96, "seed": 1, "source": "s3://bucket/other"}.items():
        assert shards.spec_key({**SPEC, name: value}) != shards.spec_key(SPEC)
    assert manifest_of().key == shards.spec_key(SPEC)


def test_a_mismatch_names_every_field_and_both_values() -> None:
    shards.require_match(SPEC, dict(reversed(SPEC.items())), "cache")
    wanted = {**SPEC, "crop": 96, "teacher": "ab"}
    with pytest.raises(
        ValueError,
        match=r"^cache does not match: crop is 64, asked for 96; teacher is None, asked for 'ab'; use another output",
    ):
        shards.require_match(SPEC, wanted, "cache")


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    entries = [shards.write_shard(str(tmp_path), name, pair_table(rows)) for name, rows in (("a", 3), ("b", 2))]
    manifest = manifest_of(*entries)
    shards.write_manifest(str(tmp_path), manifest)
    assert shards.read_manifest(str(tmp_path), "pairs") == manifest
    assert manifest.num_rows == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": {**SPEC, "crop": 96}}, r"manifest.json was altered: its key is not the hash of its spec; make it"),
        ({"key": "0" * 16}, "manifest.json was altered"),
        ({"kind": "trajectories"}, r"holds trajectories, but pairs are needed; give their URL"),
        (
            {"schema_version": 99},
            r"holds pairs of schema 99, but pairs of schema 2 are needed; update this code, or make them again with "
            r"jobs/ingest\.py and another --output$",
        ),
        (
            {"schema_version": 1},
            r"holds pairs of schema 1, but pairs of schema 2 are needed; make them again with jobs/ingest\.py and",
        ),
    ],
)
def test_an_altered_or_foreign_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    shards.write_manifest(str(tmp_path), manifest_of())
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        shards.read_manifest(str(tmp_path), "pairs")


def test_pairs_and_trajectories_have_a_version_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new column in the one must not make datasets of the other unreadable."""
    pairs, cache = str(tmp_path / "pairs"), str(tmp_path / "cache")
    shards.write_manifest(pairs, manifest_of())
    shards.write_manifest(cache, replace(manifest_of(), kind="trajectories"))
    monkeypatch.setitem(shards.SCHEMA_VERSIONS, "trajectories", 3)
    assert shards.read_manifest(pairs, "pairs") == manifest_of()
    with pytest.raises(OtherVersionError, match=r"trajectories of schema 2, but trajectories of schema 3 are needed"):
        shards.read_manifest(cache, "trajectories")
    assert shards.schema_spec("pairs") == {"schema_version": 2}
    assert shards.schema_spec("trajectories") == {"schema_version": 3}
    monkeypatch.setitem(shards.SCHEMA_VERSIONS, "pairs", 1)
    assert shards.schema_spec("pairs") == {}, "the keys of version 1 do not say it"


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b'{"kind": "pai')
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(Unterminated string.*\); make it again"):
        shards.read_manifest(str(tmp_path), "pairs")


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "pairs", "schema_version": 2}', "null"])
def test_json_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json lacks or misnames a field \(.*\); make it again"):
        shards.read_manifest(str(tmp_path), "pairs")


@pytest.mark.parametrize(("kind", "job"), [("pairs", "jobs/ingest.py"), ("trajectories", "jobs/precompute.py")])
def test_a_missing_manifest_names_the_job_that_makes_it(tmp_path: Path, kind: str, job: str) -> None:
    with pytest.raises(ValueError, match=rf"holds no finished {kind} \(manifest.json is missing\); make it with {job}"):
        shards.read_manifest(str(tmp_path), kind)
