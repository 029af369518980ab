"""What a source without pairs of its layout holds, and which layout or folder would fit."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from pipelines import storage
from pipelines.pairs.folder_layouts import FOLDER_LAYOUTS, LOW_SIDES
from pipelines.pairs.matching import folder_of, without_extension
from pipelines.redaction import redact

NORMAL_SIDES = ("normal", "high", "target", "gt", "long", "hq", "reference", "ref", "bright")
MORE_LOW_SIDES = ("dark", "night")
MOST_FOLDERS, MOST_SUGGESTIONS = 4, 2


def describe_found(images: Sequence[str]) -> str:
    """The folders of a source that hold most images, in words; empty if there are none."""
    folders = Counter(folder_of(name) for name in images).most_common()
    shown = ", ".join(f"{count} in {folder}" for folder, count in folders[:MOST_FOLDERS])
    more = f" and {len(folders) - MOST_FOLDERS} more folders" if len(folders) > MOST_FOLDERS else ""
    return f"there are images: {shown}{more}" if images else ""


def suggest(source: str, images: Sequence[str]) -> str:
    """Flags that would find pairs among these images, in words; empty if none are known."""
    flags = list(dict.fromkeys([*fitting_layouts(source, images), *fitting_folders(source, images)]))
    return " or ".join(flags[:MOST_SUGGESTIONS])


def fitting_layouts(source: str, images: Sequence[str]) -> Iterator[str]:
    """Layouts of the images, as they lie below the source, or below the folder or the two folders above it."""
    parts = storage.resolve(source).split("/")
    for levels in range(3):
        root, prefix = "/".join(parts[: len(parts) - levels]), parts[len(parts) - levels :]
        for name, layout in FOLDER_LAYOUTS.items():
            paths = (without_extension("/".join([*prefix, image])) for image in images)
            found = [match["side"].lower() in LOW_SIDES for path in paths if (match := layout.pattern.search(path))]
            if len(set(found)) == 2:
                yield f"--layout {name} --source {redact(root)}"


def fitting_folders(source: str, images: Sequence[str]) -> Iterator[str]:
    """Folders beside each other whose names say which side they are."""
    folders = sorted({PurePosixPath(folder_of(name)) for name in images})
    for low in folders:
        for normal in folders:
            if low.parent == normal.parent and is_low(low.name) and normal.name.lower() in NORMAL_SIDES:
                urls = (redact(storage.join(source, str(folder))) for folder in (low, normal))
                yield "--layout folders --low {} --normal {}".format(*urls)


def is_low(folder: str) -> bool:
    return folder.lower() in (*LOW_SIDES, *MORE_LOW_SIDES)
