"""jobs/evaluate.py end to end: figures, report, reruns, an interruption, and bad arguments."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from jobs.cli import main
from jobs.evaluate import JOB
from pipelines import shards, storage
from pipelines.config.parts import ComputeConfig, StudentTrackingConfig
from pipelines.config.use import EvaluateConfig
from pipelines.evaluation.evaluate import evaluate, plan_evaluate
from pipelines.evaluation.judge import MOST_PSNR, ImageRef, Judge, part_url
from pipelines.evaluation.methods import Method
from pipelines.evaluation.results import Results, bootstrap, find_cases
from pipelines.images import encode_png
from pipelines.pairs.ray_tasks import tone_columns
from pipelines.shards import PAIR_SCHEMA, Manifest
from pipelines.weights import save_network
from reddit_core.brightness import luma_moments_of_pixels
from reddit_core.networks.sr3_unet import UNet
from reddit_core.weights import NetworkFile

NUM_PAIRS = 4


@pytest.fixture
def pairs(tmp_path: Path, photographs: dict[str, NDArray[np.uint8]]) -> str:
    """A validation split of four pairs in two shards; in the last one the input is the ground truth."""
    import pyarrow as pa  # noqa: PLC0415 - next to its only use

    url = str(tmp_path / "pairs")
    rows: list[dict[str, Any]] = []
    for name, normal in photographs.items():
        crop = normal[:48, :64]
        low = crop if len(rows) == NUM_PAIRS - 1 else crop // 5
        images = {"low": encode_png(low), "normal": encode_png(crop), "width": 64, "height": 48}
        rows.append({"pair_id": name, **images, **tone_columns(low, *luma_moments_of_pixels(crop))})
    tables = [
        pa.Table.from_pylist([{**row, "sha256": "0"} for row in part], PAIR_SCHEMA) for part in (rows[:2], rows[2:])
    ]
    entries = tuple(
        shards.write_shard(url, f"validation-{i}", table, split="validation") for i, table in enumerate(tables)
    )
    shards.write_manifest(url, Manifest(kind="pairs", spec={"source": "test"}, shards=entries))
    return url


@pytest.fixture
def config(tmp_path: Path, pairs: str, weights: str) -> EvaluateConfig:
    return EvaluateConfig(
        pairs=pairs,
        output=str(tmp_path / "report"),
        weights=(f"student:2={weights}", f"student:1={weights}"),
        shown=("input:0", "student:2"),
        seeds=(0, 1),
        compute=ComputeConfig(threads=1),
        tracking=StudentTrackingConfig(enabled=False),
    )


@pytest.mark.usefixtures("ray_cluster")
def test_the_whole_report(config: EvaluateConfig, photographs: dict[str, NDArray[np.uint8]]) -> None:
    report = evaluate(config)
    output = Path(config.output)
    document = json.loads((output / "report.json").read_text())
    assert [(row["method"], row["steps"]) for row in document["rows"]] == [
        ("input", 0),
        ("clahe", 0),
        ("student", 2),
        ("student", 1),
    ]
    keys = {"psnr", "psnr_gt_mean", "ssim", "ssim_gt_mean", "sharpness", "sharpness_gt_mean", "seconds_per_megapixel"}
    assert all(keys <= set(row) for row in document["rows"])
    assert document["rows"][2]["seconds_per_megapixel"] > 0
    assert "rounded to 8 bits" in document["protocol"]
    assert "11x11" in document["protocol"]
    assert document["intervals_95"][2]["psnr"].count(" to ") == 1

    table = list(csv.DictReader(io.StringIO((output / "images.csv").read_text())))
    assert len(table) == NUM_PAIRS * (2 + 2 * 2)
    names = list(photographs)
    normal = photographs[names[0]][:48, :64]
    first = next(row for row in table if row["pair_id"] == names[0] and row["method"] == "input")
    assert float(first["psnr"]) == pytest.approx(peak_signal_noise_ratio(normal, normal // 5), abs=1e-3)
    last = next(row for row in table if row["pair_id"] == names[-1] and row["method"] == "input")
    assert float(last["psnr"]) == MOST_PSNR
    assert float(last["ssim"]) == pytest.approx(1)
    assert document["rows"][0]["psnr"] == pytest.approx(
        np.mean([float(row["psnr"]) for row in table if row["method"] == "input"])
    )

    page = (output / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "worst 1 of student:2" in page
    assert all(f"{label}</th>" in page for label in ("PSNR raw, dB", "PSNR GT-mean, dB", "SSIM raw", "SSIM GT-mean"))
    assert all(words in page for words in ("11x11 Gaussian window", "95 % intervals", "threads 1", 'type="range"'))
    assert all(f"{name}</h3>" in page for name in names)
    assert Image.open(output / "before_after.png").width == 3 * 300
    assert not storage.list_files(str(output / "parts"))

    again = evaluate(config)
    assert again.title.startswith("Already evaluated")
    assert [dict(row) for row in again.rows] == [dict(row) for row in report.rows]


@pytest.mark.usefixtures("ray_cluster")
def test_one_image_of_secret_weights_in_mlflow_too(config: EvaluateConfig, tiny_unet: UNet, tmp_path: Path) -> None:
    """Neither the report nor MLflow shows credentials, and there is no interval of one image."""
    url, uri = str(tmp_path / "w.safetensors?X-Amz-Signature=hush-4711"), f"sqlite:///{tmp_path}/mlflow.db"
    save_network(url, NetworkFile(network=tiny_unet))
    tracked = StudentTrackingConfig(uri=uri, experiment="judged")
    rows = evaluate(replace(config, weights=(f"student:2={url}",), seeds=(0,), limit=1, tracking=tracked)).rows
    page, document = ((Path(config.output) / name).read_text() for name in ("report.html", "report.json"))
    assert "w.safetensors?X-Amz-Signature=***" in page
    assert "hush-4711" not in page + document
    assert {row["psnr"] for row in json.loads(document)["intervals_95"]} == {"one image"}

    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("judged").experiment_id])
    assert (run.info.status, run.data.tags["reddit.job"]) == ("FINISHED", "evaluate")
    assert "hush-4711" not in str(run.to_dictionary())
    for row in rows:
        points = client.get_metric_history(run.info.run_id, f"evaluation/{row['method']}/psnr_gt_mean")
        assert {point.step: point.value for point in points}[row["steps"]] == pytest.approx(row["psnr_gt_mean"])
    files = {file.path for file in client.list_artifacts(run.info.run_id, "evaluation")}
    assert {"evaluation/report.html", "evaluation/images.csv"} <= files


@pytest.mark.usefixtures("ray_cluster")
def test_what_an_interrupted_evaluation_judged_is_not_judged_again(
    config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.evaluation import evaluate as evaluation  # noqa: PLC0415 - the module itself, to stop it half-way

    def half(config: EvaluateConfig, images: list[ImageRef], parts: str) -> None:
        judge = Judge(config, images, parts, "cpu")
        for index in range(2):
            judge({"id": np.array([index])})
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "judge_missing", half)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config)
    monkeypatch.undo()
    [folder] = (Path(config.output) / "parts").iterdir()
    kept = sorted(folder.iterdir())
    assert len(kept) == 2
    marked = json.loads(kept[0].read_text())
    marked["rows"][0]["sharpness"] = 7.5
    kept[0].write_text(json.dumps(marked))
    evaluate(config)
    table = csv.DictReader(io.StringIO((Path(config.output) / "images.csv").read_text()))
    rows = list(table)
    assert float(rows[0]["sharpness"]) == 7.5
    assert len({row["pair_id"] for row in rows}) == NUM_PAIRS


@pytest.mark.usefixtures("ray_cluster")
def test_storage_that_fails_in_an_actor_is_one_clear_error(config: EvaluateConfig) -> None:
    output = Path(config.output)
    output.mkdir()
    (output / "parts").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"^storage failed during evaluation \(.*\); what was judged is kept; fix it"):
        evaluate(replace(config, limit=1))


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_shard_is_one_clear_error(config: EvaluateConfig, pairs: str) -> None:
    path = Path(pairs) / "shards" / "validation-0.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        evaluate(config)


def test_a_perfect_and_a_constant_image(config: EvaluateConfig) -> None:
    judge = Judge(config, [], "", "cpu")
    normal = np.random.default_rng(0).integers(1, 256, (32, 40, 3), dtype=np.uint8)
    perfect = judge.measure(normal, normal)
    assert perfect["psnr"] == perfect["psnr_gt_mean"] == MOST_PSNR
    assert perfect["ssim"] == pytest.approx(1)
    assert perfect["sharpness"] == pytest.approx(1)
    constant = judge.measure(np.full_like(normal, 128), normal)
    expected = 10 * np.log10(255**2 / np.mean((normal.astype(float) - 128) ** 2))
    assert constant["psnr"] == pytest.approx(expected, abs=1e-3)
    assert constant["sharpness"] == pytest.approx(0, abs=1e-6)
    assert constant["ssim"] < 0.1


def test_lpips_is_measured_over_each_backbone(tmp_path: Path, config: EvaluateConfig) -> None:
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    torch.manual_seed(0)
    state = {f"features.{i}.weight": torch.randn(o, c, k, k) * 0.01 for i, (o, c, k) in shapes.items()}
    state |= {f"features.{i}.bias": torch.zeros(o) for i, (o, _, _) in shapes.items()}
    torch.save(state, tmp_path / "alex.pth")
    judge = Judge(EvaluateConfig(pairs=config.pairs, output="o", lpips=(str(tmp_path / "alex.pth"),)), [], "", "cpu")
    normal = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert judge.measure(normal, normal)["lpips_alex_uniform"] == pytest.approx(0, abs=1e-6)
    assert judge.measure(255 - normal, normal)["lpips_alex_uniform"] > 0


def test_intervals_hold_the_mean_and_resample_images_not_seeds() -> None:
    values = list(np.random.default_rng(1).normal(20, 2, 200))
    low, high = bootstrap(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(len(values)), rel=0.15)
    rows = [
        {"pair_id": pair, "method": "student", "steps": 2, "seed": seed, "psnr": psnr}
        for pair, seed, psnr in (("a", 0, 10.0), ("a", 1, 14.0), ("b", 0, 20.0), ("b", 1, 20.0))
    ]
    method = Method("student", 2, "u")
    assert Results([method], rows).per_image(method, "psnr") == {"a": 12.0, "b": 20.0}


def test_cases_are_the_worst_and_the_best(tmp_path: Path) -> None:
    method, parts = Method("student", 2, "u"), str(tmp_path)
    rows = []
    for index, psnr in enumerate((20.0, 10.0, 30.0, 15.0, 25.0, 12.0, 28.0, 18.0)):
        row = {"pair_id": f"p{index}", "method": "student", "steps": 2, "seed": 0, "psnr": psnr}
        rows.append(row)
        part = {"rows": [row], "pictures": {"student:2": "", "ground truth": ""}, "shown": []}
        storage.write_bytes(part_url(parts, index), json.dumps(part).encode())
    cases = find_cases(parts, Results([method], rows))
    assert [case.pair_id for case in cases] == ["p1", "p5", "p3", "p2", "p6", "p4"]
    assert cases[0].reasons == ["worst 1 of student:2 (10.00 dB)"]
    assert list(cases[0].pictures) == ["student:2", "ground truth"]


def test_the_plan_counts_what_would_be_run(config: EvaluateConfig) -> None:
    report = plan_evaluate(config)
    assert report.facts["network calls"] == NUM_PAIRS * 2 * 3
    assert not Path(config.output).exists()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--weights", "student=x.safetensors"), "must be NAME:STEPS=URL"),
        (("--weights", "clahe:2=WEIGHTS"), "clahe is a row already"),
        (("--weights", "student:2=WEIGHTS", "--compute.gpu", "yes"), "need a GPU each, but Ray has 0"),
        (("--lpips", "WEIGHTS"), "the LPIPS backbone is neither VGG16 nor AlexNet"),
        (("--weights", "student:2=nowhere.safetensors"), "there are no weights at"),
        (("--weights", "student:3=WEIGHTS"), "does not divide the schedule's 512 steps"),
        (("--weights", "student:2=WEIGHTS", "student:2=WEIGHTS"), "holds student:2 twice"),
        (("--weights", "student:2=WEIGHTS", "--shown", "teacher:4"), "shown holds 'teacher:4'"),
        (("--split", "test"), "split test holds no pairs"),
        (("--seeds", ""), "seeds is empty"),
        (("--pairs", "NOWHERE"), "holds no finished pairs"),
    ],
)
def test_bad_arguments_get_one_line(
    config: EvaluateConfig, weights: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("WEIGHTS", weights).replace("NOWHERE", str(Path(weights).parent)) for word in flags]
    with pytest.raises(SystemExit) as stop:
        main(JOB, ["--pairs", config.pairs, "--output", config.output, "--tracking.no-enabled", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
