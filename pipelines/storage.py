"""The only module that uses fsspec: all others read and write URLs through these functions.

A plain path means `file://`. Object stores are reached with the standard credential chain of their
fsspec implementation; transient failures are retried with exponential backoff.
"""

import contextlib
import errno
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
import fsspec
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipelines.redaction import redact

RETRY_ATTEMPTS = 8
PYARROW_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
# Errors that a retry cannot help, as opposed to throttling, timeouts and dropped connections.
PERMANENT_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
# Errors of broken connections that the HTTP clients below fsspec do not translate to built-in ones.
BROKEN_CONNECTIONS = (
    aiohttp.ClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.parsers.ResponseParserError,
)
# Transient statuses of HTTP servers: timeout, too many requests.
TRANSIENT_STATUSES = (408, 429)
GONE_STATUSES = (404, 410)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in TRANSIENT_STATUSES or not 400 <= error.status < 500
    if isinstance(error, BROKEN_CONNECTIONS):
        return not isinstance(error, ValueError)  # aiohttp's for a malformed URL
    return isinstance(error, OSError) and not isinstance(error, PERMANENT_ERRORS) and error.errno not in {28, 30}


def _give_up(state: RetryCallState) -> NoReturn:
    """Raises the last error, always as an OSError, which callers and the command line handle."""
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    if isinstance(error, OSError):
        raise error
    raise OSError(f"the connection broke {state.attempt_number} times: {redact(str(error))}") from error


@contextlib.contextmanager
def _builtin_errors() -> Iterator[None]:
    """Raises permanent errors of HTTP clients as an OSError, or as a ValueError if a name is malformed."""
    try:
        yield
    except aiohttp.ClientResponseError as error:
        number = errno.ENOENT if error.status in GONE_STATUSES else errno.EACCES
        reason = f"the server answers {error.status} {error.message}".rstrip()
        raise OSError(number, reason, redact(str(error.request_info.real_url))) from error
    except botocore.exceptions.ParamValidationError as error:
        raise ValueError(f"the store refuses a name ({' '.join(str(error).split())}); fix the URL") from error
    except botocore.exceptions.BotoCoreError as error:
        raise OSError(f"the store cannot be used ({error}); check its credentials and settings") from error


def _with_retries(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Retries after transient errors, with exponential backoff, and raises others as built-in errors."""
    retrying = retry(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(RETRY_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=20),
        retry_error_callback=_give_up,
    )
    return _builtin_errors()(retrying(function))


def resolve(url: str) -> str:
    """The absolute form of a URL: local paths become absolute without a scheme, others lose a trailing slash."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return str(Path(url).expanduser().absolute())
    return str(Path(rest).absolute()) if scheme == "file" else url.rstrip("/")


def is_local(url: str) -> bool:
    return "://" not in resolve(url)


def join(url: str, *parts: str) -> str:
    """`url/part/part`.

    Raises:
        ValueError: if a part would lead out of `url`.
    """
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ValueError(f"the name {part!r} leaves its folder {url}; names must be relative and without '..'")
    return posixpath.join(resolve(url), *parts)


def base_name(url: str) -> str:
    return posixpath.basename(resolve(url))


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL and the path inside it.

    Raises:
        ValueError: if no installed package knows the scheme.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(resolve(url))
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{url} cannot be opened ({error}); use a path, s3://, or another scheme fsspec knows"
        ) from None
    return filesystem, path


def for_ray(url: str) -> tuple[str, FileSystem | None]:
    """A URL as Ray's `storage_path` and `storage_filesystem`; the latter is None for stores that pyarrow supports."""
    if is_local(url) or resolve(url).partition("://")[0] in PYARROW_SCHEMES:
        return resolve(url), None
    filesystem, path = open_filesystem(url)
    return path, PyFileSystem(FSSpecHandler(filesystem))


@_with_retries
def read_bytes(url: str) -> bytes:
    filesystem, path = open_filesystem(url)
    data: bytes = filesystem.cat_file(path)
    return data


@_with_retries
def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file; fewer if it ends before."""
    filesystem, path = open_filesystem(url)
    data: bytes = filesystem.cat_file(path, start=start, end=stop)
    return data


@_with_retries
def file_size(url: str) -> int:
    """Size of a file in bytes."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return int(filesystem.size(path))


@_with_retries
def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Writes a whole file atomically: readers see the old one or the new one, never a part of it."""
    filesystem, path = open_filesystem(url)
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, bytes(data))
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@_with_retries
def exists(url: str) -> bool:
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return bool(filesystem.exists(path))


@_with_retries
def list_files(url: str) -> list[str]:
    """All files below a folder, sorted, as paths relative to it; a missing folder has none."""
    filesystem, root = open_filesystem(url)
    filesystem.invalidate_cache()
    root = root.rstrip("/")
    files = filesystem.find(root) if filesystem.exists(root) else []
    return sorted(path[len(root) + 1 :] for path in files if path.startswith(root + "/"))


@_with_retries
def list_folders(url: str) -> list[str]:
    """The names of the folders directly below a folder, sorted; their contents are not listed. Missing: none."""
    filesystem, root = open_filesystem(url)
    filesystem.invalidate_cache()
    found = filesystem.ls(root, detail=True) if filesystem.exists(root) else []
    return sorted(posixpath.basename(item["name"].rstrip("/")) for item in found if item["type"] == "directory")


@_with_retries
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
