"""Lists the pairs of a source: from its URL and layout to pairs of image URLs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from rich.console import Console

from pipelines import storage
from pipelines.config.jobs import IngestConfig
from pipelines.images import EXTENSIONS
from pipelines.pairs.folder_layouts import FOLDER_LAYOUTS, LOW_SIDES, FolderLayout
from pipelines.pairs.tables import list_table
from pipelines.redaction import redact


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


def list_pairs(config: IngestConfig) -> list[PairSource]:
    """Every pair that the source holds, sorted by `pair_id`, broken ones included with their `problem`.

    Raises:
        ValueError: if there is no such folder or file, or it holds no pair of the layout.
    """
    if config.layout == "table":
        pairs = [PairSource(**row) for row in list_table(config.source)]
    elif config.layout == "folders":
        pairs = list_two_folders(config.low or config.source, config.normal, config.pattern)
    elif config.layout == "degrade":
        # The extension stays in the name: a.jpg and a.png are two photographs.
        files = list_images(config.source)
        pairs = [PairSource(pair_id=name, normal=storage.join(config.source, name)) for name in files]
    else:
        pairs = list_layout(config.source, FOLDER_LAYOUTS[config.layout])
    if not pairs:
        raise ValueError(
            f"{redact(config.source or config.low)} holds no pairs of layout {config.layout} "
            f"({layout_shape(config.layout)}); check --source and --layout"
        )
    return sorted(mark_repeats(pairs), key=lambda pair: pair.pair_id)


def mark_repeats(pairs: Iterable[PairSource]) -> list[PairSource]:
    """One pair per `pair_id`; a `pair_id` that several files claim is marked with that problem."""
    by_id: dict[str, PairSource] = {}
    for pair in pairs:
        first = by_id.get(pair.pair_id)
        problem = (
            f"several files claim it: {storage.base_name(first.low)}, {storage.base_name(pair.low)}" if first else ""
        )
        by_id[pair.pair_id] = replace(first, problem=problem) if first else pair
    return list(by_id.values())


def layout_shape(layout: str) -> str:
    """A layout's files in words, for errors."""
    if layout in FOLDER_LAYOUTS:
        return FOLDER_LAYOUTS[layout].shape
    return {
        "table": "a .csv or .jsonl with low,normal",
        "folders": "files of equal names below --low and --normal",
        "degrade": f"photographs, {' '.join(EXTENSIONS)}",
    }[layout]


def list_images(url: str, folders: Iterable[str] = ()) -> list[str]:
    """Relative paths of the images below a folder, or below some of its folders; hidden files do not count."""
    names = [f"{folder}/{name}" for folder in folders for name in storage.list_files(storage.join(url, folder))]
    names = names or storage.list_files(url)
    images = [name for name in names if is_image(name)]
    if not images and not names:
        raise ValueError(f"{redact(url)} is missing or empty; give the URL of a folder that holds images")
    return images


def is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def without_extension(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def list_layout(source: str, layout: FolderLayout) -> list[PairSource]:
    """The pairs of a public dataset."""
    lows: dict[str, list[str]] = defaultdict(list)
    normals: dict[str, list[str]] = defaultdict(list)
    known: dict[str, tuple[str, str]] = {}
    test_scenes = listed_test_scenes(source, layout) if layout.test_lists else frozenset()
    for name in list_images(source, layout.folders):
        found = layout.pattern.search(without_extension(name))
        if found is None:
            continue
        groups = found.groupdict()
        is_low = groups["side"].lower() in LOW_SIDES
        folder = [groups[part] for part in ("part", "scene") if part in groups]
        key = "/".join(folder if layout.shared else [*folder, groups["name"]])
        if layout.skip and not is_low and layout.skip.search(groups["name"]):
            continue
        (lows if is_low else normals)[key].append(name)
        is_test = layout.is_test(groups) or groups.get("scene") in test_scenes
        scene = layout.scene_of_take(groups["scene"]) if "scene" in groups else ""
        known[key] = ("test" if is_test else "", "/".join([*folder[:-1], scene]) if scene else "")
    pairs = match(source, source, lows, normals, many_lows=layout.shared, many_normals=layout.shared)
    return [replace(pair, split=known[key][0], scene=known[key][1]) for key, pair in pairs]


def match(
    low_root: str,
    normal_root: str,
    lows: Mapping[str, list[str]],
    normals: Mapping[str, list[str]],
    *,
    many_lows: bool,
    many_normals: bool,
) -> list[tuple[str, PairSource]]:
    """(key, pair) for every low image, and for every key that has none.

    `many_lows` lets the low images of a key share its normal one, and `many_normals` takes the first of several;
    otherwise several files of one key are marked as a problem, since it is not known which one is meant.
    """
    pairs = []
    for key in sorted({*lows, *normals}):
        low_names, normal_names = sorted(lows.get(key, [])), sorted(normals.get(key, []))
        normal = storage.join(normal_root, normal_names[0]) if normal_names else ""
        rivals = [
            *(low_names if len(low_names) > 1 and not many_lows else []),
            *(normal_names if len(normal_names) > 1 and not many_normals else []),
        ]
        if rivals:
            problem = f"several files claim it: {', '.join(rivals)}"
            pairs.append((key, PairSource(pair_id=key, normal=normal, problem=problem)))
        elif not low_names:
            pairs.append((key, PairSource(pair_id=key, normal=normal, problem="its low image is missing")))
        for low in [] if rivals else low_names:
            pair_id = without_extension(low) if many_lows else key
            problem = "" if normal else "its normal image is missing"
            url = storage.join(low_root, low)
            pairs.append((key, PairSource(pair_id=pair_id, low=url, normal=normal, problem=problem)))
    return pairs


def list_two_folders(low: str, normal: str, pattern: str) -> list[PairSource]:
    """Pairs of two plain folders, by relative path without extension, or by the pattern's first group.

    Raises:
        ValueError: if the pattern is no regular expression, or has no group.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression ({error}); fix it") from None
    if pattern and not regex.groups:
        raise ValueError(f"pattern {pattern!r} has no group; put what both names share in (), such as '_([0-9]+)'")
    sides: list[dict[str, list[str]]] = [defaultdict(list), defaultdict(list)]
    unnamed = []
    for side, url in zip(sides, (low, normal), strict=True):
        for name in list_images(url):
            found = regex.search(PurePosixPath(name).name) if pattern else None
            key = (found and found.group(1)) if pattern else without_extension(name)
            if not key:
                problem = f"its name does not match the pattern {pattern!r}"
                unnamed.append(PairSource(pair_id=f"{storage.base_name(url)}/{name}", problem=problem))
                continue
            side[key].append(name)
    found_pairs = match(low, normal, sides[0], sides[1], many_lows=bool(pattern), many_normals=False)
    return [pair for _, pair in found_pairs] + unnamed


def listed_test_scenes(source: str, layout: FolderLayout) -> frozenset[str]:
    """The scenes of a dataset's official test list, which lies anywhere below its root; warns if there is no list."""
    lists = [name for name in storage.list_files(source) if PurePosixPath(name).name in layout.test_lists]
    if not lists:
        message = f"warning: {redact(source)} holds no {layout.test_lists[0]}, so no scene is kept for testing"
        Console(stderr=True, soft_wrap=True, highlight=False).print(message, markup=False)
        return frozenset()
    return frozenset(storage.read_bytes(storage.join(source, lists[0])).decode().split())
