"""One line of Ray is kept from standard error; every other line arrives, in order."""

import os
import subprocess

import pytest

from pipelines.restart_notice import without_restart_notice

RAYS = (
    b"[2026-01-01 E 1 1] core_worker.cc:1: Actor has constructor arguments in the object store and max_restarts > 0.\n"
)


def test_only_the_notice_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with without_restart_notice():
        os.write(2, b"before\n" + RAYS + b"after\n")
        subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
        os.write(2, b"unfinished")
    os.write(2, b" line\n")
    assert capfd.readouterr().err == "before\nafter\nfrom a child\nunfinished line\n"


def test_standard_error_is_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such"), without_restart_notice():
        os.write(2, b"x" * 200_000 + b"\n")  # more than a pipe holds
        raise ValueError("no such")
    os.write(2, RAYS)
    assert capfd.readouterr().err == "x" * 200_000 + "\n" + RAYS.decode()
