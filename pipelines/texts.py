"""Text files that people write, as their editors and spreadsheets save them: CSV, JSONL, TOML and lists."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence

from pipelines import storage

# Byte order marks, longer ones first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
SEPARATORS = (",", ";", "\t")


def read_text(url: str) -> str:
    """A text file with line ends of `\\n`: UTF-8, or what its byte order mark says.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: naming the line, if it is not in that encoding.
    """
    return decode_text(storage.read_bytes(url), url)


def decode_text(data: bytes, url: str) -> str:
    """As `read_text`, from the file's bytes; `url` names it in the error."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None) or unmarked_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + data[: error.start].decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n").count("\n")
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"line {line} of {url} is not {name} text; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unmarked_encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 where every other byte at the beginning is zero: such files begin with ASCII."""
    if len(data) >= 2 and data[1] == 0 != data[0]:
        return "utf-16-le"
    return "utf-16-be" if len(data) >= 2 and data[0] == 0 != data[1] else "utf-8"


def read_csv(text: str, url: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV whose header names columns in any case; empty lines and a line `sep=;` are skipped.

    Args:
        text: of the file, with line ends of `\\n`.
        url: of the file, for errors.
        columns: that a header may have, in lower case; the separator is the one that finds most of them.

    Raises:
        ValueError: naming the line, if the header has a column twice or a line has more fields than the header, or
            cannot be parsed.
    """
    first = next((line for line in text.split("\n") if line.strip() and not line.startswith("sep=")), "")
    separator = max(SEPARATORS, key=lambda one: len(set(header_of(first, one)) & set(columns)))
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    header: list[str] = []
    try:
        for fields in reader:
            where = f"line {reader.line_num} of {url}"
            if not any(field.strip() for field in fields) or (not header and fields[0].startswith("sep=")):
                continue
            if not header:
                header = header_of(first, separator)
                twice = [name for name in header if name and header.count(name) > 1]
                if twice:
                    raise ValueError(f"{where} names the column {twice[0]!r} twice; name each once")
                continue
            if any(field.strip() for field in fields[len(header) :]):
                raise ValueError(f"{where} has more fields than the header; fix it")
            yield reader.line_num, {name: field.strip() for name, field in zip(header, fields, strict=False) if name}
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} of {url} is no CSV ({error}); fix it") from None


def header_of(line: str, separator: str) -> list[str]:
    return [name.strip().lower() for name in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
