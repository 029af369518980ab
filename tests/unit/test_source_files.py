"""Sources as people have them: files of programs, names that differ in spelling, links, folders that cannot be read."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from pipelines import storage
from pipelines.config.jobs import IngestConfig
from pipelines.config.use import EnhanceConfig
from pipelines.enhancement.work import Work, list_photographs
from pipelines.pairs.layouts import Found, list_pairs
from pipelines.pairs.ray_tasks import fetch

NOT_USERS = (".ipynb_checkpoints/1-checkpoint.png", "@eaDir/1.png/SYNOFILE_THUMB_M.png", ".thumbnails/x.png", "._a.jpg")
CAFE, CAFE_DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(layout: str, **settings: Any) -> Found:
    return list_pairs(IngestConfig(output="unused", layout=layout, **settings))  # type: ignore[arg-type]


def by_id(layout: str, **settings: Any) -> dict[str, str]:
    """`pair_id` to problem."""
    return {pair.pair_id: pair.problem for pair in found(layout, **settings).pairs}


def folders(root: Path, pattern: str = "") -> dict[str, str]:
    return by_id("folders", low=str(root / "low"), normal=str(root / "high"), pattern=pattern)


def photographs(source: Path | str) -> Any:
    config = EnhanceConfig(source=str(source), output="elsewhere", weights="unused")
    return list_photographs(config)[1]


def test_a_linked_folder_of_pairs_and_a_linked_album_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "disk/1.png", "LOL/our485/high/1.png", "photos/a.jpg")
    (tmp_path / "LOL" / "our485" / "low").symlink_to(tmp_path / "disk")
    assert by_id("lolv1", source=str(tmp_path / "LOL")) == {"our485/1": ""}
    (tmp_path / "photos" / "album").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
    assert photographs(tmp_path / "photos").images == ["a.jpg", "album/1.png"]


def test_what_programs_made_is_left_out_and_said(tmp_path: Path) -> None:
    sides = [f"our485/{side}/{name}" for side in ("low", "high") for name in ("1.png", *NOT_USERS)]
    result = found("lolv1", source=str(make(tmp_path, *sides)))
    assert [(pair.pair_id, pair.problem) for pair in result.pairs] == [("our485/1", "")]
    (said,) = result.notes.values()
    assert said.startswith("8, such as our485/")
    low = tmp_path / "our485" / "low"
    assert list(by_id("degrade", source=str(low))) == ["1.png"]
    listing = photographs(low)
    assert (listing.images, len(listing.not_users), listing.others) == (["1.png"], 4, [])


def test_a_photograph_at_a_signed_url_has_its_own_name(signed_photograph: tuple[str, bytes], tmp_path: Path) -> None:
    url, photograph = signed_photograph
    folder = url.rpartition("/night/")[0] + "/night"
    root, listing = list_photographs(EnhanceConfig(source=url, output=str(tmp_path), weights="unused"))
    assert (root, listing.images) == (folder, ["my cat.jpg"])
    work = Work(root, listing.images, listing.images, {}, 2, {}, single=url)
    assert storage.read_bytes(work.url_of("my cat.jpg")) == photograph
    with pytest.raises(ValueError, match="there is nothing at"):
        photographs(f"{folder}/other.jpg")


def test_a_key_that_names_no_file_is_left_out_alone(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for key in ("/keys/night/a.jpg", "/keys/night//b.jpg"):
        store.store[key] = MemoryFile(store, key)
    reason = "its name has the part '' between slashes, which no folder has; rename it"
    assert photographs("memory://keys/night").images == ["a.jpg"]
    assert photographs("memory://keys/night").unusable == {"/b.jpg": reason}
    assert by_id("degrade", source="memory://keys/night") == {"/b.jpg": reason, "a.jpg": ""}


def test_a_hidden_folder_that_is_asked_for_is_the_users(tmp_path: Path) -> None:
    assert photographs(make(tmp_path / ".private", "a.jpg")).images == ["a.jpg"]


def test_names_that_differ_in_spelling_are_partners_where_it_is_clear(tmp_path: Path) -> None:
    make(tmp_path, f"low/{CAFE}.png", f"high/{CAFE_DECOMPOSED}.png", "low/IMG_1.PNG", "high/img_1.png")
    assert folders(tmp_path) == {CAFE: "", "IMG_1": ""}
    make(
        tmp_path,
        f"our485/low/{CAFE}.png",
        f"our485/high/{CAFE_DECOMPOSED}.png",
        "eval15/low/A.png",
        "eval15/high/a.png",
    )
    assert by_id("lolv1", source=str(tmp_path)) == {f"our485/{CAFE}": "", "eval15/A": ""}


def test_names_that_differ_in_spelling_are_told_apart_where_it_is_not(tmp_path: Path) -> None:
    make(tmp_path, "low/IMG_1.png", "low/img_1.png", "high/img_1.png")
    make(tmp_path, f"low/{CAFE}.png", f"low/{CAFE_DECOMPOSED}.png", f"high/{CAFE.upper()}.png")
    problems = folders(tmp_path)
    assert problems["img_1"] == ""
    assert "'img_1' is spelled otherwise than 'IMG_1', and it is not clear which" in problems["IMG_1"]
    assert r"'CAF\xc9' is spelled otherwise than 'cafe\u0301'" in problems[CAFE_DECOMPOSED]
    assert r"'cafe\u0301', 'caf\xe9' is spelled otherwise than 'CAF\xc9'" in problems[CAFE.upper()]


def test_a_table_may_compose_accents_otherwise_than_the_file(tmp_path: Path) -> None:
    (tmp_path / CAFE_DECOMPOSED).write_bytes(b"x")
    assert fetch(str(tmp_path / CAFE)) == fetch(str(tmp_path / CAFE_DECOMPOSED)) == b"x"
    assert isinstance(fetch(str(tmp_path / f"{CAFE}2")), ValueError)


def test_a_name_that_is_not_utf_8_is_left_out_of_pairs_and_enhanced(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    assert by_id("degrade", source=str(tmp_path)) == {"a.png": "", r"caf\udce9.png": "its name is not UTF-8; rename it"}
    assert photographs(tmp_path).images == ["a.png", "caf\udce9.png"]


def test_both_sides_in_one_folder_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "low/1_low.png", "low/1_high.png")
    (tmp_path / "high").symlink_to(tmp_path / "low")
    for pattern in ("", "([0-9]+)"):
        with pytest.raises(ValueError, match=r"low and normal are both .*own partner; give each side a folder"):
            folders(tmp_path, pattern)


def test_images_of_several_scenes_never_share_a_normal_one_by_their_number(tmp_path: Path) -> None:
    make(tmp_path, "low/s1/001.png", "low/s2/001.png", "low/s3/002_a.png", "low/s3/002_b.png", "high/002.png")
    flat = make(tmp_path / "flat", "low/s1/001.png", "low/s2/001.png", "high/001.png")
    assert all("several folders hold images of '001'" in problem for problem in folders(flat, "([0-9]+)").values())
    make(tmp_path, "high/s1/001.png", "high/s2/001.png")
    assert set(folders(tmp_path, "([0-9]+)").values()) == {""}


def test_a_layout_that_nearly_fits_is_named(tmp_path: Path) -> None:
    repacked = [f"{part}/{side}/1.png" for part in ("Train", "Test") for side in ("input", "target")]
    root = make(tmp_path / "LOL", *repacked)
    with pytest.raises(ValueError, match=r"no pairs of layout lolv1 .*1 in Test/input, 1 in Test/target") as error:
        found("lolv1", source=str(root))
    assert f"--layout folders --low {root}/Train/input --normal {root}/Train/target" in str(error.value)
    make(tmp_path / "LOLv1", "our485/low/1.png", "our485/high/1.png")
    for layout, source in (("lolv1", "LOLv1/our485"), ("sdsd", "LOLv1")):
        with pytest.raises(ValueError, match=rf"; use --layout lolv1 --source {tmp_path}/LOLv1"):
            found(layout, source=str(tmp_path / source))


def test_folders_that_cannot_be_read_are_broken(as_ordinary_user: Path) -> None:
    make(as_ordinary_user, "a/1.png", "night/2.png", "lost+found/3.png")
    for name in ("night", "lost+found"):
        (as_ordinary_user / name).chmod(0)
    reason = "the folder cannot be read (Permission denied); fix its permissions"
    assert by_id("degrade", source=str(as_ordinary_user)) == {"a/1.png": "", "night/": reason}
    assert photographs(as_ordinary_user).unusable == {"night/": reason}
