"""A bounded queue that a background thread empties, for deliveries that must never hold up the caller."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

MAX_BACKOFF_S = 30.0
# How often a closing outbox tries again while its time lasts.
CLOSING_RETRY_S = 0.5

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The receiver cannot be reached now; the same delivery can succeed later."""


class RefusedError(Exception):
    """The receiver will never take this delivery."""


class Outbox(Generic[Item]):
    """Delivers items in order, `max_batch` at a time, from a thread of its own that starts with the first item.

    A delivery that is unavailable is tried again with growing delays; meanwhile items wait, up to `capacity`,
    beyond which the oldest are given up. A refused delivery is given up at once. Either is logged once.

    Args:
        name: what is delivered where, for log lines.
        deliver: sends a batch; raises UnavailableError or RefusedError. Must tolerate the same batch twice.
        capacity: most items that wait.
        max_batch: most items of one delivery.
        interval_s: seconds for which items gather before they are sent.
    """

    def __init__(
        self,
        name: str,
        deliver: Callable[[Sequence[Item]], None],
        *,
        capacity: int,
        max_batch: int = 1,
        interval_s: float = 0.0,
    ) -> None:
        self._name = name
        self._deliver = deliver
        self._capacity = capacity
        self._max_batch = max_batch
        self._interval_s = interval_s
        self._queue: deque[Item] = deque()
        self._lock = threading.Lock()
        self._wake, self._hurried, self._closing, self._abandoned = (threading.Event() for _ in range(4))
        self._thread: threading.Thread | None = None
        self._in_flight: list[Item] = []
        self._taken = False  # what is in flight is somebody else's now
        self.given_up, self.delivered, self.away = 0, 0, False

    def put(self, items: Iterable[Item]) -> None:
        """Adds items and returns at once."""
        with self._lock:
            self._queue.extend(items)
            self._trim()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"outbox-{self._name}", daemon=True)
                self._thread.start()
        self._wake.set()

    def hurry(self) -> None:
        """Has what waits sent now, without gathering more."""
        self._hurried.set()

    def take(self) -> list[Item]:
        """While the receiver is away: all that waits, which is the caller's from now on; else nothing."""
        with self._lock:
            if not self.away:
                return []
            items = [*self._in_flight, *self._queue]
            self._taken = bool(self._in_flight)
            self._queue.clear()
            return items

    def give_back(self, items: Sequence[Item]) -> None:
        """Puts what was taken back in front."""
        with self._lock:
            self._queue.extendleft(reversed(items))
            self._trim()

    def close(self, timeout_s: float, idle_s: float = math.inf) -> list[Item]:
        """Delivers what it can within `timeout_s` seconds, as long as something is taken every `idle_s` seconds.

        Returns:
            The items that still wait.
        """
        self._closing.set()
        self._wake.set()
        self.hurry()
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            delivered = self.delivered
            self._thread.join(min(left, idle_s))
            if self.delivered == delivered:
                break
        self._abandoned.set()
        with self._lock:
            return [*self._in_flight, *self._queue]

    def _trim(self) -> None:
        excess = len(self._queue) - self._capacity
        for _ in range(excess):
            self._queue.popleft()
        self._give_up(max(excess, 0), f"more than {self._capacity} were waiting")

    def _give_up(self, count: int, reason: str) -> None:
        if count and not self.given_up:
            logger.warning("%s: gave up %d items, since %s; later losses are counted only", self._name, count, reason)
        self.given_up += count

    def _work(self) -> None:
        delay = 0.0
        while not self._abandoned.is_set():
            if self._closing.is_set():
                self._abandoned.wait(min(delay, CLOSING_RETRY_S))
            elif delay:
                self._closing.wait(delay)
            else:
                self._wake.wait()
                self._hurried.wait(self._interval_s)
            self._wake.clear()
            self._hurried.clear()
            delay = self._drain(delay)
            if self._closing.is_set() and not self._queue:
                return

    def _drain(self, delay: float) -> float:
        """Sends until the queue is empty (returns 0) or the receiver is away (returns the seconds to wait)."""
        while not self._abandoned.is_set():
            with self._lock:
                batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
                self._in_flight = batch
            if not batch:
                return delay  # else it would be forgotten that the receiver is away
            try:
                self._deliver(batch)
            except UnavailableError as error:
                self._put_back(batch)
                if not delay:
                    logger.warning("%s: away (%s); will try again", self._name, error)
                return min(MAX_BACKOFF_S, 2 * delay or 1.0)
            except RefusedError as error:
                with self._lock:
                    self._in_flight, self._taken, self.away = [], False, False
                    self._give_up(len(batch), str(error))
            else:
                with self._lock:
                    self._in_flight, self._taken, self.away = [], False, False
                    self.delivered += len(batch)
                if delay:
                    logger.warning("%s: back again", self._name)
                    delay = 0.0
        return 0.0

    def _put_back(self, batch: Sequence[Item]) -> None:
        with self._lock:
            if not self._taken:
                self._queue.extendleft(reversed(batch))
            self._in_flight, self._taken, self.away = [], False, True
            self._trim()
