"""The only module that uses fsspec: all others read and write URLs through these functions.

A plain path means `file://`. Object stores are reached with the standard credential chain of their
fsspec implementation; transient failures are retried with exponential backoff.
"""

import hashlib
import os
import posixpath
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from pipelines.retries import with_retries

# A key with `::` that does not chain two URLs, as `zip://a.png::s3://bucket/b.zip` does: its root, and the rest.
NOT_A_CHAIN = re.compile(r"([a-z0-9+]+://[^/]+)/((?:(?!://).)*::(?:(?!://).)*)$")
HTTP_SCHEMES = ("http://", "https://")
PYARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")


def resolve(url: str) -> str:
    """The absolute form of a URL: local paths become absolute without a scheme, others lose a trailing slash."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return str(Path(url).expanduser().absolute())
    return str(Path(rest).absolute()) if scheme == "file" else url.rstrip("/")


def is_local(url: str) -> bool:
    return "://" not in resolve(url)


def real_url(url: str) -> str:
    """A URL by which the same place is recognized: links in a local path are followed."""
    return os.path.realpath(resolve(url)) if is_local(url) else resolve(url)


def join(url: str, *parts: str) -> str:
    """`url/part/part`.

    Raises:
        ValueError: if a part would lead out of `url`.
    """
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ValueError(f"the name {part!r} leaves its folder {url}; names must be relative and without '..'")
    return posixpath.join(resolve(url), *parts)


def problem_of_name(name: str) -> str:
    """The reason why a name below a folder names no file below every folder; empty for ordinary names.

    An object store's key may hold any text, such as `night//a.jpg`.
    """
    wrong = next((part for part in name.split("/") if part in ("", ".", "..")), None)
    return "" if wrong is None else f"its name has the part {wrong!r} between slashes, which no folder has; rename it"


def base_name(url: str) -> str:
    return posixpath.basename(resolve(url))


def split_file(url: str) -> tuple[str, str]:
    """The URL of a file's folder, and its name; of an HTTP URL without the query, and with `%20` as a blank."""
    url = resolve(url)
    if not url.startswith(HTTP_SCHEMES):
        return posixpath.split(url)
    parts = urlsplit(url)
    folder, name = posixpath.split(parts.path)
    return f"{parts.scheme}://{parts.netloc}{folder}", unquote(name)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path inside it.

    Raises:
        ValueError: if no installed package knows the scheme.
    """
    if is_local(url):  # in a local path, fsspec would take `::` for a chain of URLs
        return LocalFileSystem(), resolve(url)
    root, rest = NOT_A_CHAIN.match(resolve(url)), ""
    if root:
        url, rest = root.groups()
    try:
        filesystem, path = fsspec.core.url_to_fs(resolve(url))
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be opened ({error}); use a path, s3://, or another scheme fsspec knows"
        ) from None
    return filesystem, posixpath.join(path, rest) if rest else path


def for_ray(url: str) -> tuple[str, FileSystem | None]:
    """A URL as Ray's `storage_path` and `storage_filesystem`; the latter is None for stores that pyarrow supports."""
    if is_local(url) or resolve(url).partition("://")[0] in PYARROW_SCHEMES:
        return resolve(url), None
    filesystem, path = open_filesystem(url)
    return path, PyFileSystem(FSSpecHandler(filesystem))


@with_retries
def read_bytes(url: str) -> bytes:
    filesystem, path = open_filesystem(url)
    data: bytes = filesystem.cat_file(path)
    return data


@with_retries
def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file; fewer if it ends before."""
    filesystem, path = open_filesystem(url)
    data: bytes = filesystem.cat_file(path, start=start, end=stop)
    return data


def sha256(url: str) -> str:
    """SHA-256 of a file's bytes, in hex digits."""
    return hashlib.sha256(read_bytes(url)).hexdigest()


@with_retries
def file_size(url: str) -> int:
    """Size of a file in bytes."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return int(filesystem.size(path))


@with_retries
def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Writes a whole file atomically: readers see the old one or the new one, never a part of it."""
    filesystem, path = open_filesystem(url)
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, bytes(data))
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")  # the target's name may be as long as a name can be
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@with_retries
def exists(url: str) -> bool:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return bool(filesystem.exists(path))


@dataclass(frozen=True)
class Tree:
    """All files below a folder, sorted, and the folders that cannot be read with the reason; names are relative."""

    files: list[str]
    unreadable: dict[str, str] = field(default_factory=dict)


def list_tree(url: str) -> Tree:
    """All files below a folder; links to folders are followed, but not in a circle. A missing folder has none."""
    return walk(resolve(url)) if is_local(url) else Tree(find_files(url))


def list_files(url: str) -> list[str]:
    """All files below a folder, sorted, as paths relative to it; a missing folder has none.

    Raises:
        PermissionError: if a folder cannot be read.
    """
    tree = list_tree(url)
    for folder, reason in tree.unreadable.items():
        raise PermissionError(f"{join(url, folder)} cannot be read ({reason}); fix its permissions")
    return tree.files


@with_retries
def find_files(url: str) -> list[str]:
    """All files below a folder of a store that is not local, sorted, as paths relative to it."""
    filesystem, root = open_filesystem(url)
    filesystem.invalidate_cache()
    root = root.rstrip("/")
    files = filesystem.find(root) if filesystem.exists(root) else []
    return sorted(path[len(root) + 1 :] for path in files if path.startswith(root + "/"))


def walk(root: str) -> Tree:
    """`list_tree` of a local folder. A link to a folder that the way to it leads through is not followed."""
    tree = Tree([])
    # A folder, its real path, and the real paths of the folders with the links that the way to it leads through.
    pending: list[tuple[str, str, tuple[str, ...]]] = [("", os.path.realpath(root), ())]
    while pending:
        folder, real, above = pending.pop()
        try:
            entries = scan_folder(posixpath.join(root, folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            tree.unreadable[folder] = error.strerror or str(error)
            continue
        for entry in entries:
            name = posixpath.join(folder, entry.name)
            try:
                is_folder = (Path(entry.path) if entry.is_symlink() else entry).is_dir()
            except OSError as error:  # its folder cannot be entered, or the place that it links to
                tree.unreadable[name] = error.strerror or str(error)
                continue
            if not is_folder:
                tree.files.append(name)
            elif not entry.is_symlink():
                pending.append((name, posixpath.join(real, entry.name), above))
            elif not leads_back(target := os.path.realpath(entry.path), (*above, real)):
                pending.append((name, target, (*above, real)))
    tree.files.sort()
    return tree


def leads_back(target: str, places: tuple[str, ...]) -> bool:
    """Whether one of the real paths is a folder or lies in it."""
    return any(f"{place}/".startswith(f"{target.rstrip('/')}/") for place in places)


@with_retries
def scan_folder(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


@with_retries
def list_folders(url: str) -> list[str]:
    """The names of the folders directly below a folder, sorted; their contents are not listed. Missing: none."""
    filesystem, root = open_filesystem(url)
    filesystem.invalidate_cache()
    found = filesystem.ls(root, detail=True) if filesystem.exists(root) else []
    return sorted(posixpath.basename(item["name"].rstrip("/")) for item in found if item["type"] == "directory")


def is_file(url: str) -> bool:
    """Whether a URL is that of a file rather than a folder. HTTP has no folders: there a name with an extension is."""
    if resolve(url).startswith(HTTP_SCHEMES):
        return bool(posixpath.splitext(split_file(url)[1])[1]) and exists(url)
    filesystem, path = open_filesystem(url)
    return bool(exists(url) and not filesystem.isdir(path))


@with_retries
def delete(url: str) -> None:
    """Deletes one file; a missing one is no error."""
    filesystem, path = open_filesystem(url)
    if filesystem.exists(path):
        filesystem.rm_file(path)


def check_writable(url: str) -> None:
    """Tests that an output URL can be written, before anything is spent.

    Raises:
        ValueError: if it cannot, with the reason.
    """
    probe = join(url, f".write-probe-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except OSError as error:
        raise ValueError(f"output {url} cannot be written ({error}); choose another or fix its permissions") from None
