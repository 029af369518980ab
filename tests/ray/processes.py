"""Processes that the tests start, look for, wait for and kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
# Far more than anything here takes on a machine with nothing else to do.
PATIENCE_S = 600.0
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def started(word: str, below: int | None = None) -> list[psutil.Process]:
    """Those with a word in their command line that a process (this one, if none is named) started, also indirectly."""
    return [child for child in psutil.Process(below).children(recursive=True) if word in command_of(child)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def listening(process: psutil.Process) -> set[str]:
    """The addresses that a process and all that it started listen on."""
    connections = [
        connection
        for one in (process, *process.children(recursive=True))
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    return {connection.laddr.ip for connection in connections}


def wait_until(
    condition: Callable[[], object], alive: Callable[[], bool] = lambda: True, log: Path | None = None
) -> None:
    """Returns once the condition holds; fails when what it waits for is no longer alive, or patience ends.

    Args:
        alive: whether the condition can still come to hold.
        log: a file to quote the end of in a failure.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert alive(), f"it ended too early: {tail(log)}"
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s in vain: {tail(log)}"
        time.sleep(0.02)


def tail(log: Path | None) -> str:
    return log.read_text(errors="replace")[-3000:] if log else ""


class JobProcess:
    """`jobs/NAME.py` as a process, with all that it prints in a log file.

    Args:
        ray_address: of a running Ray that it joins; without one it starts a Ray of its own.
    """

    def __init__(self, name: str, flags: str, log: Path, ray_address: str = "") -> None:
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        if ray_address:
            environment["RAY_ADDRESS"] = ray_address
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags.split()],
                cwd=ROOT,
                env={**environment, "OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Returns once the condition holds; fails if the job ends before."""
        wait_until(condition, self.runs, self.log)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL for the driver and all that it started itself, a Ray of its own included."""
        assert self.runs(), f"the job ended before it could be killed: {tail(self.log)}"
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def kill_when(self, condition: Callable[[], object]) -> None:
        """Kills as soon as the condition holds, and also when it fails to."""
        try:
            self.wait_until(condition)
        finally:
            if self.runs():
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
