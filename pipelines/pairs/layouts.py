"""Lists the pairs of a source: from its URL and layout to pairs of image URLs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.config.jobs import IngestConfig
from pipelines.console import warn
from pipelines.images import EXTENSIONS
from pipelines.pairs.folder_layouts import FOLDER_LAYOUTS, LOW_SIDES, FolderLayout
from pipelines.pairs.matching import PairSource, Side, match, split_by_folder, without_extension
from pipelines.pairs.suggestions import describe_found, suggest
from pipelines.pairs.tables import list_table
from pipelines.redaction import printable, redact
from pipelines.source_files import Listing, list_source, merge
from pipelines.texts import read_text


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source holds.

    Attributes:
        pairs: every pair, sorted by `pair_id`, broken ones included with their `problem`.
        notes: what else a person has to know of the source, as facts of a report.
    """

    pairs: Sequence[PairSource]
    notes: Mapping[str, str]


def list_pairs(config: IngestConfig) -> Found:
    """Lists the source.

    Raises:
        ValueError: if there is no such folder or file, or it holds no pair of the layout.
    """
    if config.layout == "table":
        listing, pairs = Listing(), [PairSource(**row) for row in list_table(config.source)]
    elif config.layout == "folders":
        listing, pairs = list_two_folders(config.low or config.source, config.normal, config.pattern)
    elif config.layout == "degrade":
        listing = list_images(config.source)
        # The extension stays in the name: a.jpg and a.png are two photographs.
        pairs = [PairSource(pair_id=name, normal=storage.join(config.source, name)) for name in listing.images]
    else:
        listing, pairs = list_layout(config.source, FOLDER_LAYOUTS[config.layout])
    if not pairs and not listing.unusable:
        raise ValueError(no_pairs(config, listing))
    unusable = [PairSource(pair_id=printable(name), problem=reason) for name, reason in listing.unusable.items()]
    notes = {"images that programs made, left out": listing.describe_not_users()}
    return Found(
        pairs=sorted(mark_repeats([*pairs, *unusable]), key=lambda pair: pair.pair_id),
        notes={name: text for name, text in notes.items() if text},
    )


def no_pairs(config: IngestConfig, listing: Listing) -> str:
    """The error for a source without pairs: what it holds instead, and what would fit."""
    source = config.source or config.low
    fitting = suggest(source, listing.images)
    parts = [
        f"{redact(source)} holds no pairs of layout {config.layout} ({layout_shape(config.layout)})",
        describe_found(listing.images),
        f"use {fitting}" if fitting else "check --source and --layout",
    ]
    return "; ".join(part for part in parts if part)


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


def list_images(url: str, folders: Iterable[str] = ()) -> Listing:
    """The images below a folder, or below some of its folders if they hold anything.

    Raises:
        ValueError: if there is nothing at all.
    """
    found = merge(list_source(storage.join(url, folder), EXTENSIONS).below(folder) for folder in folders)
    found = list_source(url, EXTENSIONS) if found.is_empty else found
    if found.is_empty:
        raise ValueError(f"{redact(url)} is missing or empty; give the URL of a folder that holds images")
    unencodable = {name: "its name is not UTF-8; rename it" for name in found.images if not is_utf_8(name)}
    return replace(
        found,
        images=[name for name in found.images if name not in unencodable],
        unusable={**found.unusable, **unencodable},
    )


def is_utf_8(name: str) -> bool:
    """Whether a name has no bytes that are not UTF-8, which Python keeps as lone surrogates and Arrow cannot hold."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def list_layout(source: str, layout: FolderLayout) -> tuple[Listing, list[PairSource]]:
    """The pairs of a public dataset, and what else is there."""
    lows: dict[str, list[str]] = defaultdict(list)
    normals: dict[str, list[str]] = defaultdict(list)
    known: dict[str, tuple[str, str]] = {}
    test_scenes = listed_test_scenes(source, layout) if layout.test_lists else frozenset()
    listing = list_images(source, layout.folders)
    for name in listing.images:
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
    low, normal = (Side(root=source, names=names, many=layout.shared) for names in (lows, normals))
    return listing, [replace(pair, split=known[key][0], scene=known[key][1]) for key, pair in match(low, normal)]


def list_two_folders(low: str, normal: str, pattern: str) -> tuple[Listing, list[PairSource]]:
    """Pairs of two plain folders, by relative path without extension, or by the pattern's first group.

    Raises:
        ValueError: if both are one folder, or the pattern is no regular expression, or has no group.
    """
    if storage.real_url(low) == storage.real_url(normal):
        raise ValueError(
            f"low and normal are both {redact(low)}, so that every image would be its own partner; give each side a "
            "folder of its own, or list the pairs in a table (--layout table)"
        )
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression ({error}); fix it") from None
    if pattern and not regex.groups:
        raise ValueError(f"pattern {pattern!r} has no group; put what both names share in (), such as '_([0-9]+)'")
    sides: list[dict[str, list[str]]] = [defaultdict(list), defaultdict(list)]
    listings = []
    for side, url in zip(sides, (low, normal), strict=True):
        listing = list_images(url)
        unusable = dict(listing.unusable)
        for name in listing.images:
            found = regex.search(PurePosixPath(name).name) if pattern else None
            key = (found and found.group(1)) if pattern else without_extension(name)
            if key:
                side[key].append(name)
            else:
                unusable[name] = f"its name does not match the pattern {pattern!r}"
        listings.append(replace(listing, unusable=unusable).below(storage.base_name(url)))
    lows, normals = sides
    hints: Mapping[str, str] = {}
    if pattern:
        lows, normals, hints = split_by_folder(lows, normals)
    pairs = match(Side(root=low, names=lows, many=bool(pattern)), Side(root=normal, names=normals), hints)
    return merge(listings), [pair for _, pair in pairs]


def listed_test_scenes(source: str, layout: FolderLayout) -> frozenset[str]:
    """The scenes of a dataset's official test list, which lies anywhere below its root; warns if there is no list."""
    lists = [name for name in storage.list_files(source) if PurePosixPath(name).name in layout.test_lists]
    if not lists:
        message = f"warning: {redact(source)} holds no {layout.test_lists[0]}, so no scene is kept for testing"
        warn(message)
        return frozenset()
    return frozenset(read_text(storage.join(source, lists[0])).split())
