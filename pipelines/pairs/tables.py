"""Pairs listed in a table: a CSV or JSONL of URLs, and the CSV that fixes splits."""

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pipelines import storage
from pipelines.config.parts import Split
from pipelines.redaction import redact
from pipelines.texts import read_csv, read_text

COLUMNS = ("pair_id", "low", "normal", "split", "scene")
SPLIT_COLUMNS = ("pair_id", "split")
SPLITS: tuple[str, ...] = get_args(Split)


def list_table(url: str) -> list[dict[str, str]]:
    """The rows of a table of pairs, as `pair_id`, `low`, `normal`, `split` and `scene` (the last two may be empty).

    URLs that are relative lie below the table's own folder. Without a `pair_id`, it is `low` without extension.

    Raises:
        ValueError: naming the line, if a URL or the format is missing, or a pair comes twice.
    """
    folder = url.rpartition("/")[0] or "."
    rows: dict[str, dict[str, str]] = {}
    for number, raw in read_table_rows(url, COLUMNS):
        unknown = sorted(set(raw) - set(COLUMNS))
        if unknown or not raw.get("low") or not raw.get("normal"):
            wrong = f"has the unknown column {unknown[0]!r}" if unknown else "lacks low or normal"
            raise ValueError(
                f"line {number} of {url} {wrong}; the columns are low,normal and, if wanted, pair_id,split,scene"
            )
        pair_id = raw.get("pair_id") or name_from(raw["low"])
        check_split(raw.get("split", ""), f"line {number} of {url}", ("", *SPLITS))
        if pair_id in rows:
            raise ValueError(f"line {number} of {url} repeats the pair {pair_id!r}; give each a pair_id of its own")
        low, normal = (relative_to(folder, raw[side], f"line {number} of {url}") for side in ("low", "normal"))
        if low == normal:
            raise ValueError(f"line {number} of {url} names {raw['low']} on both sides; give each pair two images")
        rows[pair_id] = {
            "pair_id": pair_id,
            "low": low,
            "normal": normal,
            "split": raw.get("split", ""),
            "scene": raw.get("scene", ""),
        }
    return list(rows.values())


def read_splits(url: str) -> dict[str, str]:
    """A CSV of `pair_id,split`.

    Raises:
        ValueError: naming the line, if a split is unknown or a column is missing.
    """
    splits = {}
    for number, row in read_table_rows(url, SPLIT_COLUMNS):
        if not row.get("pair_id"):
            raise ValueError(f"line {number} of {url} has no pair_id; the columns are pair_id,split")
        check_split(row.get("split", ""), f"line {number} of {url}", SPLITS)
        splits[row["pair_id"]] = row["split"]
    return splits


def check_split(split: str, where: str, allowed: tuple[str, ...]) -> None:
    if split not in allowed:
        raise ValueError(f"{where} has the split {split!r}; it must be one of {', '.join(SPLITS)}")


def name_from(url: str) -> str:
    """A `pair_id` from an image's URL, without its extension, its query, any credentials in it, and `../` before it."""
    path = redact(url.partition("?")[0]) if "://" in url else re.sub(r"^(\.\.?/)+", "", url)
    return posixpath.splitext(path)[0]


def relative_to(folder: str, url: str, where: str) -> str:
    """A URL; one that is relative lies below `folder`, or beside it by `..`.

    Raises:
        ValueError: naming `where`, if `..` leads out of an object store's bucket.
    """
    if "://" in url or url.startswith("/"):
        return url
    if not {".", ".."}.intersection(url.split("/")):
        return storage.join(folder, url)
    scheme, separator, place = storage.resolve(folder).rpartition("://")
    path = posixpath.normpath(posixpath.join(place, url))
    if separator and path.split("/")[0] != place.split("/")[0]:
        raise ValueError(f"{where} has {url}, which leaves the bucket of {folder}; give the whole URL")
    return f"{scheme}{separator}{path}"


def read_table_rows(url: str, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, row) of a .csv or .jsonl file."""
    try:
        text = read_text(url)
    except FileNotFoundError:
        raise ValueError(f"{url} is missing; give the URL of a .csv or .jsonl file") from None
    if not url.lower().endswith(".jsonl"):
        yield from read_csv(text, url, columns)
        return
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside JSON's texts
        if line.strip():
            yield number, read_object(url, number, line)


def read_object(url: str, number: int, line: str) -> Mapping[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {url} is not JSON ({error}); fix it") from None
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise ValueError(f'line {number} of {url} is no object of strings; write {{"low": URL, "normal": URL}}')
    return {name.strip().lower(): value.strip() for name, value in row.items()}
