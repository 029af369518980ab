"""Errors of Ray's workers, tasks and actors, re-raised on the driver as a one-line ValueError or OSError."""

import contextlib
import re
from collections.abc import Iterator

import ray.exceptions

# Errors of processes that ended before they could say why: killed for memory, mostly, or with their machine.
KILLED = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)
# What Ray says of an actor that did not die but could not start, because of a fault in its code.
FAULT = "error raised in its creation task"
# Errors that the user can act on. Ray passes on only the text of what a task, or its controller, raised.
STORAGE_ERRORS = (
    r"OSError|File(?:NotFound|Exists)Error|(?:Not|Is)ADirectoryError|PermissionError|TimeoutError|Connection\w*Error"
    "|ClientError"
)
REMOTE_ERROR = re.compile(rf"^(?:[\w.]+\.)?(ValueError|{STORAGE_ERRORS}): (.+)$", re.MULTILINE)


@contextlib.contextmanager
def user_errors(job: str, kept: str) -> Iterator[None]:
    """Context manager. Re-raises exceptions from Ray Data tasks as a one-line ValueError or OSError.

    For the code that iterates over a Ray Data pipeline. Errors that the user cannot act on pass unchanged.

    Args:
        job: name of the work, for the message "storage failed during {job}".
        kept: what is not lost, such as "the shards that were written are kept".

    Raises:
        ValueError: if a task could not use its input, such as a damaged shard.
        OSError: if storage could not be read or written, or a process was killed again and again.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        raise_user_error(error, job, kept)
        raise_if_killed(error, job, kept)
        raise


def raise_user_error(cause: BaseException, job: str, kept: str) -> None:
    """Re-raises `cause` as ValueError or OSError, in one line, if the user can act on it; otherwise returns."""
    kind, reason = type(cause).__name__, one_line(cause)
    if isinstance(cause, ray.exceptions.RayError):
        found = REMOTE_ERROR.findall(str(cause))
        if not found:
            return
        kind, reason = found[-1]
    elif not isinstance(cause, OSError | ValueError):
        return
    if kind == "ValueError" or isinstance(cause, ValueError):
        raise ValueError(reason) from cause
    raise OSError(
        f"storage failed during {job} ({reason}); {kept}; fix it, and run the same command again to resume"
    ) from cause


def raise_if_killed(cause: BaseException, job: str, kept: str) -> None:
    """Raises an OSError of one line, if `cause` says that a process of Ray was killed; otherwise returns."""
    if isinstance(cause, KILLED) and FAULT not in str(cause):
        raise OSError(
            f"a process of {job} was killed again and again, most likely because memory ran out ({one_line(cause)}); "
            f"{kept}; give it more memory, or fewer --compute.workers and smaller tiles, crops or batches, and run the "
            "same command again to resume"
        ) from cause


def one_line(error: BaseException) -> str:
    """The first line of an error's message; its class name if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__
