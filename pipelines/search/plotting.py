"""Plots of a sweep, as PNG."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipelines.reporting import Row, encode_figure
from pipelines.search.space import Dimension
from pipelines.search.sweep import OBJECTIVE, Sweep

CURVES = "learning_curves.png"
FINISHED, STOPPED, BEST = "tab:blue", "0.6", "tab:red"
Curve = tuple[Sequence[int], Sequence[float]]


def plot_sweep(sweep: Sweep, rows: Sequence[Row], curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """Plots the objective against each searched setting, and the learning curves of all trials.

    Args:
        sweep: the sweep.
        rows: the table of trials, the best first.
        curves: (global steps, objective) by trial.

    Returns:
        PNG bytes by file name.
    """
    metric = sweep.config.metric
    plots = {f"{dimension.key}.png": plot_dimension(rows, dimension, metric) for dimension in sweep.dimensions}
    return {**plots, CURVES: plot_learning_curves(sweep, rows, curves)}


def plot_dimension(rows: Sequence[Row], dimension: Dimension, metric: str) -> bytes:
    """A scatter plot of the objective against one searched setting."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=dimension.key, ylabel=f"{metric} (validation)")
    known = [row for row in rows if row[OBJECTIVE] is not None]
    for label, color, face, group in (
        ("whole trials", FINISHED, FINISHED, [row for row in known if row["outcome"] == "finished"]),
        ("stopped early, at their last step", STOPPED, "none", [row for row in known if row["outcome"] != "finished"]),
    ):
        positions = [axis_position(dimension, row[dimension.key]) for row in group]
        if group:
            values = [row[OBJECTIVE] for row in group]
            axes.scatter(positions, values, edgecolors=color, facecolors=face, label=label)
    best = [axis_position(dimension, rows[0][dimension.key])], [rows[0][OBJECTIVE]]
    axes.scatter(*best, marker="*", s=160, color=BEST, label="best")
    if dimension.kind == "loguniform":
        axes.set_xscale("log")
    if dimension.kind == "choice":
        axes.set_xticks(range(len(dimension.values)), [str(value) for value in dimension.values])
    axes.legend()
    return encode_figure(figure)


def axis_position(dimension: Dimension, value: float) -> float:
    """The horizontal coordinate of a value: the value itself, or the index of a choice."""
    return dimension.values.index(value) if dimension.kind == "choice" else value


def plot_learning_curves(sweep: Sweep, rows: Sequence[Row], curves: Mapping[str, Curve]) -> bytes:
    """The objective of every trial by global step, the best trial in red, stages divided by dotted lines."""
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
