"""What failed in Ray's workers, tasks and actors, told on the driver in one line: a ValueError or an OSError."""

import contextlib
import re
from collections.abc import Iterator

import ray.exceptions

# For people: a damaged shard, or one that is gone. Ray passes on as text alone what a task, or its controller, raised.
OF_STORAGE = (
    r"OSError|File(?:NotFound|Exists)Error|(?:Not|Is)ADirectoryError|PermissionError|TimeoutError|Connection\w*Error"
    "|ClientError"
)
RAISED_ELSEWHERE = re.compile(rf"^(?:[\w.]+\.)?(ValueError|{OF_STORAGE}): (.+)$", re.MULTILINE)


@contextlib.contextmanager
def of_tasks(job: str, kept: str) -> Iterator[None]:
    """Put around the place where a Ray Data pipeline is iterated: what its tasks raise is raised here for people.

    Args:
        job: what fails, as in "storage failed during {job}".
        kept: what is not lost, such as "the shards that were written are kept".

    Raises:
        ValueError: if a task could not use what it was given, a damaged shard for example.
        OSError: if storage could not be read or written.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        raise_for_people(error, job, kept)
        raise


def raise_for_people(cause: BaseException, job: str, kept: str) -> None:
    """Raises what a person can do something about, in one line; returns where there is none."""
    kind, reason = type(cause).__name__, one_line(cause)
    if isinstance(cause, ray.exceptions.RayError):
        found = RAISED_ELSEWHERE.findall(str(cause))
        if not found:
            return
        kind, reason = found[-1]
    elif not isinstance(cause, OSError | ValueError):
        return
    if kind == "ValueError" or isinstance(cause, ValueError):
        raise ValueError(reason) from cause
    raise OSError(
        f"storage failed during {job} ({reason}); {kept}; mend it, and run the same command again to go on"
    ) from cause


def one_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
