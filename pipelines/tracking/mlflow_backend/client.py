"""How MLflow is reached: its settings, a client, and its errors as an outbox knows them."""

import contextlib
import logging
import os
from collections.abc import Iterator

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
from requests import HTTPError
from sqlalchemy.exc import SQLAlchemyError

from pipelines.redaction import redact
from pipelines.tracking.outbox import RefusedError, UnavailableError
from pipelines.tracking.run import embedded_store

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
UPLOAD_TIMEOUT_S = "600"
USERS_TIMEOUT = os.environ.get(TIMEOUT)
# MLflow retries for minutes by default; here outboxes do that, and drivers do not wait. The user's own settings win.
os.environ.setdefault(TIMEOUT, "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
logging.getLogger("mlflow").setLevel(logging.WARNING)
# A GPU that does not tell its load (one cut in parts, for one) would say so at every look.
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)
# Says at every attempt what the outbox says once.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turns whatever MLflow and its stores raise into UnavailableError or RefusedError."""
    try:
        yield
    except (UnavailableError, RefusedError):
        raise
    except MlflowException as error:
        raise _verdict(ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 500))(_first_line(error)) from error
    except HTTPError as error:  # of a proxy, or where artifacts are uploaded to
        raise _verdict(500 if error.response is None else error.response.status_code)(_first_line(error)) from error
    except (OSError, SQLAlchemyError, BotoCoreError, ClientError, Boto3Error) as error:
        raise UnavailableError(f"{redact(uri)}: {_first_line(error)}") from error
    except Exception as error:  # of a store's own library, say that it is not installed: no reason to stop a job
        raise RefusedError(f"{redact(uri)}: {_first_line(error)}") from error


def _verdict(status: int) -> type[Exception]:
    """Whether the same request may succeed later, by its HTTP status."""
    return RefusedError if 400 <= status < 500 and status not in {408, 409, 429} else UnavailableError


def _first_line(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}".splitlines()[0][:200])


@contextlib.contextmanager
def if_reached(uri: str, otherwise: str) -> Iterator[None]:
    """What is done only if the server has it; else the log says `otherwise`, and why."""
    try:
        with reaching(uri):
            yield
    except (UnavailableError, RefusedError) as error:
        logger.warning("%s (%s)", otherwise, error)


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """For large files, since a server answers when it has stored them; unless the user has set a time."""
    usual = os.environ[TIMEOUT]
    os.environ[TIMEOUT] = USERS_TIMEOUT or UPLOAD_TIMEOUT_S
    try:
        yield
    finally:
        os.environ[TIMEOUT] = usual


def connect(uri: str, *, create: bool = False) -> MlflowClient:
    """A client; without `create`, an embedded store that is not on this machine is not made up."""
    store = embedded_store(uri)
    if store is not None and not create and not store.exists():
        raise UnavailableError(f"the embedded store {uri} is not on this machine; give --tracking.uri of a server")
    return MlflowClient(uri)
