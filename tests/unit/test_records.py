"""Records are pure functions of their seeds; crops are cut from where they say."""

import numpy as np

from pipelines.config.parts import SegmentConfig
from pipelines.shards import ShardEntry
from pipelines.trajectories.crops import (
    ORIENTATIONS,
    RecordShard,
    cut,
    derive_seed,
    draw_brightness_factor,
    draw_crop,
    draw_scale,
    gather,
    reduce,
    scale_values,
)
from pipelines.trajectories.records import draw_levels, record_noise
from reddit_core.schedule import NoiseSchedule

ENTRY = ShardEntry(name="train-00000", rows=3, bytes=0, sha256="")


def levels(segment: SegmentConfig, rows: np.ndarray, stage: int = 8) -> dict[str, np.ndarray]:
    shard = RecordShard(name="train-00000-0000", pairs=ENTRY, start=0, stop=3 * segment.crops * segment.draws)
    per_pair = segment.crops * segment.draws
    crops = {"pair_id": np.array([f"p{row // per_pair}" for row in rows])}
    return draw_levels(crops, shard, segment, NoiseSchedule(), stage, rows)


def test_noise_comes_back_bit_for_bit_from_its_seed() -> None:
    seeds = np.array([1, 2**64 - 1, 7], dtype=np.uint64)
    noise = record_noise(seeds, 16)
    np.testing.assert_array_equal(noise[2], record_noise(seeds[2:], 16)[0])
    assert noise.shape == (3, 3, 16, 16) and noise.dtype == np.float32
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1


def test_draws_depend_on_the_record_and_not_on_what_is_loaded_with_it() -> None:
    segment = SegmentConfig(crop=8, crops=2, draws=3)
    everything = levels(segment, np.arange(18))
    some = levels(segment, np.array([4, 11]))
    for name in ("seed", "nodes", "levels"):
        np.testing.assert_array_equal(some[name], everything[name][[4, 11]])
    assert len(set(everything["seed"])) == 18


def test_stages_and_cache_seeds_draw_differently() -> None:
    rows = np.arange(6)
    seeds = [
        levels(SegmentConfig(crop=8, crops=2, seed=seed), rows, stage)["seed"]
        for seed, stage in ((0, 8), (0, 4), (1, 8))
    ]
    assert len({int(seed) for group in seeds for seed in group}) == 18


def test_records_of_a_group_share_their_segment_as_released() -> None:
    drawn = levels(SegmentConfig(crop=8, crops=4, levels="released", shared_t=4), np.arange(12), stage=16)
    for group in drawn["nodes"].reshape(3, 4, 3):
        assert (group == group[0]).all()
    assert len(set(drawn["levels"][:, 0])) == 12


def test_a_crop_is_the_named_part_of_the_image_in_one_of_eight_orientations() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    part = image[3:11, 5:13]
    expected = {0: part, 1: part[:, ::-1], 2: part[::-1], 3: part[::-1, ::-1], 4: part.swapaxes(0, 1)}
    for orientation, piece in expected.items():
        np.testing.assert_array_equal(cut(image, 3, 5, 8, orientation), piece)
    assert len({cut(image, 3, 5, 8, orientation).tobytes() for orientation in range(ORIENTATIONS)}) == 8
    assert {draw_crop(image.shape, 8, 0, "pair", index)[2] for index in range(100)} == set(range(ORIENTATIONS))


def test_a_crop_is_made_brighter_or_darker_but_never_mostly_white() -> None:
    factors = [draw_brightness_factor(0.2, 0.5, 0, "pair", index) for index in range(200)]
    assert min(factors) < 0.85 and max(factors) > 1.18 and all(abs(np.log(factor)) <= 0.2 for factor in factors)
    assert all(draw_brightness_factor(0.2, 0.9, 0, "pair", index) <= 1 for index in range(200))
    assert draw_brightness_factor(0.0, 0.5, 0, "pair", 0) == 1
    image = np.array([[[0, 100, 200]]], dtype=np.uint8)
    assert scale_values(image, 1.5).tolist() == [[[0, 150, 255]]]
    assert scale_values(image, 1.0) is image


def test_crops_lie_inside_and_small_images_are_mirrored_outwards() -> None:
    for index in range(50):
        y, x, _ = draw_crop((20, 30, 3), 8, 0, "pair", index)
        assert 0 <= y <= 12 and 0 <= x <= 22
    small = np.arange(5 * 30 * 3, dtype=np.uint8).reshape(5, 30, 3)
    piece = cut(small, 0, 2, 8, 0)
    assert piece.shape == (8, 8, 3)
    np.testing.assert_array_equal(piece[5], small[4, 2:10])


def test_a_reduced_image_shows_the_same_scene_and_never_gets_smaller_than_a_crop() -> None:
    scales = [draw_scale(0.25, 0, "pair", index) for index in range(200)]
    assert min(scales) < 0.3 and max(scales) > 0.9 and all(0.25 <= scale <= 1 for scale in scales)
    assert draw_scale(1.0, 0, "pair", 0) == 1
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    half = reduce(image, 0.5, 8)
    blocks = image.reshape(20, 2, 30, 2, 3).mean((1, 3))
    assert np.abs(half - blocks).max() <= 1
    assert reduce(image, 0.25, 16).shape == (16, 24, 3)
    assert reduce(image, 1.0, 8) is image
    assert reduce(image, 0.5, 100) is image


def test_a_batch_has_every_column_of_its_crops_whatever_they_are() -> None:
    """So that a column which is added to crops reaches the trainers of teachers and students."""
    records = np.array([[1, 0, 0], [0, 2, 0], [1, 1, 0], [1, 0, 1]])
    calls = []

    def load(shard: int, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        calls.append((shard, epoch))
        named = {"pair_id": np.array([f"p{row}" for row in rows]), "row": rows}
        return {**named, "place": np.array([[shard, epoch]] * len(rows)), "some_signal": rows * 0.5}

    batch = gather(records, load)
    assert calls == [(0, 0), (1, 0), (1, 1)]
    assert set(batch) == {"row", "place", "some_signal"}
    np.testing.assert_array_equal(batch["row"], records[:, 1])
    np.testing.assert_array_equal(batch["place"], records[:, [0, 2]])
    np.testing.assert_array_equal(batch["some_signal"], records[:, 1] * 0.5)


def test_seeds_depend_on_every_part() -> None:
    assert len({derive_seed(0, "a", 1), derive_seed(0, "a", 2), derive_seed(1, "a", 1), derive_seed(0, "b", 1)}) == 4
