"""The outbox never holds up its caller, loses nothing while the receiver is away, and keeps what it holds bounded."""

import threading
import time
from collections.abc import Callable, Sequence

from pipelines.tracking.outbox import Outbox, RejectedError, UnavailableError


class Receiver:
    """Takes batches, unless `away` or `refuses` says otherwise."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.away = threading.Event()
        self.refuses: Callable[[int], bool] = lambda item: False  # noqa: ARG005
        self.attempts = 0

    def __call__(self, batch: Sequence[int]) -> None:
        self.attempts += 1
        if self.away.is_set():
            raise UnavailableError("gone fishing")
        if any(self.refuses(item) for item in batch):
            raise RejectedError("not this one")
        self.batches.append(list(batch))

    @property
    def items(self) -> list[int]:
        return [item for batch in self.batches for item in batch]


def test_delivers_in_order_and_in_batches() -> None:
    receiver = Receiver()
    outbox = Outbox[int]("test", receiver, capacity=1000, max_batch=100)
    for start in range(0, 500, 50):
        outbox.put(range(start, start + 50))
    assert outbox.close(timeout_s=10) == []
    assert receiver.items == list(range(500))
    assert all(len(batch) <= 100 for batch in receiver.batches)


def test_waits_for_a_receiver_that_is_away() -> None:
    receiver = Receiver()
    receiver.away.set()
    outbox = Outbox[int]("test", receiver, capacity=1000, max_batch=10)
    outbox.put(range(25))
    while not receiver.attempts:
        time.sleep(0.01)
    outbox.put(range(25, 40))
    receiver.away.clear()
    assert outbox.close(timeout_s=10) == []
    assert receiver.items == list(range(40))


def test_gives_up_the_oldest_beyond_its_capacity() -> None:
    receiver = Receiver()
    receiver.away.set()
    outbox = Outbox[int]("test", receiver, capacity=30, max_batch=10)
    outbox.put(range(100))
    receiver.away.clear()
    assert outbox.close(timeout_s=10) == []
    assert outbox.dropped == 70
    assert receiver.items == list(range(70, 100))


def test_drops_what_is_refused_and_goes_on() -> None:
    receiver = Receiver()
    receiver.refuses = lambda item: item == 3
    outbox = Outbox[int]("test", receiver, capacity=100)
    outbox.put(range(6))
    assert outbox.close(timeout_s=10) == []
    assert outbox.dropped == 1
    assert receiver.items == [0, 1, 2, 4, 5]


def test_a_rejection_shows_that_the_receiver_is_back() -> None:
    receiver = Receiver()
    receiver.away.set()
    receiver.refuses = lambda item: item == 0
    outbox = Outbox[int]("test", receiver, capacity=100)
    outbox.put([0])
    while not outbox.unavailable:
        time.sleep(0.01)
    receiver.away.clear()
    while outbox.unavailable:
        time.sleep(0.01)
    outbox.put([1])
    assert outbox.close(timeout_s=10) == []
    assert (outbox.dropped, receiver.items) == (1, [1])


def test_closing_gives_up_in_time() -> None:
    receiver = Receiver()
    receiver.away.set()
    outbox = Outbox[int]("test", receiver, capacity=100)
    outbox.put(range(7))
    started = time.monotonic()
    assert outbox.close(timeout_s=0.3) == list(range(7))
    assert time.monotonic() - started < 2
    assert receiver.items == []


def test_putting_does_not_wait_for_a_slow_receiver() -> None:
    hold = threading.Event()

    def slow(batch: Sequence[int]) -> None:
        hold.wait(10)

    outbox = Outbox[int]("test", slow, capacity=10_000)
    started = time.monotonic()
    for item in range(1000):
        outbox.put([item])
    assert time.monotonic() - started < 1
    hold.set()
    assert outbox.close(timeout_s=10) == []


def test_what_waits_for_an_absent_receiver_can_be_taken_and_given_back() -> None:
    receiver = Receiver()
    outbox = Outbox[int]("test", receiver, capacity=100, max_batch=2)
    assert outbox.take() == []  # it is not known to be away
    receiver.away.set()
    outbox.put(range(5))
    while not outbox.unavailable:
        time.sleep(0.01)
    taken = outbox.take()
    assert taken == list(range(5))
    assert outbox.take() == []
    outbox.put([5])
    outbox.give_back(taken[3:])
    receiver.away.clear()
    assert outbox.close(timeout_s=10) == []
    assert receiver.items == [3, 4, 5]
    assert not outbox.unavailable


def test_what_gathers_can_be_flushed() -> None:
    receiver = Receiver()
    outbox = Outbox[int]("test", receiver, capacity=100, max_batch=10, interval_s=60)
    outbox.put([1])
    outbox.flush()
    deadline = time.monotonic() + 10
    while receiver.items != [1]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    outbox.put([2])
    time.sleep(0.1)
    assert receiver.items == [1]
    assert outbox.close(timeout_s=10) == []
    assert receiver.items == [1, 2]


def test_closing_goes_on_as_long_as_something_is_taken() -> None:
    def slow(batch: Sequence[int]) -> None:
        time.sleep(0.1)
        if batch == [5]:
            raise UnavailableError("gone fishing")

    outbox = Outbox[int]("test", slow, capacity=100)
    outbox.put(range(8))
    assert outbox.close(timeout_s=60, idle_s=0.4) == [5, 6, 7]
