"""A short measurement, from which `ingest --dry-run` estimates bytes and time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.config.jobs import IngestConfig
from pipelines.pairs.layouts import PairSource
from pipelines.pairs.ray_tasks import Darkening, Surveyed, darken, fetch, pair_row, survey_one

MOST_MEASURED_PAIRS = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a few pairs, spread over the source, took on one CPU; broken ones are not counted."""

    num_pairs: int
    bytes_per_pair: float
    seconds_per_pair: float


def measure(config: IngestConfig, pairs: Sequence[PairSource]) -> Sample:
    """Reads and checks up to eight pairs as the job would."""
    step = max(1, len(pairs) // MOST_MEASURED_PAIRS)
    darkening = Darkening(config=config.degrade, seed=config.degrade_seed) if config.layout == "degrade" else None
    sizes, seconds = [], 0.0
    for pair in pairs[::step][:MOST_MEASURED_PAIRS]:
        started = time.perf_counter()
        normal = fetch(pair.normal)
        member = survey_one(Surveyed(pair_id=pair.pair_id, low=pair.low, normal=pair.normal), normal)
        try:
            row = pair_row(member, darken(member, normal, darkening) if darkening else fetch(pair.low), normal)
        except ValueError:
            continue
        seconds += time.perf_counter() - started
        sizes.append(len(row["low"]) + len(row["normal"]))
    count = max(1, len(sizes))
    return Sample(num_pairs=len(sizes), bytes_per_pair=sum(sizes) / count, seconds_per_pair=seconds / count)
