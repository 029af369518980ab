"""`jobs/serve.py` as a process on the session's Ray, reached over a socket."""

import http.client
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import ray
import torch

from pipelines.cluster import free_port
from pipelines.weights import save_network
from reddit_core.networks.sr3_unet import UNet, UNetConfig
from reddit_core.weights import NetworkFile
from tests.ray.processes import JobProcess

TOKEN = "open-sesame-4f1d9b7c"
QUEUE, TILE, MAX_MEGABYTES, MAX_MEGAPIXELS, TIMEOUT_S = 6, 96, 1, 0.5, 600
FLAGS = (
    f"--compute.threads 1 --tile {TILE} --overlap 16 --queue {QUEUE} --max-megabytes {MAX_MEGABYTES} "
    f"--max-megapixels {MAX_MEGAPIXELS} --timeout {TIMEOUT_S}"
)


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def error(self) -> str:
        """The one line of an error."""
        document = json.loads(self.data)
        assert set(document) == {"error"}
        assert "\n" not in document["error"] and "Traceback" not in document["error"]
        return document["error"]


@dataclass(frozen=True)
class Service:
    """The running service.

    Attributes:
        weights: URL of what it serves.
        port: on loopback.
        job: its process.
    """

    weights: str
    port: int
    job: JobProcess
    token: str = TOKEN
    headers: Mapping[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {TOKEN}"})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request(method, path, body, dict(self.headers if headers is None else headers))
        response = connection.getresponse()
        reply = Reply(response.status, {name.lower(): text for name, text in response.getheaders()}, response.read())
        connection.close()
        return reply

    def enhance(self, photograph: bytes, query: str = "") -> Reply:
        return self.ask("POST", f"/enhance?{query}", photograph)

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/ready").status == 200
        except OSError:
            return False


@pytest.fixture(scope="session")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    torch.manual_seed(0)
    unet = UNet(UNetConfig(base_channels=8, channel_mults=(1, 2), num_res_blocks=1, norm_groups=4))
    weights, port = str(folder / "student.safetensors"), free_port()
    save_network(weights, NetworkFile(network=unet, facts={"num_steps": 2}))
    flags = f"--weights {weights} --port {port} {FLAGS}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDDIT_SERVE_TOKEN", TOKEN)
        job = JobProcess("serve", flags, folder / "log", ray.get_runtime_context().gcs_address)
    service = Service(weights, port, job)
    try:
        job.wait_until(service.answers)
        yield service
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 0, job.printed
        assert "Stopped serving" in job.printed and "graceful_shutdown" not in job.printed
    finally:
        if job.runs():
            job.kill()
