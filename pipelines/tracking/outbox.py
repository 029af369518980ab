"""A bounded queue that a background thread empties, for deliveries that must never delay the caller."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

MAX_BACKOFF_S = 30.0
# Longest delay between the attempts of a closing outbox.
CLOSING_RETRY_S = 0.5

Item = TypeVar("Item")
logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The receiver cannot be reached now; the same delivery can succeed later."""


class RejectedError(Exception):
    """The receiver will never accept this delivery."""


class Outbox(Generic[Item]):
    """Delivers items in order, `max_batch` at a time, from a thread of its own that starts with the first item.

    An unavailable delivery is retried with delays that double from 1 to 30 seconds; meanwhile items wait, up to
    `capacity`, beyond which the oldest are dropped. A rejected delivery is dropped at once. Only the first loss is
    logged; all are counted.

    Args:
        name: what is delivered where, for log lines.
        deliver: sends a batch; raises UnavailableError or RejectedError. Must tolerate the same batch twice.
        capacity: most items that wait.
        max_batch: most items of one delivery.
        interval_s: seconds for which items gather before they are sent.

    Attributes:
        delivered: number of items that were delivered.
        dropped: number of items that were rejected, or did not fit.
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
        self.delivered, self.dropped = 0, 0
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # guards all that follows
        self._queue: deque[Item] = deque()
        self._in_flight: list[Item] = []
        self._retry_delay_s = 0.0  # 0 while the receiver is available
        self._flushing, self._closing, self._closed = False, False, False

    @property
    def unavailable(self) -> bool:
        """Whether the last delivery failed because the receiver could not be reached."""
        return self._retry_delay_s > 0

    def put(self, items: Iterable[Item]) -> None:
        """Adds items and returns at once."""
        with self._changed:
            self._queue.extend(items)
            self._trim()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"outbox-{self._name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Sends the waiting items now instead of after `interval_s`; returns at once."""
        with self._changed:
            self._flushing = True
            self._changed.notify_all()

    def take(self) -> list[Item]:
        """Removes and returns all waiting items if the receiver is unavailable; otherwise returns none."""
        with self._changed:
            if not self.unavailable:
                return []
            items = [*self._in_flight, *self._queue]
            self._in_flight = []
            self._queue.clear()
            return items

    def give_back(self, items: Sequence[Item]) -> None:
        """Puts taken items back in front of the queue."""
        with self._changed:
            self._queue.extendleft(reversed(items))
            self._trim()

    def close(self, timeout_s: float, idle_s: float = math.inf) -> list[Item]:
        """Delivers as much as possible within `timeout_s` seconds, and stops earlier if nothing is delivered in
        `idle_s` seconds.

        Returns:
            The items that still wait.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        deadline = time.monotonic() + timeout_s
        while self._thread is not None and self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            delivered = self.delivered
            self._thread.join(min(left, idle_s))
            if self.delivered == delivered:
                break
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return [*self._in_flight, *self._queue]

    def _trim(self) -> None:
        excess = max(len(self._queue) - self._capacity, 0)
        for _ in range(excess):
            self._queue.popleft()
        self._drop(excess, f"more than {self._capacity} were waiting")

    def _drop(self, count: int, reason: str) -> None:
        if count and not self.dropped:
            logger.warning("%s: gave up %d items, since %s; later losses are counted only", self._name, count, reason)
        self.dropped += count

    def _run(self) -> None:
        while self._wait():
            self._deliver_queue()

    def _wait(self) -> bool:
        """Waits until items may be sent, or sent again; returns False when the thread has to end."""
        with self._changed:
            if self._closing:
                self._changed.wait_for(lambda: self._closed, min(self._retry_delay_s, CLOSING_RETRY_S))
            elif self.unavailable:
                self._changed.wait_for(lambda: self._closing, self._retry_delay_s)
            else:
                self._changed.wait_for(lambda: self._queue or self._closing)
                self._changed.wait_for(lambda: self._flushing or self._closing, self._interval_s)
            self._flushing = False
            return not self._closed and bool(self._queue or not self._closing)

    def _deliver_queue(self) -> None:
        """Sends batch after batch until the queue is empty or the receiver is unavailable."""
        while batch := self._next_batch():
            try:
                self._deliver(batch)
            except UnavailableError as error:
                self._retry_later(error)
                return
            except RejectedError as error:
                with self._changed:
                    self._reached()
                    self._drop(len(batch), str(error))
            else:
                with self._changed:
                    self._reached()
                    self.delivered += len(batch)

    def _next_batch(self) -> list[Item]:
        with self._changed:
            size = 0 if self._closed else min(self._max_batch, len(self._queue))
            self._in_flight = [self._queue.popleft() for _ in range(size)]
            return self._in_flight

    def _retry_later(self, error: UnavailableError) -> None:
        with self._changed:
            if not self.unavailable:
                logger.warning("%s: away (%s); will try again", self._name, error)
            self._retry_delay_s = min(MAX_BACKOFF_S, 2 * self._retry_delay_s or 1.0)
            self._queue.extendleft(reversed(self._in_flight))  # unless they were taken meanwhile
            self._in_flight = []
            self._trim()

    def _reached(self) -> None:
        self._in_flight = []
        if self.unavailable:
            logger.warning("%s: back again", self._name)
        self._retry_delay_s = 0.0
