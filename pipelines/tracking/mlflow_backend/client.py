"""The MLflow client: its settings, its connection, and its errors translated to those of an outbox."""

import contextlib
import logging
import os
from collections.abc import Iterator

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError

from pipelines.redaction import redact
from pipelines.tracking.handle import embedded_store
from pipelines.tracking.outbox import RejectedError, UnavailableError

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
UPLOAD_TIMEOUT_S = "600"
USERS_TIMEOUT = os.environ.get(TIMEOUT)
# MLflow retries for minutes by default; here outboxes do that, and drivers do not wait. The user's own settings win.
os.environ.setdefault(TIMEOUT, "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
logging.getLogger("mlflow").setLevel(logging.WARNING)
# A GPU that does not report its load (a part of a divided one, for example) would be logged at every reading.
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Logs at every attempt what the outbox logs once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

# What MLflow says of a database whose schema is not that of its own version; it does so with status 500.
OTHER_SCHEMA = "out-of-date database schema"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Context manager. Re-raises the errors of MLflow and its stores as UnavailableError or RejectedError."""
    try:
        yield
    except (UnavailableError, RejectedError):
        raise
    except MlflowException as error:
        if OTHER_SCHEMA in str(error):
            remedy = f"back it up and run 'mlflow db upgrade {redact(uri)}', or use the version that made it"
            raise RejectedError(f"its database is of another MLflow version; {remedy}") from error
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        raise _kind_of(status)(_first_line(error)) from error
    except HTTPError as error:  # of a proxy, or of the store that artifacts are uploaded to
        raise _kind_of(500 if error.response is None else error.response.status_code)(_first_line(error)) from error
    except (OSError, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error) as error:
        raise UnavailableError(f"{redact(uri)}: {_first_line(error)}") from error
    except Exception as error:  # of a store's own library, such as one that is not installed: no reason to stop a job
        raise RejectedError(f"{redact(uri)}: {_first_line(error)}") from error


def _kind_of(status: int) -> type[Exception]:
    """UnavailableError where the same request may succeed later, by its HTTP status; otherwise RejectedError."""
    return RejectedError if 400 <= status < 500 and status not in {408, 409, 429} else UnavailableError


def _first_line(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}".splitlines()[0][:200])


@contextlib.contextmanager
def log_if_undeliverable(uri: str, message: str) -> Iterator[None]:
    """Context manager. Where the server is away or rejects a request, logs `message` and the reason, and continues."""
    try:
        with translated_errors(uri):
            yield
    except (UnavailableError, RejectedError) as error:
        logger.warning("%s (%s)", message, error)


@contextlib.contextmanager
def upload_timeout() -> Iterator[None]:
    """Context manager. Allows requests 600 seconds (or the user's own timeout), since a server answers an upload only
    when it has stored the whole file."""
    usual = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = USERS_TIMEOUT or UPLOAD_TIMEOUT_S
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def connect(uri: str, *, create: bool = False) -> MlflowClient:
    """A client of a tracking server or an embedded store, which is created only with `create`.

    Raises:
        UnavailableError: if the embedded store is not on this machine and may not be created.
    """
    store = embedded_store(uri)
    if store is not None and not create and not store.exists():
        raise UnavailableError(f"the embedded store {uri} is not on this machine; give --tracking.uri of a server")
    return MlflowClient(uri)
