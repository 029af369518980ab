"""The plot of an experiment: figures by number of steps, or by darkness."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.config.experiments import ExperimentConfig, exposure_name
from pipelines.reporting import Row, encode_figure

PANELS = {
    "psnr": "PSNR raw (dB)",
    "psnr_gt_mean": "PSNR GT-mean (dB)",
    "ssim": "SSIM raw",
    "sharpness": "sharpness (ground truth: 1)",
}
STYLES = {"teacher": ("tab:gray", "--"), "refined": ("tab:blue", "-"), "unrefined": ("tab:orange", "-")}


def plot_experiment(config: ExperimentConfig, rows: Sequence[Row]) -> bytes:
    """PNG bytes of the table of an experiment (`over_seeds`)."""
    return plot_darkness(config, rows) if config.experiment == "darkness" else plot_steps(rows)


def plot_steps(rows: Sequence[Row]) -> bytes:
    """A panel for each figure, a line for each method; bars are one standard deviation over the seeds."""
    figure = Figure(figsize=(4 * len(PANELS), 3.6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for method, (color, line) in STYLES.items():
            members = sorted((row for row in rows if row["method"] == method), key=lambda row: row["steps"])
            if not members:
                continue
            spread = [row["psnr_spread"] or 0.0 for row in members] if key == "psnr" else None
            steps, values = [row["steps"] for row in members], [row.get(key, math.nan) for row in members]
            axes.errorbar(steps, values, spread, color=color, linestyle=line, marker="o", capsize=3, label=method)
        mark_steps(axes, sorted({row["steps"] for row in rows if row["method"] in STYLES}))
        axes.set_ylabel(label)
    axes.legend()
    return encode_figure(figure)


def mark_steps(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.set_xlabel("steps")


def plot_darkness(config: ExperimentConfig, rows: Sequence[Row]) -> bytes:
    """A panel for each noise; students as lines, the teacher at as many steps dashed in the same colour."""
    figure = Figure(figsize=(5.5 * len(config.full_wells), 4.2), layout="constrained")
    found = {(row["pairs"], row["method"], row["steps"]): row["psnr"] for row in rows}
    student = next(method for _, method, _ in found if method in STYLES and method != "teacher")
    steps = sorted({count for _, method, count in found if method == student}, reverse=True)
    panels = figure.subplots(1, len(config.full_wells), sharey=True, squeeze=False)[0]
    for axes, full_well in zip(panels, config.full_wells, strict=True):
        names = {stops: exposure_name(stops, full_well) for stops in sorted(config.stops)}
        for number, count in enumerate(steps):
            for method, line in ((student, "-"), ("teacher", "--")):
                values = [found[name, method, count] for name in names.values()]
                label = f"{'student' if method == student else method}, {count} steps"
                axes.plot(list(names), values, line, marker="o", color=f"C{number}", label=label)
        axes.plot(list(names), [found[name, "input", 0] for name in names.values()], ":", color="0.4", label="input")
        axes.set(title=f"white at {full_well:g} electrons", xlabel="stops darker", ylabel=PANELS["psnr"])
    panels[-1].legend(fontsize="small")
    return encode_figure(figure)
