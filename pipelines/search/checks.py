"""Validation of a sweep: before anything is spent, when it is resumed, and when its trials have ended."""

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
from pipelines.search.space import describe_points, with_values
from pipelines.search.sweep import Sweep
from pipelines.training import distillation
from pipelines.training.loop import check_workers
from pipelines.training.stream import Stream

MAX_CORNERS = 4096


def check_sweep(sweep: Sweep) -> Stream:
    """Validates a sweep before anything is spent.

    Returns:
        The records that every trial reads.

    Raises:
        ValueError: if the space, points, metric or inputs cannot be used.
    """
    base = sweep.config.distill
    assert sweep.objective.terms and sweep.first_points is not None
    distillation.check_inputs(base)
    check_corners(sweep)
    return distillation.make_stream(base)


def check_corners(sweep: Sweep) -> None:
    """Validates up to 4096 combinations of limits and choices; `parse_space` has validated each value by itself.

    Raises:
        ValueError: with the first combination that a distillation rejects.
    """
    corners = itertools.product(*(dimension.values for dimension in sweep.dimensions))
    for corner in itertools.islice(corners, MAX_CORNERS):
        values = {dimension.key: value for dimension, value in zip(sweep.dimensions, corner, strict=True)}
        try:
            config = with_values(sweep.config.distill, values)
            check_workers(config.optim, config.compute)
        except ValueError as error:
            raise ValueError(
                f"the space has values that do not go together ({describe_points([values])}): {error}"
            ) from None


def check_asha(config: TuneConfig) -> None:
    """Checks that ASHA's stopped trials can release their CPUs, for which Ray Train asks Ray's state API.

    Raises:
        ValueError: if ASHA is on and the state API, which is part of Ray's dashboard, does not answer.
    """
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
    """Whether the Tune experiment at `path` has trials to resume.

    Raises:
        ValueError: if its newest state is damaged, in which case Tune would silently start a new experiment.
    """
    names = [name for name in storage.list_files(path) if name.startswith("experiment_state-")]
    if not names:
        return False
    state = storage.join(path, max(names))
    try:
        return bool(json.loads(storage.read_bytes(state))["trial_data"])
    except (ValueError, KeyError):
        raise ValueError(
            f"{state} is damaged, so the sweep cannot resume; delete it to resume from an older state beside it, or "
            "use another --output"
        ) from None


def check_complete(sweep: Sweep, results: Sequence[Result]) -> None:
    """Checks that every trial of a sweep has ended or failed.

    Raises:
        ValueError: if the sweep was interrupted: some trials are still running, or were never started.
    """
    ended = sum(bool(result.error) or not result.metrics or bool(result.metrics.get(DONE)) for result in results)
    if ended < sweep.num_trials:
        raise ValueError(
            f"the sweep was interrupted when {ended} of {sweep.num_trials} trials had ended; run the same command "
            "again to resume"
        )
