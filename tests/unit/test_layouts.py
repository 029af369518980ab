"""Layouts: files made in the shape of each dataset, and the pairs that are found in them."""

from pathlib import Path

import fsspec
import pytest

from pipelines.config.jobs import IngestConfig
from pipelines.pairs.folder_layouts import FOLDER_LAYOUTS
from pipelines.pairs.layouts import list_pairs
from pipelines.pairs.matching import PairSource


def make(root: Path, *names: str) -> str:
    """Empty files; a layout never opens them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def listed(source: str, layout: str, **settings: str) -> dict[str, PairSource]:
    config = IngestConfig(output="unused", source=source, layout=layout, **settings)  # type: ignore[arg-type]
    return {pair.pair_id: pair for pair in list_pairs(config).pairs}


def sides(pair: PairSource, root: str) -> tuple[str, str]:
    return pair.low.removeprefix(root + "/"), pair.normal.removeprefix(root + "/")


def test_lolv1(tmp_path: Path) -> None:
    files = ["our485/low/2.png", "our485/high/2.webp", "our485/low/10.png", "our485/high/10.png"]
    root = make(
        tmp_path, *files, "eval15/low/1.png", "eval15/high/1.JPG", "our485/high/Thumbs.db", "our485/low/._2.png"
    )
    pairs = listed(root, "lolv1")
    assert list(pairs) == ["eval15/1", "our485/10", "our485/2"]
    assert sides(pairs["our485/2"], root) == ("our485/low/2.png", "our485/high/2.webp")
    assert {name: pair.split for name, pair in pairs.items()} == {"eval15/1": "test", "our485/10": "", "our485/2": ""}
    assert not any(pair.problem or pair.scene for pair in pairs.values())


@pytest.mark.parametrize(("low", "normal"), [("low00690", "normal00690"), ("00690", "00690")])
def test_lolv2_real(tmp_path: Path, low: str, normal: str) -> None:
    train = [f"Real_captured/Train/{side}/{side.lower()}00001.png" for side in ("Low", "Normal")]
    test = [f"Real_captured/Test/Low/{low}.png", f"Real_captured/Test/Normal/{normal}.png"]
    root = make(tmp_path, *train, *test, "Synthetic/Train/Low/r1.png", "Synthetic/Train/Normal/r1.png")
    pairs = listed(root, "lolv2-real")
    assert list(pairs) == ["Real_captured/Test/00690", "Real_captured/Train/00001"]
    assert sides(pairs["Real_captured/Train/00001"], root) == tuple(train)
    assert sides(pairs["Real_captured/Test/00690"], root) == tuple(test)
    assert [pair.split for pair in pairs.values()] == ["test", ""]


def test_lolv2_synthetic(tmp_path: Path) -> None:
    files = [f"Synthetic/{part}/{side}/r000da54ft.png" for part in ("Train", "Test") for side in ("Low", "Normal")]
    pairs = listed(make(tmp_path, *files), "lolv2-synthetic")
    assert list(pairs) == ["Synthetic/Test/r000da54ft", "Synthetic/Train/r000da54ft"]
    assert [pair.split for pair in pairs.values()] == ["test", ""]


def test_lsrw(tmp_path: Path) -> None:
    files = [
        f"{part}/{camera}/{side}/2001.jpg"
        for part in ("Training data", "Eval")
        for camera in ("Huawei", "Nikon")
        for side in ("low", "high")
    ]
    root = make(tmp_path, *files)
    pairs = listed(root, "lsrw")
    assert {name: pair.split for name, pair in pairs.items()} == {
        "Eval/Huawei/2001": "test",
        "Eval/Nikon/2001": "test",
        "Training data/Huawei/2001": "",
        "Training data/Nikon/2001": "",
    }
    assert sides(pairs["Training data/Nikon/2001"], root) == (
        "Training data/Nikon/low/2001.jpg",
        "Training data/Nikon/high/2001.jpg",
    )


def test_sid_shares_the_first_long_exposure_of_a_scene(tmp_path: Path) -> None:
    short = [
        "short_sid2/00001/00001_00_0.04s.npy",
        "short_sid2/00001/00001_01_0.1s.npy",
        "short_sid2/10003/10003_00_0.1s.npy",
    ]
    long = ["long_sid2/00001/00001_00_10s.npy", "long_sid2/00001/00001_01_10s.npy", "long_sid2/10003/10003_00_10s.npy"]
    root = make(tmp_path, *short, *long)
    pairs = listed(root, "sid")
    assert [sides(pair, root) for pair in pairs.values()] == [
        (short[0], long[0]),
        (short[1], long[0]),
        (short[2], long[2]),
    ]
    assert [pair.scene for pair in pairs.values()] == ["00001", "00001", "10003"]
    assert [pair.split for pair in pairs.values()] == ["", "", "test"]


@pytest.mark.parametrize("test_list", ["test_list.txt", "SMID_Long_np/text_list.txt"])
def test_smid_skips_half_frames_and_reads_the_test_list(tmp_path: Path, test_list: str) -> None:
    lows = [f"SMID_LQ_np/{scene}/{frame}.npy" for scene in ("0001", "0002") for frame in ("0001", "0002")]
    normals = ["SMID_Long_np/0001/0009.npy", "SMID_Long_np/0001/0001_half.npy", "SMID_Long_np/0002/0009.npy"]
    root = make(tmp_path, *lows, *normals, "SMID_Long_np/0001/raw.ARW")
    (tmp_path / test_list).write_text("0002\n")
    pairs = listed(root, "smid")
    assert [sides(pair, root) for pair in pairs.values()] == [
        (lows[0], normals[0]),
        (lows[1], normals[0]),
        (lows[2], normals[2]),
        (lows[3], normals[2]),
    ]
    assert [pair.split for pair in pairs.values()] == ["", "", "test", "test"]


def test_smid_without_its_test_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path, "SMID_LQ_np/0001/0001.npy", "SMID_Long_np/0001/0001.npy")
    assert [pair.split for pair in listed(root, "smid").values()] == [""]
    assert "no test_list.txt" in capsys.readouterr().err


def test_sdsd_keeps_a_video_and_its_second_take_together(tmp_path: Path) -> None:
    scenes = [
        "indoor_static_np/{}/pair1",
        "indoor_static_np/{}/pair1_2",
        "indoor_static_np/{}/pair2",
        "outdoor_static_np/{}/MVI_0898",
    ]
    files = [f"{scene.format(side)}/0001.npy" for scene in scenes for side in ("input", "GT")]
    pairs = listed(make(tmp_path, *files), "sdsd")
    assert [(pair.scene, pair.split) for pair in pairs.values()] == [
        ("indoor_static_np/pair1", "test"),
        ("indoor_static_np/pair1", "test"),
        ("indoor_static_np/pair2", ""),
        ("outdoor_static_np/MVI_0898", "test"),
    ]


def test_folders_pair_by_relative_path(tmp_path: Path) -> None:
    make(tmp_path, "dark/a.png", "dark/room/b.jpeg", "bright/a.tif", "bright/room/b.bmp")
    pairs = listed("", "folders", low=str(tmp_path / "dark"), normal=str(tmp_path / "bright"))
    assert [sides(pair, str(tmp_path)) for pair in pairs.values()] == [
        ("dark/a.png", "bright/a.tif"),
        ("dark/room/b.jpeg", "bright/room/b.bmp"),
    ]
    assert list(pairs) == ["a", "room/b"]


@pytest.mark.parametrize("pattern", [r"(\d{4})", r"(\d{4})|odd"])
def test_folders_pair_by_pattern_and_may_share_a_normal_image(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "dark/x_0007_a.png", "dark/x_0007_b.png", "dark/odd.png", "bright/gt-0007.png")
    pairs = listed("", "folders", low=str(tmp_path / "dark"), normal=str(tmp_path / "bright"), pattern=pattern)
    whole = [pair for pair in pairs.values() if not pair.problem]
    assert [sides(pair, str(tmp_path)) for pair in whole] == [
        ("dark/x_0007_a.png", "bright/gt-0007.png"),
        ("dark/x_0007_b.png", "bright/gt-0007.png"),
    ]
    assert "does not match the pattern" in pairs["dark/odd.png"].problem


@pytest.mark.parametrize(("pattern", "rule"), [("(", "no regular expression"), (r"\d+", "no group")])
def test_a_bad_pattern_is_refused(tmp_path: Path, pattern: str, rule: str) -> None:
    make(tmp_path, "low/1.png", "high/1.png")
    with pytest.raises(ValueError, match=rule):
        listed("", "folders", low=str(tmp_path / "low"), normal=str(tmp_path / "high"), pattern=pattern)


def test_degrade_takes_every_photograph(tmp_path: Path) -> None:
    root = make(tmp_path, "a.jpg", "a.png", "deep/b.webp", "notes.txt")
    pairs = listed(root, "degrade")
    assert list(pairs) == ["a.jpg", "a.png", "deep/b.webp"]
    assert all(pair.low == "" and pair.normal and not pair.problem for pair in pairs.values())


@pytest.mark.parametrize("layout", ["lolv1", "folders"])
def test_missing_partners_and_rivals_are_named(tmp_path: Path, layout: str) -> None:
    make(tmp_path, "our485/low/1.png", "our485/high/2.png", "our485/low/3.png", "our485/low/3.jpg", "our485/high/3.png")
    settings = {side: str(tmp_path / "our485" / name) for side, name in (("low", "low"), ("normal", "high"))}
    pairs = listed(str(tmp_path), layout, **(settings if layout == "folders" else {}))
    problems = {name.removeprefix("our485/"): pair.problem for name, pair in pairs.items()}
    assert problems["1"] == "its normal image is missing"
    assert problems["2"] == "its low image is missing"
    assert "several files claim it" in problems["3"]


def test_csv_with_relative_and_absolute_urls(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("low,normal,split,scene\nlow/1.png,high/1.png,test,\ns3://b/2.png,/data/2.jpg,,hall\n")
    pairs = listed(str(table), "table")
    assert pairs["low/1"] == PairSource(
        pair_id="low/1", low=f"{tmp_path}/low/1.png", normal=f"{tmp_path}/high/1.png", split="test"
    )
    assert pairs["s3://b/2"].low == "s3://b/2.png"
    assert pairs["s3://b/2"].normal == "/data/2.jpg"
    assert pairs["s3://b/2"].scene == "hall"


def test_a_table_may_name_images_beside_its_folder(tmp_path: Path) -> None:
    table = tmp_path / "lists" / "pairs.csv"
    table.parent.mkdir()
    table.write_text("low,normal\n../low/1.png,../high/1.png\n")
    assert listed(str(table), "table") == {
        "low/1": PairSource(pair_id="low/1", low=f"{tmp_path}/low/1.png", normal=f"{tmp_path}/high/1.png")
    }
    store = fsspec.filesystem("memory")
    store.pipe_file("/beside/lists/pairs.csv", b"low,normal\n../low/1.png,../high/1.png\n../../x.png,2.png\n")
    with pytest.raises(ValueError, match=r"^line 3 of memory://beside/lists/pairs.csv has ../../x.png, which leaves"):
        listed("memory://beside/lists/pairs.csv", "table")


def test_jsonl(tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    table.write_text('{"pair_id": "p", "low": "a.png", "normal": "b.png"}\n\n')
    assert listed(str(table), "table")["p"].normal == f"{tmp_path}/b.png"


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("a.csv", "low\n1.png\n", "line 2 .* lacks low or normal"),
        ("a.csv", "low,normal,colour\n1,2,3\n", "unknown column 'colour'"),
        ("a.csv", "low,normal,split\n1,2,holdout\n", "split 'holdout'"),
        ("a.csv", "low,normal\n1,2\n1,3\n", "line 3 .* repeats"),
        ("a.csv", "low,normal\n1,2,3\n", "more fields"),
        ("a.jsonl", '{"low": ', "line 1 .* not JSON"),
        ("a.jsonl", '{"low": 1, "normal": 2}', "no object of strings"),
        ("a.csv", "low,normal\n1.png,./1.png\n", "line 2 .* names 1.png on both sides"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path: Path, name: str, text: str, rule: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rule):
        listed(str(tmp_path / name), "table")


@pytest.mark.parametrize("layout", [*FOLDER_LAYOUTS, "degrade"])
def test_a_source_without_pairs_is_one_clear_error(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ValueError, match="missing or empty"):
        listed(str(tmp_path / "nowhere"), layout)
    make(tmp_path, "readme.txt")
    with pytest.raises(ValueError, match=f"no pairs of layout {layout}"):
        listed(str(tmp_path), layout)


def test_credentials_in_a_url_show_in_no_error_and_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing or empty") as error:
        listed("memory://key:hunter2@bucket/nothing", "lolv1")
    assert "hunter2" not in str(error.value)
    table = tmp_path / "pairs.csv"
    table.write_text("low,normal\nhttps://me:hunter2@host/1.png?X-Amz-Signature=hunter2,high/1.png\n")
    assert list(listed(str(table), "table")) == ["https://***@host/1"]
