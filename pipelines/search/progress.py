"""What a sweep says while it runs: lines on the terminal, and the state of the trials' MLflow runs."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ray.tune import Callback, Result

from pipelines import storage, tracking
from pipelines.reporting import Row, format_value
from pipelines.search.sweep import OBJECTIVE, STEP, Sweep
from pipelines.tracking import OFF, RunHandle, RunWriter, Status
from pipelines.tracking.outbox import Outbox

# A server that is there takes a trial's end in half a second; one that is not is waited for only so long.
IDLE_S = 30.0
ENDINGS_KEPT = 10_000
Outcome = Literal["finished", "stopped", "failed"]
logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    """A trial's run, and what it ended as."""

    run: RunHandle
    status: Status
    tags: dict[str, str]


@dataclass
class Watch:
    """What this process knows about the sweep that it runs."""

    sweep: Sweep
    parent: RunHandle
    writer: RunWriter
    started: float = field(default_factory=time.monotonic)
    ended_here: int = 0

    def __post_init__(self) -> None:
        self.endings = Outbox[Ending]("ends of trials", end_runs, capacity=ENDINGS_KEPT)
        # By themselves, so that files that cannot be sent hold up no other trial's end.
        self.parcels = Outbox[RunHandle]("what trials could not send", send_spilled, capacity=ENDINGS_KEPT)

    def heard(self, trial: Any, trials: Sequence[Any], result: dict[str, Any]) -> None:
        """A trial has looked at the validation images."""
        where = f"trial {number(trial, trials)}/{self.sweep.num_trials} ({trial.trial_id})"
        print(
            f"{where} step {result[STEP]}/{self.sweep.num_steps}: {self.sweep.config.metric} "
            f"{format_value(float(result[OBJECTIVE]))}",
            flush=True,
        )

    def ended(self, trial: Any, trials: Sequence[Any], *, failed: bool) -> None:
        """A trial has reached its end, was stopped, or failed."""
        self.ended_here += 1
        result = trial.last_result or {}
        outcome = self.end_run(trial.trial_id, trial.config, result, failed=failed)
        done = sum(other.is_finished() for other in trials if other is not trial) + 1
        finished = [other.last_result or {} for other in trials if other is trial or other.is_finished()]
        best = max((last[OBJECTIVE] for last in finished if self.is_complete(last)), default=None)
        if outcome == "finished" and best is not None:
            self.writer.metrics({"sweep/objective": result[OBJECTIVE], "sweep/best": best}, step=done)
        left = (time.monotonic() - self.started) / self.ended_here * (self.sweep.num_trials - done)
        print(
            f"trial {number(trial, trials)} {outcome}; {done}/{self.sweep.num_trials} done, "
            f"best {self.sweep.config.metric} {format_value(best)}, about {left / 60:.0f} min left",
            flush=True,
        )

    def is_complete(self, result: Mapping[str, Any]) -> bool:
        """Whether the last thing that a trial reported is its last step."""
        return bool(result.get(STEP, 0) >= self.sweep.num_steps)

    def settle(self, result: Result) -> None:
        """Makes sure that a trial's run is ended, also where an earlier process was killed before it said so."""
        trial_id = storage.base_name(result.path)
        self.end_run(trial_id, result.config or {}, result.metrics or {}, failed=result.error is not None)

    def end_run(self, trial_id: str, values: Mapping[str, Any], result: Mapping[str, Any], *, failed: bool) -> Outcome:
        outcome: Outcome = "failed" if failed else "finished" if self.is_complete(result) else "stopped"
        try:
            run = self.sweep.trial_run(trial_id, values, self.parent)
        except ValueError:  # values that a distillation refuses together: the trial failed for that, and has no run
            return outcome
        tags = {"reddit.outcome": outcome, "reddit.steps": str(result.get(STEP, 0))}
        self.endings.put([Ending(run, "FAILED" if failed else "FINISHED", tags)])
        self.parcels.put([run])
        return outcome

    def close(self) -> None:
        """Waits for as long as the server takes what there is to say."""
        waiting = len(self.endings.close(math.inf, IDLE_S))
        waiting += len(self.parcels.close(math.inf, IDLE_S if not waiting else 0.0))
        if waiting:
            logger.warning("%d ends of trials are not on the tracking server; run the same command again", waiting)


def end_runs(endings: Sequence[Ending]) -> None:
    for ending in endings:
        tracking.end_run(ending.run, ending.status, ending.tags)


def send_spilled(runs: Sequence[RunHandle]) -> None:
    for run in runs:
        tracking.send_spilled(run)


def number(trial: Any, trials: Sequence[Any]) -> int:
    """A trial's number in the order in which they were begun, also by earlier processes."""
    return [other.trial_id for other in trials].index(trial.trial_id) + 1


_watch: Watch | None = None


@contextlib.contextmanager
def watching(sweep: Sweep, parent: RunHandle, writer: RunWriter) -> Iterator[Watch]:
    """Makes this the sweep that `SweepProgress` tells about."""
    global _watch  # noqa: PLW0603 - see SweepProgress
    _watch = Watch(sweep, parent, writer)
    try:
        yield _watch
    finally:
        _watch.close()
        _watch = None


def settle(sweep: Sweep, parent: RunHandle, rows: Sequence[Row]) -> None:
    """Ends the trials' runs of a sweep that is done, where the server was away when they ended."""
    if not parent.run_id:
        return
    watch = Watch(sweep, parent, RunWriter(OFF))
    for row in rows:
        values = {dimension.key: row[dimension.key] for dimension in sweep.dimensions}
        watch.end_run(row["trial"], values, row, failed=row["outcome"] == "failed")
    watch.close()


class SweepProgress(Callback):
    """Tells the watch of this process what happens.

    Tune pickles its callbacks, and on a restore brings back the old ones whatever is passed. So this one holds
    nothing, and looks its sweep up in this module.
    """

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if _watch is not None:
            _watch.heard(trial, trials, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _watch is not None:
            _watch.ended(trial, trials, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _watch is not None:
            _watch.ended(trial, trials, failed=True)
