"""Assigns pairs to splits by whole scenes; pairs that are added later change no split. Pure functions; no files.

Pairs are of one scene when they share a label: the pixels of their normal image, or the layout's own scene.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Member:
    """A pair's data for the assignment.

    Attributes:
        pair_id: its name.
        labels: pairs with a label in common are of one scene; at least one.
        split: the split it must have (given by the user or the layout), else empty.
        committed: it is already in a shard of `split`, which therefore cannot change.
    """

    pair_id: str
    labels: tuple[str, ...]
    split: str = ""
    committed: bool = False


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The splits of the members that were not committed yet.

    Attributes:
        splits: pair_id to split.
        scenes: pair_id to scene, for every member.
        left_out: pair_id to the reason why no split can hold it.
    """

    splits: Mapping[str, str] = field(default_factory=dict)
    scenes: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


def scene_labels(normal_sha256: str, layout_scene: str) -> tuple[str, ...]:
    """The labels of a pair; the layout's scene comes first in order, so that it names the scene."""
    return (f"layout:{layout_scene}", f"normal:{normal_sha256}") if layout_scene else (f"normal:{normal_sha256}",)


def group_scenes(members: Iterable[Member]) -> dict[str, list[Member]]:
    """The connected components of members that share labels, each keyed by the smallest of its labels."""
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        while parent.setdefault(label, label) != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    members = list(members)
    for member in members:
        for label in member.labels:
            low, high = sorted((root(member.labels[0]), root(label)))
            parent[high] = low
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        groups[root(member.labels[0])].append(member)
    return dict(groups)


def draw_split(scene: str, validation_share: float, seed: int) -> str:
    """`validation` for about that share of all scenes, else `train`; a pure function of its arguments."""
    digest = hashlib.sha256(f"{seed}:{scene}".encode()).digest()
    return "validation" if int.from_bytes(digest[:8]) < validation_share * 2**64 else "train"


def assign(members: Sequence[Member], validation_share: float, seed: int) -> Assignment:
    """Assigns one split to every scene.

    A split that is fixed for one pair of a scene holds for the whole scene, with two exceptions: pairs that share a
    scene with an official test set are left out instead of joining it, and a pair that is already in a shard stays
    there.

    Raises:
        ValueError: if two pairs of one scene were given different splits.
    """
    splits: dict[str, str] = {}
    scenes: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for scene, together in group_scenes(members).items():
        scenes.update((member.pair_id, scene) for member in together)
        owners = split_owners(together)
        split = next(iter(owners)) if len(owners) == 1 else draw_split(scene, validation_share, seed)
        for member in together:
            if member.committed:
                continue
            if len(owners) <= 1 and (member.split == split or (not member.split and (split != "test"))):
                splits[member.pair_id] = split
            else:
                others = " and ".join(f"{pair_id} in {owned}" for owned, pair_id in sorted(owners.items()))
                left_out[member.pair_id] = f"it shares its scene with {others}"
    return Assignment(splits=splits, scenes=scenes, left_out=left_out)


def split_owners(together: Sequence[Member]) -> dict[str, str]:
    """The splits of a scene's committed pairs, or else those that were given, each with one such pair.

    More than one is possible only for committed pairs, when a new pair links what were two scenes.
    """
    committed = {member.split: member.pair_id for member in together if member.committed}
    given = {member.split: member.pair_id for member in together if member.split and not member.committed}
    if not committed and len(given) > 1:
        (first, one), (second, other), *_ = sorted(given.items())
        raise ValueError(
            f"{one} is to be in {first} and {other} in {second}, but they share a scene and must share their "
            "split; give both the same split in the --splits table"
        )
    return committed or given
