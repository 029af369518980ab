"""The report of an evaluation as one HTML file that needs nothing else: tables, best and worst cases, pictures."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipelines.reporting import Row, format_value

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .25em .7em; border-bottom: 1px solid #ddd; }
th { text-align: left; cursor: pointer; } .number { text-align: right; font-variant-numeric: tabular-nums; }
small { color: #777; } .case { border-top: 2px solid #ddd; margin-top: 2em; }
.grid { display: flex; flex-wrap: wrap; gap: 8px; } .grid figure { margin: 0; width: 210px; }
.grid img { width: 100%; } figcaption { font-size: 12px; }
.slider { position: relative; width: fit-content; max-width: 100%; } .slider img { display: block; max-width: 100%; }
.slider img + img { position: absolute; inset: 0; } .slider input { width: 100%; }
"""
SCRIPT = """
for (const box of document.querySelectorAll('.case')) {
  const [left, right] = box.querySelectorAll('.slider img'), range = box.querySelector('input');
  const [first, second] = box.querySelectorAll('select'), pictures = box.querySelectorAll('.grid img');
  const show = () => {
    left.src = pictures[first.value].src; right.src = pictures[second.value].src;
    right.style.clipPath = `inset(0 0 0 ${range.value}%)`;
  };
  for (const control of [range, first, second]) control.addEventListener('input', show);
  show();
}
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], column = head.cellIndex, rows = [...body.rows];
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
  const sign = head.dataset.sign = -(head.dataset.sign ?? -1);
  rows.sort((a, b) => sign * order(a, b)).forEach(row => body.append(row));
});
"""
LABELS = {
    "psnr": "PSNR raw, dB",
    "psnr_gt_mean": "PSNR GT-mean, dB",
    "ssim": "SSIM raw",
    "ssim_gt_mean": "SSIM GT-mean",
    "sharpness": "sharpness raw",
    "sharpness_gt_mean": "sharpness GT-mean",
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


def render(title: str, rows: Sequence[Row], facts: Row, intervals: Sequence[Row], cases: Iterable[Case]) -> str:
    """The whole page.

    Args:
        title: of the page.
        rows: one for each method, equal-keyed.
        facts: what else there is to say, as a list.
        intervals: 95 % intervals of the means, one row for each method.
        cases: images to show.
    """
    lines = "".join(f"<li>{escape(name)}: {escape(as_text(value))}</li>" for name, value in facts.items())
    shown = "".join(case_section(case) for case in cases)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{table(rows)}"
        "<p><small>Raw figures, and GT-mean ones after matching the ground truth's mean brightness, which flatters. "
        f"Click a heading to sort.</small></p><h2>95 % intervals of the means</h2>{table(intervals)}"
        f"<h2>How this was measured</h2><ul>{lines}</ul><h2>Best and worst cases</h2>{shown}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {as_text(inner)}" for name, inner in value.items())
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else format_value(value)


def label(name: str) -> str:
    if name.startswith("lpips_"):
        plain = name.removesuffix("_gt_mean")
        return f"{plain} {'raw' if name == plain else 'GT-mean'}"
    return LABELS.get(name, name)


def table(rows: Sequence[Row]) -> str:
    head = "".join(
        f"<th{'' if isinstance(value, str) else ' class=number'}>{escape(label(name))}</th>"
        for name, value in rows[0].items()
    )
    body = "".join(f"<tr>{''.join(cell(value) for value in row.values())}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any) -> str:
    """Intervals are sorted by where they begin."""
    if isinstance(value, str):
        interval = INTERVAL.fullmatch(value)
        sort_key = f' data-value="{escape(interval[1])}"' if interval else ""
        return f"<td{sort_key}>{escape(value)}</td>"
    sort_key = "" if value is None else f' data-value="{value}"'
    return f'<td class="number"{sort_key}>{escape(format_value(value))}</td>'


def case_section(case: Case) -> str:
    """A slider between two pictures of the reader's choice, and all of them side by side."""
    names = list(case.pictures)
    source = "data:image/jpeg;base64,"
    figures = "".join(
        f'<figure><img src="{source}{data}" alt="{escape(name)}"><figcaption>{escape(name)}{caption(case, name)}'
        "</figcaption></figure>"
        for name, data in case.pictures.items()
    )
    choices = [
        "".join(
            f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(name)}</option>'
            for i, name in enumerate(names)
        )
        for chosen in (0, len(names) - 2)
    ]
    return (
        f'<section class="case"><h3>{escape(case.pair_id)}</h3><p>{escape("; ".join(case.reasons))}</p>'
        f"<p><select>{choices[0]}</select> | <select>{choices[1]}</select></p>"
        '<div class="slider"><img alt="left"><img alt="right">'
        f'<input type="range" min="0" max="100" value="50"></div><div class="grid">{figures}</div></section>'
    )


def caption(case: Case, name: str) -> str:
    row = case.figures.get(name)
    if row is None:
        return ""
    return (
        f"<br>PSNR {row['psnr']:.2f} dB ({row['psnr_gt_mean']:.2f} GT-mean)<br>SSIM {row['ssim']:.3f}, "
        f"sharpness {format_value(row['sharpness'])}"
    )
