"""Text files as editors and spreadsheets save them, of every kind that a job reads, on a disk and in a bucket."""

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from jobs.cli import read_toml
from pipelines.config.jobs import IngestConfig
from pipelines.pairs.layouts import list_pairs
from pipelines.pairs.tables import read_splits
from pipelines.texts import decode_text

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
Place = Callable[[str, bytes], str]


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A function that puts a file on a disk or into a store, and gives its URL."""

    def put(name: str, data: bytes) -> str:
        url = f"{tmp_path}/{name}" if request.param == "disk" else f"memory://texts/{name}"
        fsspec.open(url, "wb").fs.pipe_file(url, data)
        return url

    return put


def pairs_of(url: str) -> list[tuple[str, str]]:
    folder = url.rpartition("/")[0]
    found = list_pairs(IngestConfig(output="unused", source=url, layout="table")).pairs
    return [(pair.low.removeprefix(f"{folder}/"), pair.normal.removeprefix(f"{folder}/")) for pair in found]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_text_is_read_in_any_encoding_and_with_any_line_ends(place: Place, encoding: str, line_end: str) -> None:
    def put(name: str, *lines: str) -> str:
        return place(name, line_end.join([*lines, ""]).encode(encoding))

    expected = [("é1.png", "h/1.png"), ("é2.png", "h/2.png")]
    assert pairs_of(put("a.csv", "low,normal", "é1.png,h/1.png", "é2.png,h/2.png")) == expected
    rows = ('{"low": "é1.png", "normal": "h/1.png"}', '{"Low": "é2.png", "normal": "h/2.png"}')
    assert pairs_of(put("a.jsonl", *rows)) == expected
    assert read_splits(put("splits.csv", "pair_id,split", "é1,train", "é2,test")) == {"é1": "train", "é2": "test"}
    assert read_toml(put("job.toml", "[optim]", "steps = 3 # é", "seed = 4")) == {"optim": {"steps": 3, "seed": 4}}


def test_a_test_list_of_a_dataset_is_read_as_any_text(tmp_path: Path) -> None:
    for side in ("LQ", "Long"):
        for scene in ("0001", "0002"):
            (tmp_path / f"SMID_{side}_np" / scene).mkdir(parents=True)
            (tmp_path / f"SMID_{side}_np" / scene / "1.npy").touch()
    (tmp_path / "test_list.txt").write_bytes("0002\r".encode("utf-16"))
    found = list_pairs(IngestConfig(output="unused", source=str(tmp_path), layout="smid")).pairs
    assert [pair.split for pair in found] == ["", "test"]


@pytest.mark.parametrize("separator", [",", ";", "\t", " ; "])
@pytest.mark.parametrize("first", ["", "sep={}\n", "\n\n"])
def test_the_separators_and_headers_of_spreadsheets(tmp_path: Path, separator: str, first: str) -> None:
    header, row = separator.join(("Low", '"Normal"', "SPLIT", "")), separator.join(("1.png", "2.png", "test", ""))
    url = str(tmp_path / "pairs.csv")
    Path(url).write_text(f"{first.format(separator.strip(' '))}{header}\n{row}\n")
    assert pairs_of(url) == [("1.png", "2.png")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"low,normal\n\n\n1.png\n", "^line 4 of .*pairs.csv lacks low or normal"),
        (b"\nlow,normal\r\r1.png,2.png,3.png\r", "^line 4 of .*pairs.csv has more fields than the header"),
        (b"low,normal,Low\n1.png,2.png,3.png\n", "^line 1 of .*pairs.csv names the column 'low' twice"),
        (b"low,normal\n1.png,2.png\ncaf\xe9.png,2.png\n", "^line 3 of .*pairs.csv is not UTF-8 text; save the file as"),
        (b'low,normal\n"1.png,2.png' + b"x" * 200_000, "^line 2 of .*pairs.csv is no CSV"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: bytes, error: str) -> None:
    (tmp_path / "pairs.csv").write_bytes(text)
    with pytest.raises(ValueError, match=error):
        pairs_of(str(tmp_path / "pairs.csv"))


def test_errors_of_other_texts_name_the_line_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2 of a is not UTF-16 text"):
        decode_text("a\nb".encode("utf-16") + b"c", "a")
    (tmp_path / "a.jsonl").write_bytes("\n\n{}\u2028".encode())
    with pytest.raises(ValueError, match=r"line 3 of .*a\.jsonl is not JSON"):
        pairs_of(str(tmp_path / "a.jsonl"))
    (tmp_path / "job.toml").write_bytes(b"a = 1\rb = \r")
    with pytest.raises(ValueError, match=r"job.toml is not valid TOML \(Invalid value \(at line 2, column 5\)\)"):
        read_toml(str(tmp_path / "job.toml"))
    with pytest.raises(ValueError, match=r"config is nosuch\.toml, but there is no such file; give the path or URL"):
        read_toml("nosuch.toml")
