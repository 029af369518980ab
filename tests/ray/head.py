"""A Ray head as `ray start --head` makes one, which keeps away from every other Ray of this machine."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from pipelines import LOOPBACK
from tests.ray.processes import ROOT

START_TIMEOUT_S = 240
JOB_TIMEOUT_S = 400
STOP_TIMEOUT_S = 60


def free_ports(number: int) -> list[int]:
    """TCP ports that nobody listens on at the moment."""
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Head:
    """Its own ports, home, token and temporary folder; `ray` and `submit` are what a user types."""

    def __init__(self, home: Path) -> None:
        self.home = home
        gcs, self.dashboard, agent, client = free_ports(4)
        self.address = f"http://127.0.0.1:{self.dashboard}"
        # Names of sockets must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.token = secrets.token_hex(32)
        hidden = ("RAY_ADDRESS", "PYTHONPATH", "RAY_API_SERVER_ADDRESS", *LOOPBACK)
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden} | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
        }
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(self.token)
        ports = {"port": gcs, "dashboard-port": self.dashboard, "dashboard-agent-listen-port": agent}
        ports |= {"ray-client-server-port": client, "min-worker-port": 0, "max-worker-port": 0}
        flags = [f"--{name}={port}" for name, port in ports.items()]
        command = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={self.folder}", *flags]
        self.log = (home / "head.log").open("wb")
        self.process = psutil.Popen(
            [*command, "--disable-usage-stats"],
            env=self.environment,
            cwd=home,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.wait()

    def wait(self) -> None:
        """Returns once jobs can be submitted."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask("/api/jobs/", self.token)
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.5)
            else:
                return
        raise TimeoutError((self.home / "head.log").read_text()[-3000:])

    def ask(self, path: str, token: str = "") -> bytes:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=20) as answer:
            data: bytes = answer.read()
        return data

    def ray(self, *words: str, check: bool = True) -> str:
        """What `ray WORDS` prints, run in the repository."""
        done = subprocess.run(
            ["ray", *words],
            cwd=ROOT,
            env={**self.environment, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def submit(self, name: str, command: str, *flags: str, check: bool = True) -> str:
        """`ray job submit --working-dir . -- COMMAND`, under a name of its own."""
        words = ("job", "submit", "--working-dir", ".", "--submission-id", name, *flags, "--", *command.split())
        return self.ray(*words, check=check)

    def status(self, name: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, STOPPED or FAILED; with the head's own answer, since the CLI starts slowly."""
        answer: dict[str, Any] = json.loads(self.ask(f"/api/jobs/{name}", self.token))
        return str(answer["status"])

    def stop(self) -> None:
        """Ends the head and all that it started, and nothing else."""
        started = self.process.children(recursive=True)
        self.process.terminate()
        _, left = psutil.wait_procs([self.process, *started], timeout=STOP_TIMEOUT_S)
        for process in left:
            process.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
