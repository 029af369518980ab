"""The report of an evaluation as one self-contained HTML file: tables, best and worst cases, pictures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipelines.reporting import Row, format_value

TEMPLATE = "report.html.jinja"
LABELS = {
    "psnr": "PSNR raw, dB",
    "psnr_gt_mean": "PSNR GT-mean, dB",
    "psnr_moments": "PSNR after mean and deviation of luma, dB",
    "psnr_given": "PSNR given brightness, dB",
    "ssim": "SSIM raw",
    "ssim_gt_mean": "SSIM GT-mean",
    "ssim_given": "SSIM given brightness",
    "sharpness": "sharpness raw",
    "sharpness_gt_mean": "sharpness GT-mean",
    "sharpness_given": "sharpness given brightness",
    "seconds_per_megapixel": "seconds per megapixel",
    "peak_mb_per_megapixel": "peak MB per megapixel",
}
INTERVAL = re.compile(r"(\S+) to \S+")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image of the split, shown with the results of every method.

    Attributes:
        pair_id: which image.
        reasons: why it is shown, such as `worst PSNR of student:2`.
        figures: the image's own row of each method, by method.
        pictures: JPEG as base64 by method, the ground truth last.
    """

    pair_id: str
    reasons: Sequence[str]
    figures: Mapping[str, Row]
    pictures: Mapping[str, str]


@cache
def template() -> Template:
    """The page's template, which escapes every value."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"label": label, "text": as_text, "fixed": fixed, "sort_key": sort_key}
    return environment.get_template(TEMPLATE)


def render(title: str, rows: Sequence[Row], facts: Row, intervals: Sequence[Row], cases: Iterable[Case]) -> str:
    """The whole page.

    Args:
        title: title of the page.
        rows: one row for each method, with equal keys.
        facts: further facts, shown as a list.
        intervals: 95 % intervals of the means, one row for each method.
        cases: images to show.
    """
    return template().render(title=title, rows=rows, facts=facts, intervals=intervals, cases=list(cases)) + "\n"


def as_text(value: Any) -> str:
    """A value of a table or a fact; mappings and lists on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(inner)}" for name, inner in value.items())
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else format_value(value)


def fixed(value: float | None, digits: int) -> str:
    """A figure with so many digits after the point; `-` where it does not exist."""
    return "-" if value is None else f"{value:.{digits}f}"


def label(name: str) -> str:
    if name.startswith("lpips_"):
        plain = name.removesuffix("_gt_mean")
        return f"{plain} {'raw' if name == plain else 'GT-mean'}"
    return LABELS.get(name, name)


def sort_key(value: Any) -> Any:
    """The number by which a cell is sorted, None for its text; intervals are sorted by their lower end."""
    if isinstance(value, str):
        interval = INTERVAL.fullmatch(value)
        return interval[1] if interval else None
    return value
