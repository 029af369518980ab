"""The service against the bare student: latency and throughput at 1, 4 and 16 clients; and a mixed load with kills.

    python tests/benchmarks/bench_service.py --weights URL [--threads 2] [--requests 24] [--rounds 2]
    python tests/benchmarks/bench_service.py --weights URL --minutes 10 [--kill-every 20]

The service is `jobs/serve.py` as a process with a Ray of its own, reached over loopback. The bare student is
`Student.enhance` on decoded pixels in this process, with as many threads. Both take turns, and are idle in between.
With `--minutes`, clients send photographs of three kinds and some that are damaged, while replicas of the student are
killed; every answer is compared with the first of its kind.
"""

import http.client
import io
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro
from PIL import Image
from rich.console import Console

from pipelines.cluster import free_port
from pipelines.reporting import Report, show
from pipelines.weights import load_student

ROOT = Path(__file__).parents[2]
SIZE = (600, 400)  # 0.24 megapixels
CLIENTS = (1, 4, 16)
TARGET = 0.85
START_S = 600.0


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    weights: str
    """URL of the student."""
    threads: int = 2
    """Torch CPU threads of the service's one replica, and of the bare student."""
    requests: int = 24
    """Photographs of each measurement."""
    rounds: int = 2
    """Rounds, of which the median counts."""
    minutes: float = 0.0
    """Length of the mixed load; 0 measures speed instead."""
    kill_every: float = 20.0
    """Seconds between kills of replicas."""
    tile: int = 1024
    """Side of the service's tiles."""


@dataclass
class Service:
    """The running service."""

    process: psutil.Popen
    port: int
    log: Path

    def enhance(self, photograph: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/enhance", photograph)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def members(self, word: str = "") -> list[psutil.Process]:
        found = [self.process, *self.process.children(recursive=True)]
        return [member for member in found if word in " ".join(command_of(member))]

    def memory(self) -> float:
        """MiB of the service and all of its Ray; what processes share counts once."""
        total = 0
        for member in self.members():
            try:
                total += member.memory_full_info().pss
            except psutil.Error:
                continue
        return total / 2**20


def command_of(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
        return found
    except psutil.Error:  # it has just ended
        return []


def start(settings: Settings, folder: Path) -> Service:
    port, log = free_port(), folder / "service.log"
    flags = f"--weights {settings.weights} --port {port} --compute.threads {settings.threads} --queue 32"
    with log.open("wb") as stream:
        process = psutil.Popen(
            [sys.executable, str(ROOT / "jobs" / "serve.py"), *flags.split(), "--tile", str(settings.tile)],
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    service, deadline = Service(process, port, log), time.monotonic() + START_S
    while not service.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the service did not start: {log.read_text()[-2000:]}")
        time.sleep(0.5)
    return service


def night(size: tuple[int, int], kind: str, seed: int = 0) -> bytes:
    import skimage.data  # noqa: PLC0415 - slow to import

    picture = Image.fromarray(np.roll(skimage.data.rocket() // 6, seed, axis=1)).resize(size)
    sink = io.BytesIO()
    picture.save(sink, format=kind)
    return sink.getvalue()


def measure(service: Service, photograph: bytes, clients: int, requests: int) -> tuple[float, list[float]]:
    """Photographs per second, and the seconds of each."""

    def one(_: int) -> float:
        started = time.perf_counter()
        status, _body = service.enhance(photograph)
        assert status == 200, status
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(one, range(requests)))
    return requests / (time.perf_counter() - started), latencies


def bench(settings: Settings, service: Service) -> Report:
    torch.set_num_threads(settings.threads)
    student = load_student(settings.weights)
    photograph = night(SIZE, "JPEG")
    pixels = np.asarray(Image.open(io.BytesIO(photograph)))
    rates: dict[int, list[float]] = {clients: [] for clients in (0, *CLIENTS)}
    latencies: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    for number in range(settings.rounds + 1):
        started = time.perf_counter()
        for _ in range(settings.requests):
            student.enhance(pixels)
        bare = settings.requests / (time.perf_counter() - started)
        for clients in CLIENTS:
            rate, seconds = measure(service, photograph, clients, settings.requests)
            if number:  # the first round warms up
                rates[clients].append(rate)
                latencies[clients] += seconds
        if number:
            rates[0].append(bare)
    rows = [
        {
            "clients": clients,
            "photographs/s": statistics.median(rates[clients]),
            "against bare": statistics.median(a / b for a, b in zip(rates[clients], rates[0], strict=True)),
            "p50 s": float(np.percentile(latencies[clients], 50)),
            "p95 s": float(np.percentile(latencies[clients], 95)),
        }
        for clients in CLIENTS
    ]
    facts = {"bare photographs/s": statistics.median(rates[0]), "size": SIZE, "threads": settings.threads}
    return Report(title=f"The service against the bare student (at least {TARGET} is wanted)", rows=rows, facts=facts)


@dataclass
class Tally:
    """What came of a mixed load."""

    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    kills: int = 0


def soak(settings: Settings, service: Service) -> Report:
    """Mixed load with kills; a wrong answer is one whose bytes differ from the first one's."""
    tile = settings.tile
    kinds = {
        "small": night((120, 80), "PNG"),
        "photograph": night(SIZE, "JPEG"),
        "tiled": night((2 * tile, tile - 16), "WEBP"),
        "damaged": night((120, 80), "PNG")[:2000],
    }
    expected = {name: service.enhance(data) for name, data in kinds.items()}
    tally, stop = Tally(), time.monotonic() + 60 * settings.minutes

    def client(number: int) -> None:
        names, turn = list(kinds), number
        while time.monotonic() < stop:
            name, turn = names[turn % len(names)], turn + 1
            try:
                status, body = service.enhance(kinds[name])
            except OSError as error:
                tally.outcomes[f"lost: {type(error).__name__}"] += 1
                continue
            if status == 503:
                tally.outcomes["given up after deaths of replicas" if b"died" in body else "told to come back"] += 1
                time.sleep(1)
            else:
                right = (status, body) == expected[name]
                tally.outcomes["right" if right else f"wrong: status {status}"] += 1

    def killer() -> None:
        while time.monotonic() < stop - settings.kill_every:
            time.sleep(settings.kill_every)
            for replica in service.members("ServeReplica:reddit:student"):
                replica.kill()
                tally.kills += 1
            tally.memory.append(service.memory())

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    threads.append(threading.Thread(target=killer))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [{"outcome": name, "requests": count} for name, count in sorted(tally.outcomes.items())]
    third = max(1, len(tally.memory) // 3)
    facts = {
        "minutes": settings.minutes,
        "replicas killed": tally.kills,
        "MiB, first third": statistics.mean(tally.memory[:third]) if tally.memory else None,
        "MiB, last third": statistics.mean(tally.memory[-third:]) if tally.memory else None,
    }
    return Report(title="Mixed load with kills", rows=rows, facts=facts)


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        service = start(settings, Path(folder))
        try:
            show(soak(settings, service) if settings.minutes else bench(settings, service), Console())
        finally:
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(120)


if __name__ == "__main__":
    main(tyro.cli(Settings))
