"""Servers that the tests start and stop: MLflow over HTTP, and an object store behind a gateway that can fail."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import boto3
import pytest

if TYPE_CHECKING:
    from tests.ray.tiny import Tiny

START_TIMEOUT_S = 240
S3_SECRET = "hush-7d1f0c5e2a9b4863"
# Without the runners of MLflow's own jobs (judges of language models): six more processes, each of which imports all
# of MLflow.
SERVER_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


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
            environment = {**os.environ, **SERVER_VARIABLES, **self.variables}
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


class FaultyGateway(BaseHTTPRequestHandler):
    """Hands requests on to an object store, and fails as often as it is told to.

    Every `throttle_every`-th request is answered 503 SlowDown. With every `drop_every`-th one the connection breaks:
    by turns before the request is handed on, and in the middle of its answer, when the store has already acted on it.
    """

    protocol_version = "HTTP/1.1"
    upstream: ClassVar[tuple[str, int] | None] = None
    throttle_every: ClassVar[int] = 0
    drop_every: ClassVar[int] = 0
    throttled: ClassVar[int] = 0
    dropped: ClassVar[int] = 0
    numbers: ClassVar[Iterator[int]] = count(1)

    def do_any(self) -> None:
        kind, number, body = type(self), next(self.numbers), self.read_body()
        if kind.throttle_every and number % kind.throttle_every == 0:
            kind.throttled += 1
            self.answer(503, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else SLOW_DOWN)
            return
        drops = kind.drop_every and number % kind.drop_every == 0
        if drops:
            kind.dropped += 1
            self.close_connection = True
            if kind.dropped % 2:
                return
        status, headers, data = self.hand_on(body)
        self.answer(status, headers, data[: len(data) // 2] if drops else data, len(data))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815 - the names that http.server looks for

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def hand_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert self.upstream, "the object store has not been started"
        connection = http.client.HTTPConnection(*self.upstream, timeout=60)
        own = ("expect", "connection", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, dict(response.getheaders()), data

    def answer(self, status: int, headers: Mapping[str, str], data: bytes, length: int | None = None) -> None:
        """Sends `data`, of which it claims `length` bytes; HEAD keeps the length that its answer came with."""
        self.send_response_only(status)
        stated = {
            name: value for name, value in headers.items() if name.lower() not in ("connection", "content-length")
        }
        stated.pop("Transfer-Encoding", None)
        kept = (
            headers.get("Content-Length", "0")
            if self.command == "HEAD"
            else str(len(data) if length is None else length)
        )
        for name, value in {**stated, "Content-Length": kept}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="session")
def s3_gateway() -> Iterator[type[FaultyGateway]]:
    """The endpoint that every process finds in its environment; behind it is nothing until `s3` starts the store."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FaultyGateway)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test:tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield FaultyGateway
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def ray_cluster(s3_gateway: type[FaultyGateway], ray_cluster: None) -> None:
    """The session's cluster, started when the environment already says where the object store will be."""


@pytest.fixture(scope="session")
def tiny(
    ray_cluster: None, make_lol_folder: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> "Tiny":
    """Pair shards and an untrained teacher."""
    from tests.ray.tiny import make_tiny  # noqa: PLC0415 - slow to import

    root = tmp_path_factory.mktemp("tiny")
    return make_tiny(root, make_lol_folder(root / "LOLv1"))


@pytest.fixture(scope="session")
def tiny_cache(tiny: "Tiny") -> "Tiny":
    """The same, once the teacher's caches of stages 4 and 2 are there."""
    from pipelines.trajectories.precompute import precompute  # noqa: PLC0415 - slow to import

    precompute(tiny.precompute())
    return tiny


class Bucket:
    """An empty bucket `data` of a running store, seen without the gateway, and the secret that opens it."""

    secret = S3_SECRET

    def __init__(self, endpoint: str) -> None:
        self.client = boto3.client("s3", endpoint_url=endpoint)
        self.client.create_bucket(Bucket="data")

    def upload(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder)}"
                self.client.put_object(Bucket="data", Key=key, Body=path.read_bytes())

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix by the rest of its key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="data", Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key[len(prefix) :]: self.client.get_object(Bucket="data", Key=key)["Body"].read() for key in keys}


@pytest.fixture(scope="module")
def s3(s3_gateway: type[FaultyGateway]) -> Iterator[Bucket]:
    """moto's server behind the gateway, with an empty bucket."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - slow to import

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3_gateway.upstream = (host, port)
    yield Bucket(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def swift(s3_gateway: type[FaultyGateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """OpenStack Swift behind the gateway, in place of moto's server, with an empty bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("swift_server.py")
    command = [sys.executable, str(script), str(tmp_path / "swift"), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as servers:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and servers.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        monkeypatch.setattr(s3_gateway, "upstream", ("127.0.0.1", port))
        yield Bucket(f"http://127.0.0.1:{port}")
        servers.communicate()  # closes its standard input
