"""Results of an evaluation, read from its parts: figures by method, their intervals, and the cases to show."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines import storage
from pipelines.evaluation.judge import part_url
from pipelines.evaluation.methods import TRUTH, Method
from pipelines.evaluation.report_page import Case
from pipelines.reporting import Row
from reddit_core.metrics import GIVEN

HEAD = ("pair_id", "method", "steps", "seed")
COSTS = ("seconds_per_megapixel", "peak_mb_per_megapixel")
CASES_PER_END = 3
# Each adds several pictures to the report, which is one file.
MOST_CASES = 12
BOOTSTRAP_DRAWS = 2000
READERS = 16


@dataclass(frozen=True)
class Results:
    """All measurements: one row for each image, method and seed."""

    methods: Sequence[Method]
    rows: Sequence[Row]

    def of(self, method: Method) -> list[Row]:
        return [row for row in self.rows if (row["method"], row["steps"]) == (method.name, method.steps)]

    def per_image(self, method: Method, name: str) -> dict[str, float]:
        """Mean over seeds of a metric by pair ID, in the order of the images, without images that lack it."""
        values: dict[str, list[float]] = {}
        for row in self.of(method):
            if row[name] is not None:
                values.setdefault(row["pair_id"], []).append(row[name])
        return {pair_id: float(np.mean(seeds)) for pair_id, seeds in values.items()}

    @property
    def left_out(self) -> dict[str, int]:
        """By metric: for how many images it does not exist, whatever is done to them."""
        any_method, names = self.methods[0], [name for name in self.figures if name not in GIVEN]
        num_images = len(self.per_image(any_method, "psnr"))
        counts = {name: num_images - len(self.per_image(any_method, name)) for name in names}
        return {name: count for name, count in counts.items() if count}

    @property
    def figures(self) -> list[str]:
        """Names of the metrics, without costs."""
        return [name for name in self.rows[0] if name not in (*HEAD, *COSTS)]


def read_rows(parts: str, num_images: int) -> list[Row]:
    """The rows of all parts in the order of the images; up to `READERS` parts are read at a time."""
    with ThreadPoolExecutor(READERS) as pool:
        return [row for rows in pool.map(lambda i: read_part(parts, i)["rows"], range(num_images)) for row in rows]


def read_part(parts: str, index: int) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(storage.read_bytes(part_url(parts, index)))
    return part


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the values that could be measured; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def intervals(results: Results) -> list[Row]:
    """95 % intervals of the means, `LOW to HIGH`, one row for each method."""
    rows: list[Row] = []
    for method in results.methods:
        values = {name: list(results.per_image(method, name).values()) for name in results.figures}
        texts = {name: interval(measured) for name, measured in values.items()}
        rows.append({"method": method.name, "steps": method.steps, **texts})
    return rows


def interval(values: Sequence[float]) -> str | None:
    """`LOW to HIGH`; `one image` for a single value, None for no value."""
    if len(values) < 2:
        return "one image" if values else None
    low, high = bootstrap(values)
    return f"{low:.4g} to {high:.4g}"


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled images (seeded; Efron 1979)."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, size=len(values)).mean() for _ in range(BOOTSTRAP_DRAWS)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def find_cases(parts: str, results: Results) -> list[Case]:
    """The worst and best images of each network by raw PSNR, each image once, worst ones first.

    If there are more than `MOST_CASES`, the worst and the best image of every network have priority over second ones.
    """
    found: list[tuple[int, str, str]] = []
    for end in ("worst", "best"):
        for method in results.methods:
            if not method.url:
                continue
            ranked = sorted((value, pair_id) for pair_id, value in results.per_image(method, "psnr").items())
            chosen = ranked[:CASES_PER_END] if end == "worst" else ranked[::-1][:CASES_PER_END]
            for place, (value, pair_id) in enumerate(chosen, start=1):
                found.append((place, pair_id, f"{end} {place} of {method.key} ({value:.2f} dB)"))
    by_place = sorted(found, key=lambda case: case[0])
    shown = list(dict.fromkeys(pair_id for _, pair_id, _ in by_place))[:MOST_CASES]
    reasons: dict[str, list[str]] = {}
    for _, pair_id, reason in found:
        if pair_id in shown:
            reasons.setdefault(pair_id, []).append(reason)
    order = list(results.per_image(results.methods[0], "psnr"))
    return [make_case(pair_id, why, read_part(parts, order.index(pair_id))) for pair_id, why in reasons.items()]


def make_case(pair_id: str, reasons: Sequence[str], part: Mapping[str, Any]) -> Case:
    figures: dict[str, Row] = {}
    for row in part["rows"]:
        figures.setdefault(f"{row['method']}:{row['steps']}", row)
    pictures = {key: data for key, data in part["pictures"].items() if key != TRUTH}
    return Case(
        pair_id=pair_id, reasons=reasons, figures=figures, pictures={**pictures, TRUTH: part["pictures"][TRUTH]}
    )
