"""Reads pair datasets: the shards of a split, and the images of a row."""

from collections.abc import Iterator, Mapping
from typing import Any

from numpy import uint8
from numpy.typing import NDArray

from pipelines import images, shards
from pipelines.shards import Manifest, ShardEntry


def decode_pair(row: Mapping[str, Any]) -> tuple[NDArray[uint8], NDArray[uint8]]:
    """The (low, normal) images of a row of a pair shard, each [H, W, 3] uint8 RGB of the same size."""
    return images.decode(row["low"]), images.decode(row["normal"])


def split_brightness(manifest: Manifest, split: str = "train") -> float:
    """Mean luma of a split's normal images, in [0, 1]."""
    return float(manifest.facts["splits"][split]["brightness"])


def split_contrast(manifest: Manifest, split: str = "train") -> tuple[float, ...]:
    """Weights that predict the contrast of a split's normal images (`tone.fit_contrast`)."""
    return tuple(manifest.facts["splits"][split]["contrast"])


def split_shards(manifest: Manifest, split: str) -> list[ShardEntry]:
    """The shards of one split, in order.

    Raises:
        ValueError: if there are none.
    """
    found = [entry for entry in manifest.shards if entry.split == split]
    if not found:
        present = ", ".join(sorted({entry.split for entry in manifest.shards})) or "none"
        raise ValueError(
            f"split {split} holds no pairs (there are: {present}); choose one of these, or ingest again with another "
            "--validation-share, --split-seed or --splits"
        )
    return found


def split_rows(pairs: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of one split of the pair dataset at a URL, in order; for `decode_pair`.

    Raises:
        ValueError: if there are none.
    """
    for entry in split_shards(shards.read_manifest(pairs, "pairs"), split):
        yield from shards.read_shard(pairs, entry).to_pylist()
