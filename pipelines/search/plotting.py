"""Plots of a sweep, as PNG."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipelines.reporting import Row, encode_figure
from pipelines.search.space import Dimension
from pipelines.search.sweep import OBJECTIVE, Sweep

CURVES = "learning_curves.png"
FINISHED, STOPPED, BEST = "tab:blue", "0.6", "tab:red"
Curve = tuple[Sequence[int], Sequence[float]]


def draw(sweep: Sweep, rows: Sequence[Row], curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """The objective against each searched setting, and every trial's objective by step; PNG bytes by file name.

    Args:
        sweep: what was searched.
        rows: the table of trials, the best first.
        curves: (steps, objective) by trial.
    """
    metric = sweep.config.metric
    plots = {f"{dimension.key}.png": draw_dimension(rows, dimension, metric) for dimension in sweep.dimensions}
    return {**plots, CURVES: draw_curves(sweep, rows, curves)}


def draw_dimension(rows: Sequence[Row], dimension: Dimension, metric: str) -> bytes:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=dimension.key, ylabel=f"{metric} (validation)")
    known = [row for row in rows if row[OBJECTIVE] is not None]
    for label, color, face, group in (
        ("whole trials", FINISHED, FINISHED, [row for row in known if row["outcome"] == "finished"]),
        ("stopped early, at their last step", STOPPED, "none", [row for row in known if row["outcome"] != "finished"]),
    ):
        positions = [place(dimension, row[dimension.key]) for row in group]
        if group:
            values = [row[OBJECTIVE] for row in group]
            axes.scatter(positions, values, edgecolors=color, facecolors=face, label=label)
    best = [place(dimension, rows[0][dimension.key])], [rows[0][OBJECTIVE]]
    axes.scatter(*best, marker="*", s=160, color=BEST, label="best")
    if dimension.kind == "loguniform":
        axes.set_xscale("log")
    if dimension.kind == "choice":
        axes.set_xticks(range(len(dimension.values)), [str(value) for value in dimension.values])
    axes.legend()
    return encode_figure(figure)


def place(dimension: Dimension, value: float) -> float:
    """Where a value stands on the horizontal axis; choices stand side by side."""
    return dimension.values.index(value) if dimension.kind == "choice" else value


def draw_curves(sweep: Sweep, rows: Sequence[Row], curves: Mapping[str, Curve]) -> bytes:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step, over all stages", ylabel=f"{sweep.config.metric} (validation)")
    for row in reversed(rows):
        color = BEST if row is rows[0] else FINISHED if row["outcome"] == "finished" else STOPPED
        steps, values = curves[row["trial"]]
        label = f"{row['trial']} (best)" if row is rows[0] else None
        axes.plot(steps, values, marker=".", color=color, linewidth=2 if row is rows[0] else 1, label=label)
    for end in range(sweep.steps_per_stage, sweep.num_steps, sweep.steps_per_stage):
        axes.axvline(end, color=STOPPED, linestyle=":", linewidth=1)
    axes.set_xlim(0, sweep.num_steps * 1.02)
    axes.legend()
    return encode_figure(figure)
