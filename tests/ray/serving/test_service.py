"""The service over a socket: the same bytes as the job, limits, errors, a killed replica, and what it leaves behind."""

import contextlib
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from numpy.typing import NDArray
from PIL import Image, ImageCms
from ray import serve

from pipelines.config.parts import ComputeConfig
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhance import enhance
from pipelines.serving.ingress import MAX_DEATHS
from tests.ray.processes import LOOPBACK, ROOT, listening, started, wait_until
from tests.ray.serving.conftest import MAX_MEGAPIXELS, QUEUE, TILE, Service

pytestmark = pytest.mark.xdist_group("serving")
# In the description of a photograph that is sent: if it is found in a file, the service wrote the photograph there.
MARK = "mark-5b1f0e77a6c94d1c"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def file_of(pixels: NDArray[Any], name: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=name, **options)
    return sink.getvalue()


@pytest.fixture(scope="module")
def files(photographs: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    """Photographs of different kinds by file name: one with metadata, with alpha, of 16 bits, and lossless."""
    low = {name: image // 6 for name, image in photographs.items()}
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = MARK, 6
    alpha = np.arange(96 * 128, dtype=np.uint8).reshape(96, 128)
    return {
        "phone.jpg": file_of(low["astronaut"], "JPEG", exif=exif, icc_profile=PROFILE, quality=95),
        "cat.png": file_of(np.dstack([low["chelsea"], alpha])),
        "deep.png": file_of(low["rocket"][:, :, 0].astype(np.uint16) * 257),
        "cup.webp": file_of(low["coffee"], "WEBP", lossless=True),
    }


@pytest.fixture(scope="module")
def small(photographs: dict[str, NDArray[np.uint8]]) -> bytes:
    return file_of(photographs["rocket"][:48, :64] // 6)


def test_the_same_bytes_as_the_job(service: Service, files: Mapping[str, bytes], tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    config = EnhanceConfig(
        source=str(source),
        output=str(output),
        weights=service.weights,
        tile=TILE,
        overlap=16,
        seed=3,
        steps=4,
        brightness=0.3,
        compute=ComputeConfig(threads=1),
    )
    enhance(config)
    for name, data in files.items():
        reply = service.enhance(data, "seed=3&steps=4&brightness=0.3")
        assert reply.status == 200, reply.data
        assert reply.data == (output / name).read_bytes(), name
        assert re.fullmatch(r"network;dur=\d+", reply.headers["server-timing"])
    assert reply.headers["content-type"] == "image/webp"


def test_the_format_of_the_answer(service: Service, files: Mapping[str, bytes]) -> None:
    reply = service.enhance(files["deep.png"], "format=jpeg")
    image = Image.open(io.BytesIO(reply.data))
    assert (reply.headers["content-type"], image.format, image.mode) == ("image/jpeg", "JPEG", "L")
    image = Image.open(io.BytesIO(service.enhance(files["phone.jpg"], "format=tiff").data))
    assert (image.format, image.size, image.info["icc_profile"]) == ("TIFF", (96, 128), PROFILE)
    assert image.getexif()[0x010E] == MARK


def test_the_preview_is_what_a_browser_shows(service: Service, files: Mapping[str, bytes]) -> None:
    reply = service.ask("POST", "/preview?side=64", files["phone.jpg"])
    assert Image.open(io.BytesIO(reply.data)).size == (48, 64)
    assert service.ask("POST", "/preview?side=64", files["deep.png"]).headers["content-type"] == "image/png"
    assert "side is 1" in service.ask("POST", "/preview?side=1", files["deep.png"]).error


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("brightness=1.5", 422, "brightness is 1.5, but must be auto, or a mean luma in (0, 1)"),
        ("brightness=bright", 422, "brightness"),
        ("brightness=nan", 422, "brightness is nan"),
        ("steps=3", 422, "steps is 3, but must be one of 1, 2, 4, 8, 16"),
        ("steps=512", 422, "steps is 512"),
        ("seed=-1", 422, "seed is -1"),
        ("format=gif", 422, "format"),
        ("bright=0.4", 422, "'bright' is no setting; there are: brightness, format, seed, steps"),
    ],
)
def test_settings_that_are_not_taken(service: Service, small: bytes, query: str, status: int, message: str) -> None:
    reply = service.enhance(small, query)
    assert reply.status == status
    assert message in reply.error


@pytest.mark.parametrize(
    ("make", "status", "message"),
    [
        (lambda _: b"", 422, "the body is empty"),
        (lambda _: b"not a photograph", 415, "it is not an image in one of"),
        (lambda small: small[: len(small) // 2], 422, "truncated"),
        (lambda _: bytes(1_000_001), 413, "more than 1 MB"),
        (lambda _: file_of(np.zeros((1000, 501, 3), np.uint8)), 413, f"at most {MAX_MEGAPIXELS}"),
    ],
)
def test_bodies_that_are_not_taken(
    service: Service, small: bytes, make: Callable[[bytes], bytes], status: int, message: str
) -> None:
    reply = service.enhance(make(small))
    assert reply.status == status
    assert message in reply.error


def test_an_upload_of_unknown_length_ends_at_the_limit(service: Service) -> None:
    reply = service.ask("POST", "/enhance", (bytes(50_000) for _ in range(30)))
    assert reply.status == 413


def test_a_form_is_told_how_to_send_a_file(service: Service, small: bytes) -> None:
    headers = {**service.headers, "Content-Type": "multipart/form-data; boundary=x"}
    reply = service.ask("POST", "/enhance", small, headers)
    assert reply.status == 415 and "--data-binary" in reply.error


def test_without_the_token_nothing_is_enhanced(service: Service, small: bytes) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        reply = service.ask("POST", "/enhance", small, headers)
        assert reply.status == 401 and "Authorization: Bearer" in reply.error
    assert service.ask("GET", "/", headers={}).status == 200  # the page asks for it


def test_what_is_beyond_the_queue_is_told_when_to_come_back(service: Service, small: bytes) -> None:
    expected = service.enhance(small, "steps=8").data
    with ThreadPoolExecutor(3 * QUEUE) as pool:
        replies = list(pool.map(lambda _: service.enhance(small, "steps=8"), range(3 * QUEUE)))
    answered = [reply for reply in replies if reply.status == 200]
    rejected = [reply for reply in replies if reply.status == 503]
    assert len(answered) + len(rejected) == len(replies) and len(answered) >= QUEUE
    assert all(reply.data == expected for reply in answered)
    assert rejected, "nothing waited"
    assert all(int(reply.headers["retry-after"]) >= 1 and "try again in" in reply.error for reply in rejected)


def test_a_replica_that_dies_costs_no_request(service: Service, photographs: dict[str, NDArray[np.uint8]]) -> None:
    photograph = file_of(photographs["coffee"][:, :96] // 6)
    (replica,) = started("ServeReplica:reddit:student")
    replies: list[Any] = []
    threads = [
        threading.Thread(target=lambda: replies.append(service.enhance(photograph, "steps=16"))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    before = replica.cpu_times().user
    wait_until(lambda: replica.cpu_times().user > before + 0.3)  # it is at work
    replica.kill()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * 5, replies
    assert {reply.data for reply in replies} == {service.enhance(photograph, "steps=16").data}


@pytest.mark.slow
def test_only_the_photograph_that_is_worked_on_is_taken_for_the_cause_of_deaths(
    service: Service, photographs: dict[str, NDArray[np.uint8]]
) -> None:
    """Two wait for one replica, whose every instance is killed at work until one of them is given up."""
    files = [file_of(np.tile(photographs[name], (2, 1, 1)) // 6) for name in ("coffee", "rocket")]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(service.enhance, data, "steps=16") for data in files]
        before: dict[int, float] = {}
        while not any(call.done() for call in calls):
            for replica in started("ServeReplica:reddit:student"):
                with contextlib.suppress(psutil.Error):  # it has just ended
                    if replica.pid not in before and service.answers():
                        before[replica.pid] = replica.cpu_times().user
                    if replica.cpu_times().user > before.get(replica.pid, math.inf) + 0.5:
                        replica.kill()
            time.sleep(0.1)
        replies = [call.result() for call in calls]
    assert sorted(reply.status for reply in replies) == [200, 503]
    kept, given_up = (next(reply for reply in replies if reply.status == status) for status in (200, 503))
    assert f"{MAX_DEATHS} replicas died while they worked on this photograph" in given_up.error
    assert kept.data in {service.enhance(data, "steps=16").data for data in files}


def test_what_the_service_says_about_itself(service: Service) -> None:
    offer = json.loads(service.ask("GET", "/settings", headers={}).data)
    assert (offer["steps"], offer["steps_allowed"], offer["needs_token"]) == (2, [1, 2, 4, 8, 16], True)
    assert service.ask("GET", "/health", headers={}).status == 200
    assert json.loads(service.ask("GET", "/ready", headers={}).data) == {"ready": True, "replicas": 1}
    paths = json.loads(service.ask("GET", "/openapi.json", headers={}).data)["paths"]
    assert {"/enhance", "/preview", "/settings", "/health", "/ready"} == set(paths)
    assert service.ask("GET", "/nosuch", headers={}).error == "Not Found"


@pytest.mark.parametrize("path", ["/", "/docs", "/page/page.css", "/page/page.js"])
def test_its_pages_need_nothing_from_elsewhere(service: Service, path: str) -> None:
    reply = service.ask("GET", path, headers={})
    assert reply.status == 200
    assert (
        re.findall(r"(?:src|href|url|import|from)\s*[=(:]?\s*['\"]?(?:https?:)?//[^'\"\s>]+", reply.data.decode()) == []
    )


def test_the_service_listens_on_loopback_alone(service: Service) -> None:
    """Neither its own port nor those that Serve opens between deployments, which take pickles, reach the network."""
    assert service.answers()
    addresses = listening(psutil.Process()) | listening(psutil.Process(service.job.process.pid))
    assert addresses and addresses <= LOOPBACK


def test_metrics_are_those_of_ray(service: Service, small: bytes) -> None:
    service.enhance(small)
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"

    def shown() -> str:
        return urllib.request.urlopen(url, timeout=60).read().decode()

    names = ("reddit_enhanced_megapixels", "reddit_network_seconds")
    wait_until(lambda: all(name in shown() for name in names))
    assert "reddit_enhanced_megapixels" in shown()


def test_photographs_are_in_no_file(service: Service, files: Mapping[str, bytes]) -> None:
    assert service.enhance(files["phone.jpg"]).status == 200
    node: Any = ray._private.worker._global_node
    session = Path(node.get_session_dir_path())
    logs = [path for path in session.rglob("*") if path.is_file() and not path.is_socket()]
    assert len(logs) > 5
    assert [path for path in [*logs, service.job.log] if MARK.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_serve_run_serves_a_second_one_which_gives_up_in_time(
    service: Service, files: Mapping[str, bytes], photographs: dict[str, NDArray[np.uint8]]
) -> None:
    """`serve run`, beside the first on the same Serve, with a time limit that two do not meet: a large photograph, and
    an upload that stalls.
    """
    command = "-m ray.serve.scripts run jobs.serve:build --non-blocking --name second --route-prefix /second"
    settings = f"weights={service.weights} token=no timeout=5 tile={TILE} overlap=16 compute.threads=1"
    subprocess.run(
        [sys.executable, *command.split(), *settings.split()],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        check=True,
    )
    try:
        photograph = files["cup.webp"]
        assert service.ask("POST", "/second/enhance", photograph).data == service.enhance(photograph).data
        large = np.asarray(Image.fromarray(photographs["coffee"] // 6).resize((1400, 1400)))
        reply = service.ask("POST", "/second/enhance?steps=16", file_of(large))
        assert (reply.status, reply.error) == (
            504,
            "the photograph took longer than 5 s; send a smaller one, or try again later",
        )
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
            head = f"POST /second/enhance HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photograph)}\r\n\r\n"
            connection.sendall(head.encode() + photograph[:100])
            assert connection.recv(10_000).startswith(b"HTTP/1.1 408 ")
    finally:
        serve.delete("second")
