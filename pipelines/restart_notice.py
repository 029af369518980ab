"""Keeps one line of Ray, which does not apply here, from standard error.

For every actor that may restart and is given an object reference, Ray's core worker prints that it "has constructor
arguments in the object store and max_restarts > 0" and that its restart fails if they are lost
(https://github.com/ray-project/ray/issues/53727). Ray Data gives each actor of a pool two such references: its function
and its context. The driver owns both and holds them until the pipeline ends, so a restart finds them as long as there
is a driver that waits for it: tests/ray/test_enhance.py kills an actor's process, tests/ray/lose_a_node.py its node.

The line comes from C++, goes straight to file descriptor 2, and cannot be switched off (issue 57733 of Ray). Where it
comes from a worker, `RAY_DEDUP_LOGS_SKIP_REGEX` (`pipelines.QUIET`) drops it.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from pipelines import RESTART_NOTICE

NOTICE = RESTART_NOTICE.encode()
END = b"\0end of the filter\n"
STDERR = 2


@contextlib.contextmanager
def without_restart_notice() -> Iterator[None]:
    """Context manager. Passes on every other line that this process writes to standard error, C++ included."""
    sys.stderr.flush()
    original = os.dup(STDERR)
    reader, writer = os.pipe()
    os.dup2(writer, STDERR)
    os.close(writer)
    thread = threading.Thread(target=copy_lines, args=(reader, original), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.write(STDERR, END)
        os.dup2(original, STDERR)
        thread.join()
        os.close(original)


def copy_lines(reader: int, original: int) -> None:
    """Copies lines to the original descriptor up to `END`, which may follow an unfinished line."""
    with os.fdopen(reader, "rb") as lines, os.fdopen(original, "wb", buffering=0, closefd=False) as sink:
        for line in lines:
            if NOTICE not in line:
                sink.write(line.removesuffix(END))
            if line.endswith(END):
                return
