"""The text of a sweep's space, points and metric, and what is refused."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
from optuna.samplers import RandomSampler, TPESampler
from ray.tune import Result

from jobs.cli import Job, Sources, parse
from pipelines.config.jobs import DistillConfig, TuneConfig
from pipelines.config.parts import OptimConfig, TrainingComputeConfig
from pipelines.reporting import Report, save
from pipelines.search.checks import check_complete, check_corners, restorable
from pipelines.search.outcome import BEST, is_done, to_toml
from pipelines.search.space import (
    Dimension,
    base_point,
    default_space,
    get_value,
    grid_points,
    parse_objective,
    parse_points,
    parse_space,
    with_values,
)
from pipelines.search.sweep import Sweep
from pipelines.search.tune import make_search, num_concurrent
from pipelines.training.distillation import distill, plan_distill
from reddit_core.losses import LossWeights

BASE = DistillConfig(cache="/c", teacher="/t", output="/o", pairs="/p", refine_weight=0.4, optim=OptimConfig(steps=100))


def test_reads_every_kind_of_dimension() -> None:
    texts = (
        "refine_weight=uniform(0,1)",
        " optim.learning_rate = loguniform(1e-5, 1e-3) ",
        "optim.batch_size=choice(8,16)",
        "optim.compile=choice(true,false)",
        "reflectance.range=choice(unit,released)",
    )
    assert parse_space(texts, BASE) == (
        Dimension("refine_weight", "uniform", (0.0, 1.0)),
        Dimension("optim.learning_rate", "loguniform", (1e-5, 1e-3)),
        Dimension("optim.batch_size", "choice", (8, 16)),
        Dimension("optim.compile", "choice", (True, False)),
        Dimension("reflectance.range", "choice", ("unit", "released")),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refine_weight", "must be KEY=uniform"),
        ("refine_weight=normal(0,1)", "must be KEY=uniform"),
        ("refine_weight=uniform(0)", "two rising limits"),
        ("refine_weight=uniform(1,0)", "two rising limits"),
        ("refine_weight=uniform(a,1)", "is 'a', but must be a number"),
        ("refine_weight=uniform(0,2)", r"refine_weight is 2.0, but must be in \[0, 1\]"),
        ("optim.learning_rate=loguniform(0,1)", "a logarithm needs > 0"),
        ("optim.batch_size=uniform(1,8)", "two rising limits of a fractional setting"),
        ("optim.batch_size=choice(1.5)", "must be an integer"),
        ("optim.lr=uniform(0,1)", "optim.lr is no setting .* searchable are .*optim.learning_rate"),
        ("optim=choice(1)", "optim is no setting"),
        ("stages=choice(4)", "stages cannot be searched, since all trials share it"),
        ("segment.crop=choice(64)", "segment.crop cannot be searched"),
        ("loss.perceptual=uniform(0,1)", "no backbone is given"),
        ("reflectance.range=choice(unit,other)", "must be one of unit, released"),
        ("optim.compile=choice(yes)", "must be true or false"),
        ("refine_weight=choice(0.1,0.10)", "has 0.1 and 0.10, which are one value; give each value once"),
        ("optim.batch-size=choice(8,16,8)", "has 8 and 8, which are one value"),
        ("optim.learning_rate=uniform(1e-4,inf)", "a range that no number can be drawn from"),
        ("optim.learning_rate=loguniform(1e-4,inf)", "a range that no number can be drawn from"),
        ("loss.pixel=uniform(0,nan)", "loss.pixel is 'nan', but must be a number"),
        ("loss.pixel=choice(nan)", "loss.pixel is 'nan', but must be a number"),
        ("refine_weight=uniform(0.5,0.5)", "two rising limits"),
    ],
)
def test_refuses_what_cannot_be_searched(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space([text], BASE)


def test_names_may_have_hyphens_as_in_their_flags() -> None:
    texts = ["optim.learning-rate=loguniform(1e-5,1e-3)", "refine-weight=choice(0,0.5)"]
    space = parse_space(texts, BASE)
    assert [dimension.key for dimension in space] == ["optim.learning_rate", "refine_weight"]
    points = parse_points(["optim.learning-rate=1e-4,refine-weight=0.5"], space, BASE)
    assert points == [{"optim.learning_rate": 1e-4, "refine_weight": 0.5}]


def test_refuses_a_key_that_is_named_twice() -> None:
    with pytest.raises(ValueError, match="refine_weight 2 times"):
        parse_space(["refine_weight=uniform(0,1)", "refine_weight=choice(0,1)"], BASE)


def test_the_default_space_has_the_perceptual_weight_only_with_a_backbone() -> None:
    keys = [dimension.key for dimension in parse_space(default_space(BASE), BASE)]
    assert keys == ["refine_weight", "loss.pixel", "optim.learning_rate"]
    backbone = with_values(BASE, {"lpips": ("/vgg",)})
    assert "loss.perceptual" in [dimension.key for dimension in parse_space(default_space(backbone), backbone)]


def test_values_go_where_their_keys_say() -> None:
    config = with_values(BASE, {"refine_weight": 0.8, "loss.pixel": 0.5, "optim.learning_rate": 3e-4})
    assert (config.refine_weight, config.loss.pixel, config.optim.learning_rate) == (0.8, 0.5, 3e-4)
    assert config.optim.steps == 100
    assert get_value(config, "loss.pixel") == 0.5


def test_points_fill_up_with_the_own_values() -> None:
    space = parse_space(["refine_weight=uniform(0,1)", "loss.pixel=uniform(0,2)"], BASE)
    assert base_point(space, BASE) == [{"refine_weight": 0.4, "loss.pixel": 1.0}]
    assert parse_points(["refine_weight=0.8", "loss.pixel=0,refine_weight=0"], space, BASE) == [
        {"refine_weight": 0.8, "loss.pixel": 1.0},
        {"refine_weight": 0.0, "loss.pixel": 0.0},
    ]
    assert base_point(parse_space(["loss.pixel=uniform(0,0.5)"], BASE), BASE) == []
    with pytest.raises(ValueError, match=r"loss.pixel=3.0, but the space is uniform\(0.0,2.0\)"):
        parse_points(["loss.pixel=3"], space, BASE)
    with pytest.raises(ValueError, match="must be KEY=VALUE"):
        parse_points(["optim.weight_decay=1"], space, BASE)


def test_a_grid_is_every_combination() -> None:
    space = parse_space(["refine_weight=choice(0,0.4)", "loss.pixel=choice(0,1,2)"], BASE)
    points = grid_points(space)
    assert len(points) == 6
    assert {"refine_weight": 0.4, "loss.pixel": 2.0} in points
    with pytest.raises(ValueError, match="search grid needs lists"):
        grid_points(parse_space(["refine_weight=uniform(0,1)"], BASE))


def test_objectives_are_sums_of_metrics() -> None:
    metrics = {"psnr": 20.0, "ssim": 0.5, "sharpness": 0.75}
    assert parse_objective("psnr")(metrics) == 20
    assert parse_objective("psnr + 10*ssim - 4*sharpness_gap")(metrics) == 24
    assert parse_objective("-psnr")(metrics) == -20
    assert parse_objective("1e-1*psnr+ssim")(metrics) == 2.5
    assert parse_objective("psnr_gt_mean")(metrics) is None
    assert parse_objective("psnr")({"psnr": float("nan")}) is None


def test_lpips_counts_where_a_backbone_is_given() -> None:
    sweep = Sweep(TuneConfig(distill=replace(BASE, lpips=("/vgg.pth",)), output="/s", metric="psnr-10*lpips"))
    assert sweep.objective({"psnr": 20.0, "lpips": 0.5}) == 15
    assert sweep.objective({"psnr": 20.0}) is None
    with pytest.raises(ValueError, match=r"lpips needs --distill\.lpips URL"):
        assert Sweep(TuneConfig(distill=BASE, output="/s", metric="psnr-10*lpips")).objective


@pytest.mark.parametrize("text", ["", "loss", "psnr ssim", "psnr +", "2*", "psnr*2", "psnr - 3*lpips"])
def test_refuses_what_is_no_objective(text: str) -> None:
    with pytest.raises(ValueError, match="must be a validation metric or a sum"):
        parse_objective(text)


def test_a_sweep_says_what_follows_from_its_config() -> None:
    config = TuneConfig(distill=BASE, output="/s", trials=3, trial_steps=40, points=("refine_weight=0.8",))
    sweep = Sweep(config)
    assert sweep.num_steps == 3 * 40
    assert [point["refine_weight"] for point in sweep.first_points] == [0.4, 0.8]
    trial = sweep.trial_config("abc", {"refine_weight": 0.1})
    assert (trial.output, trial.optim.steps, trial.refine_weight) == ("/s/trials/abc", 40, 0.1)
    assert sweep.full_config({"refine_weight": 0.1}).optim.steps == 100
    every = with_values(BASE, {"checkpoint.validate_every": 30})
    validated = Sweep(TuneConfig(distill=every, output="/s", trial_steps=40)).is_validated
    assert [step for step in range(1, 121) if validated(step)] == [30, 40, 70, 80, 110, 120]


def test_trials_need_something_to_be_compared_on() -> None:
    with pytest.raises(ValueError, match=r"give --distill\.pairs"):
        TuneConfig(distill=DistillConfig(cache="/c", teacher="/t", output="/o"), output="/s")


def test_the_best_configuration_is_a_config_file_of_distill(tmp_path) -> None:
    config = with_values(
        BASE, {"refine_weight": 0.123, "loss": LossWeights(pixel=0.5), "optim.grad_clip": float("inf")}
    )
    config = replace(config, compute=TrainingComputeConfig(workers=(1, 8)))
    path = tmp_path / "best.toml"
    # A sweep decides about the GPU once for all trials, but not for whoever uses its result.
    path.write_text(to_toml(replace(config, compute=replace(config.compute, gpu="no"))))
    assert "tracking" not in tomllib.loads(path.read_text())
    job = Job("distill", DistillConfig, plan_distill, distill)
    assert parse(job, Sources(config=str(path)), []) == config


def test_a_sweep_with_failed_trials_is_not_done(tmp_path) -> None:
    assert not is_done(str(tmp_path))
    (tmp_path / BEST).touch()
    rows = [{"trial": "a", "outcome": "finished"}, {"trial": "b", "outcome": "failed"}]
    save(Report(title="Trials", rows=rows, facts={}, url=str(tmp_path)))
    assert not is_done(str(tmp_path))
    save(Report(title="Trials", rows=[*rows[:1], {"trial": "b", "outcome": "stopped"}], facts={}, url=str(tmp_path)))
    assert is_done(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 1, "points": ("refine_weight=0.8",)}, "trials is 1, but 2 points are to be tried first"),
        ({"search": "grid", "space": ("refine_weight=choice(0,1)",), "points": ("refine_weight=0",)}, "points are for"),
    ],
)
def test_points_that_would_not_be_tried_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assert Sweep(replace(TuneConfig(distill=BASE, output="/s"), **changes)).first_points


def test_grace_without_asha_is_refused() -> None:
    with pytest.raises(ValueError, match="grace_steps is for asha"):
        TuneConfig(distill=BASE, output="/s", asha=False, grace_steps=5)


def test_values_that_do_not_go_together_are_refused() -> None:
    space = ("optim.batch_size=choice(1,8)", "optim.accumulate=choice(1,4)")
    with pytest.raises(
        ValueError, match=r"do not go together \(optim.batch_size=1, optim.accumulate=4\): batch_size is 1"
    ):
        check_corners(Sweep(TuneConfig(distill=BASE, output="/s", space=space)))


def test_a_sweep_resumes_only_from_a_state_that_can_be_read(tmp_path: Path) -> None:
    assert not restorable(str(tmp_path))
    older, newer = (tmp_path / f"experiment_state-2026-11-25_0{hour}-00-00.json" for hour in (1, 2))
    older.write_text('{"trial_data": []}')
    assert not restorable(str(tmp_path))
    newer.write_text('{"trial_data": [["{}", "{}"]]}')
    assert restorable(str(tmp_path))
    newer.write_text('{"trial_data": [["{}"')
    with pytest.raises(ValueError, match=r"02-00-00.json is damaged.*delete it to resume from an older state"):
        restorable(str(tmp_path))


def test_an_interrupted_sweep_is_not_taken_for_a_whole_one() -> None:
    sweep = Sweep(TuneConfig(distill=BASE, output="/s", trials=3))
    ended, failed = result_of({"done": True}), result_of(None, ValueError("why"))
    check_complete(sweep, [ended, ended, failed])
    for left in ([], [result_of({"done": False, "step": 3})]):
        with pytest.raises(ValueError, match="interrupted when 2 of 3 trials had ended"):
            check_complete(sweep, [ended, failed, *left])


def result_of(metrics: dict[str, object] | None, error: Exception | None = None) -> Result:
    return Result(metrics=metrics, checkpoint=None, error=error, path=None)


def test_a_sweep_has_as_many_trials_at_a_time_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TuneConfig(distill=replace(BASE, compute=TrainingComputeConfig(workers=2)), output="/s")
    for cpus, gpus, fits in ((9.5, 0, 4), (9.5, 5, 2), (2.4, 1, 1)):
        monkeypatch.setattr(ray, "cluster_resources", lambda cpus=cpus, gpus=gpus: {"CPU": cpus, "GPU": gpus})
        if (cpus, gpus) == (2.4, 1):  # a trial has two workers, which need a GPU each
            with pytest.raises(ValueError, match=r"a trial needs 2.35 CPUs .* lower distill.compute, add nodes"):
                num_concurrent(config)
            continue
        assert num_concurrent(config) == fits
    assert num_concurrent(replace(config, concurrent=7)) == 7


@pytest.mark.parametrize(("search", "sampler"), [("tpe", TPESampler), ("random", RandomSampler)])
def test_the_search_draws_as_it_was_asked_to(search: Literal["tpe", "random"], sampler: type) -> None:
    sweep = Sweep(TuneConfig(distill=BASE, output="/s", search=search, space=("refine_weight=uniform(0,1)",)))
    optuna_search = make_search(sweep)
    assert isinstance(optuna_search._sampler, sampler)
    assert optuna_search.suggest("first") == {"refine_weight": 0.4}  # the distillation's own value
    assert 0 <= optuna_search.suggest("second")["refine_weight"] <= 1
