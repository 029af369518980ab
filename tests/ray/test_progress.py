"""The bar that the driver shows of steps which a training worker takes."""

import io
import time

import pytest
import ray
from rich.console import Console

from pipelines.progress import Progress
from pipelines.training.board import Progressed, training_bar

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_workers_progress_is_on_the_drivers_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=160, highlight=False)
    with training_bar(Progress("training", 40, "steps", console)) as board:
        ray.get(board.put.remote(Progressed("4-to-2", 12, 2.0, "loss 0.2500")))
        deadline = time.monotonic() + 60
        while "4-to-2, loss 0.2500" not in text.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert "12/40" in text.getvalue() and "2.00/s, 14 s left" in text.getvalue()


def test_elsewhere_no_actor_is_made() -> None:
    with training_bar(Progress("training", 40, "steps", Console(file=io.StringIO()))) as board:
        assert board is None
