"""The command line of every job: preset, TOML file, flags, help, and errors for people."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import Job, Sources, as_flags, flatten, main, parse, take_sources
from pipelines.config import experiments, jobs, presets, serving, use
from pipelines.config.experiments import ExperimentConfig
from pipelines.config.jobs import DistillConfig, IngestConfig, PrecomputeConfig, TuneConfig
from pipelines.config.serving import ServeConfig
from pipelines.config.teacher import TeacherConfig
from pipelines.config.use import EnhanceConfig, EvaluateConfig
from pipelines.reporting import Report

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    (
        thing
        for module in (jobs, use, serving, experiments)
        for thing in vars(module).values()
        if isinstance(thing, type) and is_dataclass(thing) and thing.__module__ == module.__name__
    ),
    key=lambda thing: thing.__name__,
)
TEACHER_FLAGS = ("--pairs", "p", "--output", "o")
DISTILL_FLAGS = ("--cache", "c", "--teacher", "t", "--output", "o")
SWEPT_FLAGS = ("--distill.cache", "c", "--distill.teacher", "t", "--distill.pairs", "p")
# Each job's config, and the flags that it cannot do without.
JOBS: dict[str, tuple[type, tuple[str, ...]]] = {
    "ingest": (IngestConfig, ("--source", "s", "--output", "o")),
    "train_teacher": (TeacherConfig, TEACHER_FLAGS),
    "precompute": (PrecomputeConfig, ("--pairs", "p", "--teacher", "t", "--output", "o")),
    "distill": (DistillConfig, DISTILL_FLAGS),
    "tune": (TuneConfig, (*SWEPT_FLAGS, "--distill.output", "o", "--output", "o")),
    "experiments": (ExperimentConfig, (*SWEPT_FLAGS, "--output", "o")),
    "evaluate": (EvaluateConfig, ("--pairs", "p", "--output", "o")),
    "enhance": (EnhanceConfig, ("--source", "s", "--output", "o", "--weights", "w")),
    "serve": (ServeConfig, ("--weights", "w")),
}


def job(name: str, config_class: type) -> Job[Any]:
    """A job that would show its config's class."""

    def show(config: object) -> Report:
        return Report(title=type(config).__name__)

    return Job(name, config_class, show, show)


def teacher_config(tmp_path: Path, toml: str = "", *flags: str, preset: str = "") -> TeacherConfig:
    path = tmp_path / "job.toml"
    path.write_text(toml)
    sources = Sources(preset=preset, config=str(path) if toml else "")
    return parse(job("train_teacher", TeacherConfig), sources, [*TEACHER_FLAGS, *flags])


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    preset = presets.PRESETS["train_teacher"]["demo"]
    toml = "crop = 32\n[optim]\nsteps = 5\nbatch-size = 3\n[film]\nchannels = [8, 8]"
    result = teacher_config(tmp_path, toml, "--optim.steps", "7", preset="demo")
    assert result.optim.steps == 7  # all three set it
    assert result.crop == 32 and result.film.channels == (8, 8)  # the file and the preset set these
    assert result.optim.batch_size == 3  # the file alone
    assert result.optim.learning_rate == preset["optim.learning_rate"]  # the preset alone
    assert result.optim.grad_clip == 1.0  # nobody


def test_lists_replace_each_other(tmp_path: Path) -> None:
    toml = "[film]\nchannels = [8, 8]"
    result = teacher_config(tmp_path, toml, "--film.channels", "8", "16", "8", preset="demo")
    assert result.film.channels == (8, 16, 8)


def test_switches_go_both_ways(tmp_path: Path) -> None:
    assert teacher_config(tmp_path).tracking.enabled
    assert not teacher_config(tmp_path, "[tracking]\nenabled = false").tracking.enabled
    assert teacher_config(tmp_path, "[tracking]\nenabled = false", "--tracking.enabled").tracking.enabled
    assert not teacher_config(tmp_path, "[tracking]\nenabled = true", "--tracking.no-enabled").tracking.enabled


@pytest.mark.parametrize("stages", ["stages = [8, 4]", 'stages = "8,4"'])
def test_stages_in_a_file(tmp_path: Path, stages: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"{stages}\nrefine_weight = 0\n[loss]\npixel = 2")
    result = parse(job("distill", DistillConfig), Sources(config=str(path)), DISTILL_FLAGS)
    assert result.stages == (8, 4)
    assert (result.refine_weight, result.loss.pixel) == (0.0, 2.0)


def test_stages_on_the_command_line() -> None:
    assert parse(job("distill", DistillConfig), Sources(), [*DISTILL_FLAGS, "--stages", "4,2"]).stages == (4, 2)
    assert parse(job("distill", DistillConfig), Sources(), [*DISTILL_FLAGS, "--stages", "4"]).stages == (4,)


def test_a_sweep_holds_a_whole_distillation() -> None:
    config_class, flags = JOBS["tune"]
    result = parse(job("tune", config_class), Sources(), [*flags, "--distill.optim.steps", "9"])
    assert result.distill.optim.steps == 9 and result.output.endswith("/o")


def test_several_weights_to_judge() -> None:
    flags = ["--pairs", "p", "--output", "o", "--weights", "teacher:16=a", "student:2=b", "--seeds", "0,1"]
    result = parse(job("evaluate", EvaluateConfig), Sources(), flags)
    assert [text.partition("=")[0] for text in result.weights] == ["teacher:16", "student:2"]
    assert all(text.endswith(url) for text, url in zip(result.weights, ("/a", "/b"), strict=True))  # absolute
    assert result.seeds == (0, 1)


def test_settings_become_flags() -> None:
    tree = {"crop": 8, "unet": {"channel_mults": [1, 2]}, "tracking": {"enabled": False}, "asha": True}
    words = list(as_flags(dict(flatten(tree))))
    assert words == ["--crop", "8", "--unet.channel-mults", "1", "2", "--tracking.no-enabled", "--asha"]


def test_the_sources_are_taken_out_of_the_flags() -> None:
    sources, rest = take_sources(["--preset", "demo", "--crop", "32", "--dry-run", "--config=a.toml", "--help"])
    assert sources == Sources(preset="demo", config="a.toml", dry_run=True)
    assert rest == ["--crop", "32", "--help"]


@pytest.mark.parametrize(
    ("name", "preset"), [(name, preset) for name, of_job in presets.PRESETS.items() for preset in of_job]
)
def test_every_preset_makes_a_config(name: str, preset: str) -> None:
    config_class, flags = JOBS[name]
    assert isinstance(parse(job(name, config_class), Sources(preset=preset), flags), config_class)


@pytest.mark.parametrize("config_class", CONFIGS, ids=lambda thing: thing.__name__)
def test_help_shows_every_flag_and_ends_well(config_class: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(job("job", config_class), ["--help"])
    shown = capsys.readouterr().out
    assert not stop.value.code
    assert str(config_class.__doc__).rstrip(".") in " ".join(shown.split()) and "--dry-run" in shown
    for field in fields(config_class):
        assert f"--{field.name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nosuch", "1"], "Unrecognized options: --nosuch"),
        (["--optim.step", "1"], "Unrecognized options: --optim.step, 1 Perhaps you meant: --optim.steps"),
        (["--optim.steps", "0"], "steps is 0, but must be at least 1"),
        (["--optim.steps", "many"], "invalid literal for int() with base 10: 'many'"),
        (["--crop", "33"], "crop is 33, but must be a positive multiple of the network's 16"),
        (["--optim.rate-shape", "round"], "Expected one of ('constant', 'cosine', 'linear')"),
        (["--unet.base-channels", "30"], "base_channels is 30, but must be even and a multiple of norm_groups (32)"),
        (["--preset", "nosuch"], "preset 'nosuch' is unknown to train_teacher; it has: demo, lol-cpu, lol, paper"),
        (["--config", "nosuch.toml"], "nosuch.toml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(job("train_teacher", TeacherConfig), [*TEACHER_FLAGS, *argv])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(job("train_teacher", TeacherConfig), ["--pairs", "p"])
    assert stop.value.code == 2 and "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("crop =", r"job\.toml is not valid TOML \(.*at end of document.*\); fix that line"),
        ("nosuch = 1", r"Unrecognized options: --nosuch"),
        ("[optim]\nstep = 1", r"Unrecognized options: --optim\.step"),
        ("[optim]\nsteps = 1.5", r"invalid literal for int\(\) with base 10: '1\.5'"),
        ("crop = true", r"crop"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        teacher_config(tmp_path, toml)
    assert "\n" not in str(error.value)


def test_a_job_run_by_its_path_says_so_without_a_traceback() -> None:
    command = [sys.executable, "jobs/train_teacher.py", *TEACHER_FLAGS, "--nosuch", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "--nosuch" in done.stderr and "Traceback" not in done.stderr
