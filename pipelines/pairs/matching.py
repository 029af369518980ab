"""Matches low images with normal ones by keys that both sides of a pair share."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipelines import storage


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """One pair before it is read.

    Attributes:
        pair_id: stable and relative to the layout; never changes when files are added.
        low: URL of the low image; empty when it is made from the normal one, or missing.
        normal: URL of the normal image; empty when missing.
        split: `train`, `validation` or `test` where the layout knows it, else empty: it is then drawn by scene.
        scene: what the layout knows of the scene, else empty; pairs of one scene stay in one split.
        problem: the reason why it cannot be used, else empty.
    """

    pair_id: str
    low: str = ""
    normal: str = ""
    split: str = ""
    scene: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The images of one side: the URL of their folder, and by key their names below it.

    Attributes:
        many: several images may have one key. Low ones then share its normal image; of normal ones the first is taken.
    """

    root: str
    names: Mapping[str, Sequence[str]]
    many: bool = False

    def renamed(self, keys: Mapping[str, str]) -> "Side":
        return replace(self, names={keys.get(key, key): names for key, names in self.names.items()})


def match(low: Side, normal: Side, hints: Mapping[str, str] | None = None) -> list[tuple[str, PairSource]]:
    """(key, pair) for every low image, and for every key that has none.

    Keys that differ only in case, or in how an accent is composed, are the same where it is clear which are meant. Of
    several files of one key it is not, and they are marked as a problem.

    Args:
        low: the low images.
        normal: the normal images.
        hints: key to what else is to be said if its partner is missing.
    """
    alike = unambiguous(normal.names, low.names)
    near = {**look_alikes(low.names, normal.names), **look_alikes(normal.names, low.names), **(hints or {})}
    normal = normal.renamed(alike)
    pairs = []
    for key in sorted({*low.names, *normal.names}):
        lows, normals = sorted(low.names.get(key, ())), sorted(normal.names.get(key, ()))
        hint = f"; {near[key]}" if key in near else ""
        url = storage.join(normal.root, normals[0]) if normals else ""
        rivals = [
            *(lows if len(lows) > 1 and not low.many else ()),
            *(normals[1:] and normals if not normal.many else ()),
        ]
        if rivals:
            problem = f"several files claim it: {', '.join(rivals)}"
            pairs.append((key, PairSource(pair_id=key, normal=url, problem=problem)))
            continue
        if not lows:
            pairs.append((key, PairSource(pair_id=key, normal=url, problem=f"its low image is missing{hint}")))
        for name in lows:
            pair_id = without_extension(name) if low.many else key
            problem = "" if normals else f"its normal image is missing{hint}"
            low_url = storage.join(low.root, name)
            pairs.append((key, PairSource(pair_id=pair_id, low=low_url, normal=url, problem=problem)))
    return pairs


def without_extension(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def fold(name: str) -> str:
    """The same text for names that differ only in case, or in how an accent is composed (Unicode's caseless match)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def by_fold(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[fold(name)].append(name)
    return groups


def unambiguous(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """From names without an equal one among the others to the only one there that is the same but for its spelling."""
    lonely, free = (by_fold(set(one) - set(two)) for one, two in ((names, others), (others, names)))
    return {lonely[key][0]: free[key][0] for key in lonely if len(lonely[key]) == len(free.get(key, ())) == 1}


def look_alikes(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """For names without an equal one: those among the others that look like it, so that the difference can be seen."""
    groups = by_fold(others)
    found = {name: groups[fold(name)] for name in set(names) - set(others) if fold(name) in groups}
    return {
        name: f"{', '.join(map(ascii, sorted(alike)))} is spelled otherwise than {name!a}, and it is not clear "
        "which are meant: rename one"
        for name, alike in found.items()
    }


def split_by_folder(
    lows: Mapping[str, Sequence[str]], normals: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, str]]:
    """Keys found in file names, made unique: where images of a key lie in several folders, the folder is part of it.

    Otherwise images of different scenes, which are numbered alike, would share one normal image.

    Returns:
        Names by the new keys, of both sides, and a hint for the keys that have been split.
    """
    sides: tuple[dict[str, list[str]], dict[str, list[str]]] = (defaultdict(list), defaultdict(list))
    hints = {}
    for key in {*lows, *normals}:
        spread = any(len({folder_of(name) for name in side.get(key, ())}) > 1 for side in (lows, normals))
        for side, new in zip((lows, normals), sides, strict=True):
            for name in side.get(key, ()):
                new_key = f"{folder_of(name)}/{key}" if spread else key
                new[new_key].append(name)
                if spread:
                    hints[new_key] = (
                        f"several folders hold images of {key!r}, so partners must lie in folders of one name"
                    )
    return *sides, hints


def folder_of(name: str) -> str:
    return str(PurePosixPath(name).parent)
