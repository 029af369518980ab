"""Follows a running sweep: progress lines on the terminal, and the ends of the trials' MLflow runs."""

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

# An available server takes half a second for a trial's end; an unavailable one is waited for this long.
IDLE_S = 30.0
CAPACITY = 10_000
Outcome = Literal["finished", "stopped", "failed"]
logger = logging.getLogger(__name__)


class TrialEnd(NamedTuple):
    """A trial's run, with the status and tags that it ends with."""

    run: RunHandle
    status: Status
    tags: dict[str, str]


@dataclass
class SweepMonitor:
    """Prints what the trials of a sweep report and ends their runs; one per driver process.

    Attributes:
        sweep: the sweep.
        parent: its run.
        writer: writes to its run.
        started: time of this process's start, on the monotonic clock.
        ended_here: number of trials that ended in this process.
    """

    sweep: Sweep
    parent: RunHandle
    writer: RunWriter
    started: float = field(default_factory=time.monotonic)
    ended_here: int = 0

    def __post_init__(self) -> None:
        self.ends = Outbox[TrialEnd]("ends of trials", end_runs, capacity=CAPACITY)
        # Separate, so that a file that cannot be sent delays no other trial's end.
        self.spills = Outbox[RunHandle]("what trials could not send", send_spilled, capacity=CAPACITY)

    def show_validation(self, trial: Any, trials: Sequence[Any], result: dict[str, Any]) -> None:
        """Prints the objective of a validation of a trial."""
        where = f"trial {number(trial, trials)}/{self.sweep.num_trials} ({trial.trial_id})"
        print(
            f"{where} step {result[STEP]}/{self.sweep.num_steps}: {self.sweep.config.metric} "
            f"{format_value(float(result[OBJECTIVE]))}",
            flush=True,
        )

    def trial_ended(self, trial: Any, trials: Sequence[Any], *, failed: bool) -> None:
        """Ends the run of a trial that reached its end, was stopped, or failed; logs and prints the best so far."""
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
        """Whether a trial's last result is that of its last step."""
        return bool(result.get(STEP, 0) >= self.sweep.num_steps)

    def end_result_run(self, result: Result) -> None:
        """Ends the run of a trial's result, in case an earlier process was killed before it could do so."""
        trial_id = storage.base_name(result.path)
        self.end_run(trial_id, result.config or {}, result.metrics or {}, failed=result.error is not None)

    def end_run(self, trial_id: str, values: Mapping[str, Any], result: Mapping[str, Any], *, failed: bool) -> Outcome:
        """Puts the end of a trial's run, and the sending of its spilled data, into the outboxes."""
        outcome: Outcome = "failed" if failed else "finished" if self.is_complete(result) else "stopped"
        try:
            run = self.sweep.trial_run(trial_id, values, self.parent)
        except ValueError:  # the config rejects this combination of values: the trial failed for that, and has no run
            return outcome
        tags = {"reddit.outcome": outcome, "reddit.steps": str(result.get(STEP, 0))}
        self.ends.put([TrialEnd(run, "FAILED" if failed else "FINISHED", tags)])
        self.spills.put([run])
        return outcome

    def close(self) -> None:
        """Delivers what the outboxes hold, until the server accepts nothing for 30 seconds."""
        waiting = len(self.ends.close(math.inf, IDLE_S))
        waiting += len(self.spills.close(math.inf, IDLE_S if not waiting else 0.0))
        if waiting:
            logger.warning("%d ends of trials are not on the tracking server; run the same command again", waiting)


def end_runs(ends: Sequence[TrialEnd]) -> None:
    """Ends the runs of trials; raises as `tracking.end_run` does."""
    for end in ends:
        tracking.end_run(end.run, end.status, end.tags)


def send_spilled(runs: Sequence[RunHandle]) -> None:
    """Sends the spilled data of runs; raises as `tracking.send_spilled` does."""
    for run in runs:
        tracking.send_spilled(run)


def number(trial: Any, trials: Sequence[Any]) -> int:
    """A trial's number, from 1, in the order in which the sweep's trials were started by any process."""
    return [other.trial_id for other in trials].index(trial.trial_id) + 1


_monitor: SweepMonitor | None = None


@contextlib.contextmanager
def monitored(sweep: Sweep, parent: RunHandle, writer: RunWriter) -> Iterator[SweepMonitor]:
    """Context manager. Makes a monitor of the sweep the one that `MonitorCallback` reports to, and closes it."""
    global _monitor  # noqa: PLW0603 - see MonitorCallback
    _monitor = SweepMonitor(sweep, parent, writer)
    try:
        yield _monitor
    finally:
        _monitor.close()
        _monitor = None


def end_trial_runs(sweep: Sweep, parent: RunHandle, rows: Sequence[Row]) -> None:
    """Ends the trials' runs of a sweep that has ended, in case the server was away when the trials did."""
    if not parent.run_id:
        return
    monitor = SweepMonitor(sweep, parent, RunWriter(OFF))
    for row in rows:
        values = {dimension.key: row[dimension.key] for dimension in sweep.dimensions}
        monitor.end_run(row["trial"], values, row, failed=row["outcome"] == "failed")
    monitor.close()


class MonitorCallback(Callback):
    """Passes Tune's events to the monitor of this process.

    Tune pickles its callbacks, and a restored experiment has the old ones, whichever are passed. So this one has no
    state, and looks up its monitor in this module.
    """

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if _monitor is not None:
            _monitor.show_validation(trial, trials, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _monitor is not None:
            _monitor.trial_ended(trial, trials, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        if _monitor is not None:
            _monitor.trial_ended(trial, trials, failed=True)
