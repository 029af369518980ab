"""Parts of the service that need no Ray: batches, admission, settings, and who needs a token."""

import asyncio
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.config.serving import ServeConfig
from pipelines.serving.admission import Admission
from pipelines.serving.batches import Batches
from pipelines.serving.messages import RejectedRequestError
from pipelines.serving.service import token_of

TOKEN = "open-sesame-4f1d9b7c"


@dataclass(frozen=True)
class Item:
    """Work of a kind."""

    name: str
    kind: str = "a"
    size: int = 1
    since: float = 0.0
    pixels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(2, np.uint8))  # which have no one truth value


class Recorder:
    """Runs items, once it may, and keeps which ran together."""

    def __init__(self) -> None:
        self.ran: list[list[str]] = []
        self.may_run = threading.Event()

    def __call__(self, items: Sequence[Item]) -> list[str]:
        self.may_run.wait(60)
        self.ran.append([item.name for item in items])
        if any(item.name == "bad" for item in items):
            raise ValueError("bad")
        return [item.name.upper() for item in items]


def test_what_waits_runs_together_if_it_is_of_one_kind_and_fits() -> None:
    recorder = Recorder()

    async def main() -> list[str]:
        batches = Batches[Item, str](recorder, most=3, most_size=4, thread=ThreadPoolExecutor(1))
        items = [Item("first"), Item("b1", "b"), Item("a2"), Item("a3", size=9), Item("b2", "b"), Item("b3", "b", 3)]
        places = [batches.submit(item) for item in items]
        await places[0].taken.wait()
        assert [place.taken.is_set() for place in places] == [True, False, True, False, False, False]
        recorder.may_run.set()
        return await asyncio.gather(*(place.result for place in places))

    assert asyncio.run(main()) == ["FIRST", "B1", "A2", "A3", "B2", "B3"]
    assert recorder.ran == [["first", "a2"], ["b1", "b2"], ["a3"], ["b3"]]


def test_what_waits_since_longer_goes_first_also_if_its_replica_died_and_it_is_submitted_anew() -> None:
    recorder = Recorder()

    async def main() -> None:
        batches = Batches[Item, str](recorder, most=1, most_size=9, thread=ThreadPoolExecutor(1))
        places = [batches.submit(Item(name, since=since)) for name, since in (("a", 1.0), ("b", 3.0), ("c", 3.0))]
        await places[0].taken.wait()
        places.append(batches.submit(Item("anew", since=2.0)))
        recorder.may_run.set()
        await asyncio.gather(*(place.result for place in places))

    asyncio.run(main())
    assert recorder.ran == [["a"], ["anew"], ["b"], ["c"]]


def test_an_error_reaches_those_of_its_batch_and_nobody_else() -> None:
    recorder = Recorder()
    recorder.may_run.set()

    async def main() -> list[object]:
        batches = Batches[Item, str](recorder, most=2, most_size=9, thread=ThreadPoolExecutor(1))
        calls = [batches.submit(item).result for item in (Item("bad"), Item("good"), Item("fine"))]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    first, second, third = asyncio.run(main())
    assert isinstance(first, ValueError) and isinstance(second, ValueError) and third == "FINE"


def test_who_leaves_before_his_turn_is_not_worked_on() -> None:
    recorder = Recorder()

    async def main() -> None:
        batches = Batches[Item, str](recorder, most=1, most_size=9, thread=ThreadPoolExecutor(1))
        first, left = (batches.submit(Item(name)) for name in ("first", "left"))
        await first.taken.wait()
        left.result.cancel()
        recorder.may_run.set()
        await first.result
        assert await batches.submit(Item("last")).result == "LAST"
        assert not left.taken.is_set()

    asyncio.run(main())
    assert recorder.ran == [["first"], ["last"]]


def test_no_more_are_admitted_than_there_is_room_for() -> None:
    admission = Admission(2)
    with admission.admitted(), admission.admitted(), pytest.raises(RejectedRequestError) as error, admission.admitted():
        pass
    assert (error.value.status, error.value.headers) == (503, {"Retry-After": "1"})
    with admission.admitted(), admission.admitted():
        pass


def config(**changes: Any) -> ServeConfig:
    return replace(ServeConfig(weights="w"), **changes)


@pytest.mark.parametrize(
    ("host", "wish", "variable", "expected"),
    [
        ("127.0.0.1", "auto", "", ""),
        ("localhost", "auto", "", ""),
        ("127.0.0.1", "auto", TOKEN, TOKEN),
        ("127.0.0.1", "no", TOKEN, ""),
        ("0.0.0.0", "auto", TOKEN, TOKEN),
        ("0.0.0.0", "no", "", ""),
        ("0.0.0.0", "auto", "", "finds none in REDDIT_SERVE_TOKEN; set that variable"),
        ("127.0.0.1", "yes", "", "finds none in REDDIT_SERVE_TOKEN"),
        ("127.0.0.1", "auto", "short", "has 5 characters, but must have at least 16"),
    ],
)
def test_who_needs_a_token(host: str, wish: str, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDDIT_SERVE_TOKEN", variable)
    if expected in ("", TOKEN):
        assert token_of(config(host=host, token=wish)) == expected
    else:
        with pytest.raises(ValueError, match=re.escape(expected)):
            token_of(config(host=host, token=wish))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "port is 0"),
        ({"queue": 0}, "queue is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"max_megapixels": -1.0}, "max_megapixels is -1"),
        ({"steps": 32}, "steps is 32, above max_steps of 16"),
        ({"brightness": 2.0}, "brightness is 2"),
    ],
)
def test_settings_that_can_never_work(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**changes)
