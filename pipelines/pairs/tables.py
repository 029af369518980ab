"""Pairs listed in a table: a CSV or JSONL of URLs, and the CSV that fixes splits."""

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import get_args

from pipelines import storage
from pipelines.config.parts import Split
from pipelines.redaction import redact

COLUMNS = ("pair_id", "low", "normal", "split", "scene")
SPLITS: tuple[str, ...] = get_args(Split)


def list_table(url: str) -> list[dict[str, str]]:
    """The rows of a table of pairs, as `pair_id`, `low`, `normal`, `split` and `scene` (the last two may be empty).

    URLs that are relative lie below the table's own folder. Without a `pair_id`, it is `low` without extension.

    Raises:
        ValueError: naming the line, if a URL or the format is missing, or a pair comes twice.
    """
    folder = url.rpartition("/")[0] or "."
    rows: dict[str, dict[str, str]] = {}
    for number, raw in read_table_rows(url):
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
        rows[pair_id] = {
            "pair_id": pair_id,
            "low": relative_to(folder, raw["low"]),
            "normal": relative_to(folder, raw["normal"]),
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
    for number, row in read_table_rows(url):
        if not row.get("pair_id"):
            raise ValueError(f"line {number} of {url} has no pair_id; the columns are pair_id,split")
        check_split(row.get("split", ""), f"line {number} of {url}", SPLITS)
        splits[row["pair_id"]] = row["split"]
    return splits


def check_split(split: str, where: str, allowed: tuple[str, ...]) -> None:
    if split not in allowed:
        raise ValueError(f"{where} has the split {split!r}; it must be one of {', '.join(SPLITS)}")


def name_from(url: str) -> str:
    """A `pair_id` from an image's URL, without its extension, its query and any credentials in it."""
    return posixpath.splitext(redact(url.partition("?")[0] if "://" in url else url))[0]


def relative_to(folder: str, url: str) -> str:
    """A URL; one that is relative lies below `folder`."""
    return url if "://" in url or url.startswith("/") else storage.join(folder, url)


def read_table_rows(url: str) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, row) of a .csv or .jsonl file."""
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")  # spreadsheets write a byte order mark
    except FileNotFoundError:
        raise ValueError(f"{url} is missing; give the URL of a .csv or .jsonl file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{url} is no UTF-8 text; give a .csv or .jsonl file") from None
    if url.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, read_object(url, number, line)
    else:
        for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=2):
            if None in row:
                raise ValueError(f"line {number} of {url} has more fields than the header; fix it")
            yield number, {name.strip(): (value or "").strip() for name, value in row.items()}


def read_object(url: str, number: int, line: str) -> Mapping[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} of {url} is not JSON ({error}); fix it") from None
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise ValueError(f'line {number} of {url} is no object of strings; write {{"low": URL, "normal": URL}}')
    return row
