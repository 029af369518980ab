"""Which cache a stage reads: the one of its teacher, segments and training pairs, or one clear refusal."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipelines import shards, storage
from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import SegmentConfig
from pipelines.shards import Manifest, ShardEntry
from pipelines.trajectories.caches import find_cache
from pipelines.trajectories.crops import check_crop
from pipelines.trajectories.records import record_spec
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.schedule import NoiseSchedule
from reddit_core.weights import NetworkFile

SEGMENT = SegmentConfig(crop=16, crops=2)
UNET = UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4)
TEACHER = NetworkFile(network=UNet(UNET), schedule=NoiseSchedule(), facts={})
PAIRS = Manifest(
    kind="pairs",
    spec={"source": "here"},
    shards=tuple(ShardEntry(name=name, rows=2, bytes=1, sha256=name, split=name) for name in ("train", "validation")),
)


def write_cache(root: Path, **changes: object) -> str:
    spec = {**record_spec(PAIRS, "train", TEACHER, "abc", 4, SEGMENT), "precision": "fp32", **changes}
    url = storage.join(str(root), f"4-{shards.spec_key(spec)}")
    shards.write_manifest(url, Manifest(kind="trajectories", spec=spec, shards=()))
    return url


def find(root: Path, teacher: NetworkFile = TEACHER) -> str:
    config = DistillConfig(cache=str(root), teacher="t", output="o", segment=SEGMENT)
    return find_cache(config, 4, teacher, "abc")[0]


def test_a_cache_of_other_pairs_is_refused(tmp_path: Path) -> None:
    """Else they would be judged on scenes that were trained on."""
    fitting = write_cache(tmp_path / "cache")
    config = DistillConfig(
        cache=str(tmp_path / "cache"), teacher="t", output="o", segment=SEGMENT, pairs=str(tmp_path / "pairs")
    )
    shards.write_manifest(config.pairs, PAIRS)
    assert find_cache(config, 4, TEACHER, "abc")[0] == fitting
    others = tuple(replace(entry, sha256="other") for entry in PAIRS.shards)
    shards.write_manifest(config.pairs, replace(PAIRS, shards=others))
    with pytest.raises(ValueError, match="pairs_shards is"):
        find_cache(config, 4, TEACHER, "abc")


def test_the_cache_that_fits_is_found_among_others(tmp_path: Path) -> None:
    write_cache(tmp_path, split="validation")
    write_cache(tmp_path, teacher_sha256="xyz")
    write_cache(tmp_path, segment=asdict(replace(SEGMENT, crop=32)))
    fitting = write_cache(tmp_path)
    assert find(tmp_path) == fitting


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher_sha256": "xyz"}, "teacher_sha256 is 'xyz', asked for 'abc'"),
        ({"split": "validation"}, "split is 'validation', asked for 'train'"),
        ({"segment": asdict(replace(SEGMENT, crop=32))}, "segment is .*'crop': 32"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_by_what_differs(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    write_cache(tmp_path, **changes)
    with pytest.raises(ValueError, match=named):
        find(tmp_path)


def test_of_several_that_do_not_fit_the_nearest_is_compared(tmp_path: Path) -> None:
    nearest = write_cache(tmp_path, teacher_sha256="xyz")
    for crop in (32, 48, 64):
        write_cache(tmp_path, teacher_sha256="xyz", split="test", segment=asdict(replace(SEGMENT, crop=crop)))
    with pytest.raises(ValueError, match=f"^{nearest} does not match: teacher_sha256 is 'xyz', asked for 'abc'; use"):
        find(tmp_path)


def test_the_groups_that_a_released_file_was_read_with_are_a_part_of_the_key(tmp_path: Path) -> None:
    write_cache(tmp_path)
    other = replace(TEACHER, network=UNet(replace(UNET, norm_groups=8)))
    with pytest.raises(ValueError, match="norm_groups is 4, asked for 8"):
        find(tmp_path, other)


def test_several_caches_that_fit_are_refused_by_how_they_differ(tmp_path: Path) -> None:
    write_cache(tmp_path)
    write_cache(tmp_path, precision="bf16")
    with pytest.raises(ValueError, match=r"2 caches of stage 4 that fit .* differ in precision"):
        find(tmp_path)


def test_a_cache_of_another_schema_version_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cache(tmp_path, precision="bf16")
    monkeypatch.setitem(shards.SCHEMA_VERSIONS, "trajectories", 3)
    with pytest.raises(ValueError, match=r"trajectories of schema 2, but trajectories of schema 3 are needed"):
        find(tmp_path)
    fitting = write_cache(tmp_path)
    assert find(tmp_path) == fitting
    assert len(list(tmp_path.iterdir())) == 2, "each version has a folder of its own"


def test_crops_that_the_network_cannot_halve_are_refused() -> None:
    check_crop(SEGMENT, TEACHER.network)
    with pytest.raises(ValueError, match=r"segment.crop is 17, .* multiple of the teacher's 2; use 18"):
        check_crop(replace(SEGMENT, crop=17), TEACHER.network)
