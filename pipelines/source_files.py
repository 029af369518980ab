"""The user's files below a source: images, what cannot be used with its reason, and what programs left there.

Ingest and enhance list their sources with it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pipelines import storage

# Folders that file managers, network storage and systems make, in lower case; hidden ones begin with a dot.
PROGRAMS_FOLDERS = frozenset(
    (
        *("@eadir", "@recycle", "#recycle", "#snapshot", "@sharebin"),
        *("__macosx", "lost+found", "$recycle.bin", "system volume information"),
    )
)


Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies below a folder, by names relative to it.

    Attributes:
        images: sorted names of image files.
        unusable: file or folder to the reason why nothing can be read from it.
        not_users: image files that programs made: thumbnails, checkpoints, copies of deleted files.
        others: the user's other files.
    """

    images: Sequence[str] = ()
    unusable: dict[str, str] = field(default_factory=dict)
    not_users: Sequence[str] = ()
    others: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.images or self.unusable or self.not_users or self.others)

    def below(self, folder: str) -> "Listing":
        """The same listing, seen from the folder above."""
        return replace(
            self,
            images=[f"{folder}/{name}" for name in self.images],
            unusable={f"{folder}/{name}": reason for name, reason in self.unusable.items()},
            not_users=[f"{folder}/{name}" for name in self.not_users],
            others=[f"{folder}/{name}" for name in self.others],
        )

    def describe_not_users(self) -> str | None:
        """The images that programs made, in words; None if there are none."""
        return f"{len(self.not_users)}, such as {self.not_users[0]}" if self.not_users else None


def list_source(url: str, extensions: tuple[str, ...]) -> Listing:
    """Lists a folder with all folders below it; links are followed. A missing folder is empty.

    Args:
        url: of the folder.
        extensions: of images, in lower case with the dot.
    """
    tree = storage.list_tree(url)
    unusable = {
        f"{folder or '.'}/": f"the folder cannot be read ({reason}); fix its permissions"
        for folder, reason in tree.unreadable.items()
        if is_users(folder)
    }
    images: list[str] = []
    not_users: list[str] = []
    others: list[str] = []
    for name in tree.files:
        is_image = name.lower().endswith(extensions)
        if not is_users(name):
            not_users += [name] if is_image else []
        elif not is_image:
            others.append(name)
        elif problem := storage.problem_of_name(name):
            unusable[name] = problem
        else:
            images.append(name)
    return Listing(images=images, unusable=unusable, not_users=not_users, others=others)


def merge(listings: Iterable[Listing]) -> Listing:
    """Several listings as one."""
    found = list(listings)
    return Listing(
        images=[name for listing in found for name in listing.images],
        unusable={name: reason for listing in found for name, reason in listing.unusable.items()},
        not_users=[name for listing in found for name in listing.not_users],
        others=[name for listing in found for name in listing.others],
    )


def evenly(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many items, spread evenly."""
    return items[:: max(1, len(items) // most)][:most]


def is_users(name: str) -> bool:
    """Whether a file or folder is the user's own, not hidden or made by a program."""
    parts = (part for part in name.lower().split("/") if part not in (".", ".."))
    return not any(part.startswith(".") or part in PROGRAMS_FOLDERS for part in parts)
