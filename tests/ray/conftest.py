"""A real MLflow server over HTTP, for the tests of tracking and sweeps."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import boto3
import pytest

START_TIMEOUT_S = 240


class MlflowServer:
    """One server process on loopback over an SQLite store and a folder; can be killed and brought back."""

    def __init__(self, folder: Path, artifacts: str = "", variables: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.artifacts = artifacts or str(folder / "artifacts")
        self.variables = variables or {}
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once the server answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", self.artifacts]
        with (self.folder / "server.log").open("ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **self.variables}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=20).close()
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.2)
            else:
                return
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """Kills the server and its workers at once, as a lost machine would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def s3_mlflow_server(tmp_path: Path) -> Iterator[tuple[MlflowServer, Callable[[], list[str]]]]:
    """A server whose artifacts lie in a bucket (its clients need only HTTP), and what the bucket holds."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - slow to import

    s3 = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    s3.start()
    host, port = s3.get_host_and_port()
    variables = {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="mlflow")
    server = MlflowServer(tmp_path, artifacts="s3://mlflow/artifacts", variables=variables)
    server.start()
    yield server, lambda: [item["Key"] for item in client.list_objects_v2(Bucket="mlflow").get("Contents", [])]
    server.kill()
    s3.stop()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()
