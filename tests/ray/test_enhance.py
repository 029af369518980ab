"""jobs/enhance.py end to end: kinds of files, tiles, reruns, a kill, bad files and bad arguments."""

import itertools
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from jobs.cli import main
from jobs.enhance import JOB
from pipelines import storage
from pipelines.config.parts import ComputeConfig
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.enhance import enhance, plan_enhance
from pipelines.enhancement.enhancer import Enhancer
from pipelines.enhancement.photo_files import read_photograph
from pipelines.enhancement.work import Work
from pipelines.weights import load_network, load_student, save_network
from reddit_core.networks.sr3_unet import UNet
from reddit_core.sampler import enhance as enhance_untiled
from reddit_core.weights import NetworkFile
from tests.ray.processes import JobProcess, started, wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")
ONE_THREAD = ComputeConfig(threads=1)
TOO_LONG = "n" * 250 + ".webp"  # as long as a name can be, and so too long for that of a comparison
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def folder(tmp_path: Path, photographs: dict[str, NDArray[np.uint8]]) -> Path:
    """Seven files: four photographs of different kinds, one below a folder, a broken one, and a note."""
    root = tmp_path / "photographs"
    (root / "deeper").mkdir(parents=True)
    low = {name: image // 6 for name, image in photographs.items()}
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Somebody", 6
    Image.fromarray(low["astronaut"]).save(root / "phone.jpg", exif=exif, icc_profile=PROFILE, quality=95)
    alpha = np.arange(96 * 128, dtype=np.uint8).reshape(96, 128)
    Image.fromarray(np.dstack([low["chelsea"], alpha])).save(root / "deeper" / "cat.PNG")
    Image.fromarray(low["coffee"]).save(root / "cup.webp", lossless=True)
    deep = Image.fromarray(low["rocket"][:, :, 0].astype(np.uint16) * 257)
    deep.save(root / "deep.png")
    (root / "broken.jpg").write_bytes((root / "phone.jpg").read_bytes()[:500])
    (root / "notes.txt").write_text("no photograph")
    return root


def counts(report_rows: object) -> dict[str, int]:
    assert isinstance(report_rows, (list, tuple))
    return {row["photographs"]: row["count"] for row in report_rows}


def odd_names(folder: Path, elsewhere: Path) -> list[str]:
    """Puts copies of a photograph under names that are hard to handle into a folder; returns them."""
    names = ["album/linked.webp", "é" * 108 + ".webp", "photo[edited]::#1?.webp", os.fsdecode(b"caf\xe9.webp")]
    (elsewhere / "deeper").mkdir(parents=True)
    (folder / "album").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    shutil.copyfile(folder / "cup.webp", folder / TOO_LONG)
    (folder / ".thumbnails").mkdir()
    for name in (*names, ".thumbnails/x.png"):
        shutil.copyfile(folder / "cup.webp", folder / name)
    return names


def test_a_folder_of_all_kinds(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = EnhanceConfig(
        source=str(folder), output=str(output), weights=weights, tile=96, overlap=16, compare=True, compute=ONE_THREAD
    )
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    odd = odd_names(folder, tmp_path / "elsewhere")
    report = enhance(config)
    assert counts(report.rows) == {"enhanced now": 4 + len(odd), "done before": 0, "left out": 3}
    assert all((output / name).exists() for name in odd)
    assert "cannot hold a file of this name (File name too long); rename it" in report.facts[f"left out: {TOO_LONG}"]
    assert report.facts["images that programs made, left out"] == "1, such as .thumbnails/x.png"
    assert "FileNotFoundError" in report.facts["left out: gone.jpg"]
    assert "truncated" in report.facts["left out: broken.jpg"].lower()
    assert report.facts["steps"] == 2
    assert not (output / "broken.jpg").exists()
    phone = Image.open(output / "phone.jpg")
    assert (phone.format, phone.size) == ("JPEG", (96, 128))
    assert phone.getexif().get(0x0112, 1) == 1
    assert phone.getexif()[0x010F] == "Somebody"
    assert phone.info["icc_profile"] == PROFILE
    cat = np.asarray(Image.open(output / "deeper" / "cat.PNG"))
    np.testing.assert_array_equal(cat[:, :, 3], np.asarray(Image.open(folder / "deeper" / "cat.PNG"))[:, :, 3])
    deep = read_photograph((output / "deep.png").read_bytes())
    assert (deep.pixels.dtype, deep.grey) == (np.dtype(np.uint16), True)
    comparison = Image.open(output / "compare" / "phone.jpg.jpg")
    assert comparison.size == (192, 128)

    first = {name: (output / name).read_bytes() for name in ("phone.jpg", "cup.webp", "deeper/cat.PNG", "deep.png")}
    (output / "cup.webp").unlink()
    again = enhance(config)
    assert counts(again.rows) == {"enhanced now": 1, "done before": 3 + len(odd), "left out": 3}
    assert {name: (output / name).read_bytes() for name in first} == first
    assert json.loads((output / "report.json").read_text())["steps"] == 2


def test_one_photograph_is_what_the_sampler_makes_of_it(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = EnhanceConfig(
        source=str(folder / "cup.webp"), output=str(output), weights=weights, steps=4, seed=3, compute=ONE_THREAD
    )
    enhance(config)
    low = np.asarray(Image.open(folder / "cup.webp"))
    image = torch.tensor(low).permute(2, 0, 1)[None].float() / 127.5 - 1
    file = load_network(weights)
    expected = (enhance_untiled(file.network, image, file.schedule, 4, 3)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    result = np.asarray(Image.open(output / "cup.webp"))
    assert np.abs(result - expected).max() <= 0.51
    assert enhance(config).title.startswith("Already done")
    with pytest.raises(ValueError, match="seed is 3, asked for 4"):
        enhance(EnhanceConfig(source=str(folder), output=str(output), weights=weights, steps=4, seed=4))
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert enhance(replace(config, source=str(moved / "cup.webp"))).title.startswith("Already done")
    others = shutil.copytree(folder, tmp_path / "others")
    (others / "cup.webp").write_bytes((others / "phone.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"results of other photographs than .*others: cup\.webp is not the one"):
        enhance(replace(config, source=str(others)))
    (others / "cup.webp").unlink()
    with pytest.raises(ValueError, match=r"there is none of those that was enhanced; give another output"):
        enhance(replace(config, source=str(others)))


def test_the_plan_writes_nothing(folder: Path, weights: str, tmp_path: Path) -> None:
    report = plan_enhance(
        EnhanceConfig(source=str(folder), output=str(tmp_path / "out"), weights=weights, compute=ONE_THREAD)
    )
    assert counts(report.rows) == {"to enhance": 4, "done before": 0, "left out": 1}
    assert report.facts["megapixels"] == pytest.approx(4 * 96 * 128 / 1e6)
    assert report.facts["not read: notes.txt"] == ".txt is no format that is read"
    assert not (tmp_path / "out").exists()


def test_a_killed_job_is_finished_by_a_rerun(
    photographs: dict[str, NDArray[np.uint8]], weights: str, tmp_path: Path
) -> None:
    source, output, held = tmp_path / "source", tmp_path / "out", ("03.png", "07.png")
    source.mkdir()
    low = photographs["rocket"][:48, :64] // 6
    for number in range(12):
        Image.fromarray(np.roll(low, number, axis=1)).save(source / f"{number:02d}.png")
    config = EnhanceConfig(source=str(source), output=str(output), weights=weights, compute=ONE_THREAD)
    student = load_student(weights)
    expected = {path.name: student.enhance(np.asarray(Image.open(path))) for path in source.iterdir()}
    # Named pipes that nobody writes to hold the job at two photographs, while it finishes the others.
    kept = {source / name: (source / name).read_bytes() for name in held}
    for path in kept:
        path.unlink()
        os.mkfifo(path)
    flags = f"--source {source} --output {output} --weights {weights} --compute.threads 1"
    job = JobProcess("enhance", flags, tmp_path / "log", ray.get_runtime_context().gcs_address)
    job.kill_when(lambda: len(finished(output)) == 12 - len(held))
    done = finished(output)
    assert not set(held) & set(done)
    written = {name: (output / name).stat().st_mtime_ns for name in done}
    for path, data in kept.items():
        path.unlink()
        path.write_bytes(data)
    assert counts(enhance(config).rows) == {"enhanced now": 2, "done before": 10, "left out": 0}
    assert {name: (output / name).stat().st_mtime_ns for name in done} == written
    assert len(finished(output)) == 12
    for name in finished(output):
        np.testing.assert_array_equal(np.asarray(Image.open(output / name)), expected[name], name)


def test_a_killed_actor_is_restarted_and_ray_does_not_say_that_it_could_not_be(
    photographs: dict[str, NDArray[np.uint8]], weights: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "twenty", tmp_path / "out"
    source.mkdir()
    for number in range(20):
        Image.fromarray(np.roll(photographs["rocket"] // 6, number, axis=1)).save(source / f"{number:02d}.png")

    def kill() -> None:
        wait_until(lambda: len(finished(output)) >= 2)
        (actor,) = started("MapWorker(MapBatches(Enhancer))")
        actor.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    enhance(EnhanceConfig(source=str(source), output=str(output), weights=weights, steps=8, compute=ONE_THREAD))
    assert not killer.is_alive(), "the kill came too late"
    assert len(finished(output)) == 20
    captured = capfd.readouterr()
    assert "constructor arguments in the object store" not in captured.out + captured.err


@pytest.mark.slow
def test_an_actor_that_is_killed_again_and_again_is_one_line(weights: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    os.mkfifo(source / "huge.png")  # nobody writes to it, so the call lasts until the actor is killed
    ended = threading.Event()

    def kill() -> None:
        pauses = itertools.count(5, 5)  # so that in the end every actor has begun its call, on a busy machine too
        while not ended.wait(next(pauses)):
            for actor in started("MapWorker(MapBatches(Enhancer))"):
                actor.kill()

    threading.Thread(target=kill, daemon=True).start()
    message = r"^a process of enhancement was killed again and again[^\n]*; what was enhanced is kept; give it[^\n]*$"
    with pytest.raises(OSError, match=message):
        enhance(EnhanceConfig(source=str(source), output=str(tmp_path / "out"), weights=weights, compute=ONE_THREAD))
    ended.set()


def finished(output: Path) -> list[str]:
    """The results that are there; nothing may be there in part."""
    return [name for name in storage.list_files(str(output)) if name.endswith(".png") and not name.startswith(".")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source": "nowhere"}, "there is nothing at"),
        ({"source": "empty"}, "holds no photograph"),
        ({"output": "photographs/out"}, "lies in the folder of the photographs"),
        ({"weights": "photographs/notes.txt"}, "cannot be used"),
        ({"weights": "nowhere.safetensors"}, "there are no weights at"),
        ({"steps": "3"}, "does not divide the schedule's 512 steps"),
        ({"overlap": "300"}, "overlap is 300"),
        ({"tile": "8"}, "tile is 8"),
        ({"stepz": "2"}, "stepz"),
        ({"compute.gpu": "yes"}, "need a GPU each, but Ray has 0"),
    ],
)
def test_bad_arguments_get_one_line(
    folder: Path,
    weights: str,
    tmp_path: Path,
    changed: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("nothing")
    flags = {"source": str(folder), "output": str(tmp_path / "out"), "weights": weights}
    places = ("source", "output", "weights")
    flags |= {name: str(tmp_path / value) if name in places else value for name, value in changed.items()}
    with pytest.raises(SystemExit) as stop:
        main(JOB, [word for name, value in flags.items() for word in (f"--{name}", value)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_no_job_made_is_not_taken_for_done(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(folder, output)
    config = EnhanceConfig(source=str(folder), output=str(output), weights=weights, compute=ONE_THREAD)
    with pytest.raises(ValueError, match="and no job made it"):
        enhance(config)


def test_weights_that_do_not_say_their_steps(folder: Path, tmp_path: Path, tiny_unet: UNet) -> None:
    url = str(tmp_path / "teacher.safetensors")
    save_network(url, NetworkFile(network=tiny_unet))
    with pytest.raises(ValueError, match="add --steps"):
        enhance(EnhanceConfig(source=str(folder), output=str(tmp_path / "out"), weights=url))


def test_what_is_of_one_file_leaves_out_that_one(
    weights: str, tmp_path: Path, tiny_unet: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here links in a circle, and a network whose result is not finite."""
    read: Any = storage.read_bytes  # with what its decorator added
    monkeypatch.setattr(read.retry, "sleep", lambda _: None)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").symlink_to(source / "a.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(source / "b.png")
    next(tiny_unet.parameters()).data.fill_(float("nan"))
    save_network(weights, NetworkFile(network=tiny_unet))
    config = EnhanceConfig(source=str(source), output=str(tmp_path / "out"), weights=weights, compute=ONE_THREAD)
    work = Work(str(source), (), ("a.png", "b.png"), {}, 2, {})
    enhancer = Enhancer(config, work, "cpu")
    circle, black = (enhancer({"id": np.array([i])}) for i in range(2))
    assert "it cannot be read (OSError: Too many levels of symbolic links)" in circle["reason"]
    assert "holds values that are not finite" in black["reason"][0]
    assert circle["of_storage"] == black["of_storage"] == [""]


def test_storage_that_fails_in_an_actor_is_one_clear_error(folder: Path, weights: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "compare").write_text("a file where a folder should be")
    config = EnhanceConfig(
        source=str(folder / "cup.webp"), output=str(output), weights=weights, compare=True, compute=ONE_THREAD
    )
    with pytest.raises(OSError, match=r"^storage failed at cup\.webp \(.*\); what was enhanced is kept; fix it"):
        enhance(config)


def test_not_one_readable_photograph_fails(weights: str, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    (source / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"none of the 1 photographs can be enhanced; a\.png: it is not an image"):
        enhance(EnhanceConfig(source=str(source), output=str(tmp_path / "out"), weights=weights, compute=ONE_THREAD))
