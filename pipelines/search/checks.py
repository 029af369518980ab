"""What a sweep refuses: before anything is spent, when it goes on, and when it was cut short."""

import itertools
import json
from collections.abc import Sequence

import ray
from ray.tune import Result
from ray.tune.result import DONE
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from pipelines import storage
from pipelines.config.jobs import TuneConfig
from pipelines.search.space import describe, with_values
from pipelines.search.sweep import Sweep
from pipelines.training import distillation
from pipelines.training.loop import check_workers
from pipelines.training.stream import Stream

MOST_CORNERS = 4096


def check(sweep: Sweep) -> Stream:
    """Refuses what could not work before anything is spent; returns what every trial reads."""
    base = sweep.config.distill
    assert sweep.objective.terms and sweep.first_points is not None
    distillation.check_inputs(base)
    check_corners(sweep)
    return distillation.make_stream(base)


def check_corners(sweep: Sweep) -> None:
    """Refuses limits and choices that a distillation refuses together; each alone was looked at before.

    Raises:
        ValueError: naming the first such values.
    """
    corners = itertools.product(*(dimension.values for dimension in sweep.dimensions))
    for corner in itertools.islice(corners, MOST_CORNERS):
        values = {dimension.key: value for dimension, value in zip(sweep.dimensions, corner, strict=True)}
        try:
            config = with_values(sweep.config.distill, values)
            check_workers(config.optim, config.compute)
        except ValueError as error:
            raise ValueError(f"the space has values that do not go together ({describe([values])}): {error}") from None


def check_asha(config: TuneConfig) -> None:
    """ASHA's stopped trials give their resources back only where Ray's state API, part of its dashboard, answers."""
    if not config.asha:
        return
    try:
        list_actors(address=ray.get_runtime_context().gcs_address, limit=1)
    except (RayStateApiException, ConnectionError):
        raise ValueError(
            "asha is on, but this Ray cluster has no dashboard, without which stopped trials never free their CPUs; "
            "start it with: ray start --head --include-dashboard=true; or use --no-asha"
        ) from None


def restorable(path: str) -> bool:
    """Whether Tune has begun trials that it can go on with; it would begin anew, without a word, where it cannot read.

    Raises:
        ValueError: if its state is damaged.
    """
    names = [name for name in storage.list_files(path) if name.startswith("experiment_state-")]
    if not names:
        return False
    state = storage.join(path, max(names))
    try:
        return bool(json.loads(storage.read_bytes(state))["trial_data"])
    except (ValueError, KeyError):
        raise ValueError(
            f"{state} is damaged, so the sweep cannot go on; delete it to go on from an older state beside it, or use "
            "another --output"
        ) from None


def check_whole(sweep: Sweep, results: Sequence[Result]) -> None:
    """Refuses to take an interrupted sweep for one that has ended.

    Raises:
        ValueError: if some trials have neither ended nor failed, or were never begun.
    """
    ended = sum(bool(result.error) or not result.metrics or bool(result.metrics.get(DONE)) for result in results)
    if ended < sweep.num_trials:
        raise ValueError(
            f"the sweep was interrupted when {ended} of {sweep.num_trials} trials had ended; run the same command "
            "again to go on"
        )
