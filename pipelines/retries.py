"""Which errors of storage pass: those are retried with exponential backoff, and all become built-in ones."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import NoReturn, ParamSpec, TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipelines.redaction import redact

RETRY_ATTEMPTS = 8
# Errors that a retry cannot help, as opposed to throttling, timeouts and dropped connections.
PERMANENT_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
PERMANENT_NUMBERS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ELOOP))
# What a file system answers to a name that it cannot hold.
NAME_NUMBERS = frozenset((errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL))
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
    if not isinstance(error, OSError) or isinstance(error, PERMANENT_ERRORS) or refuses_name(error):
        return False
    return error.errno not in PERMANENT_NUMBERS


def refuses_name(error: OSError) -> bool:
    """Whether a store cannot hold a file of this name, while it can hold others.

    Object stores' clients use the number EINVAL for passing troubles too, but name no file.
    """
    return error.errno in NAME_NUMBERS and (error.errno != errno.EINVAL or error.filename is not None)


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


def with_retries(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Retries after transient errors, with exponential backoff, and raises others as built-in errors."""
    retrying = retry(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(RETRY_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=20),
        retry_error_callback=_give_up,
    )
    return _builtin_errors()(retrying(function))
