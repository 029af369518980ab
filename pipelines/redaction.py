"""Makes texts and settings fit to be shown or stored: without credentials, and printable."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
# user:password@ (or a bare token@) of a URL.
USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|credential|api_?key|access_?key|signature|^sig$|^aws_)", re.IGNORECASE
)
# A query field of a URL, such as those of pre-signed ones.
QUERY_FIELD = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s]*)")


def redact(text: str) -> str:
    """Replaces the credentials in the URLs of a text by `***`."""
    text = USER_INFO.sub(HIDDEN, text)
    return QUERY_FIELD.sub(lambda m: f"{m[1]}={HIDDEN}" if SECRET_NAME.search(m[1]) else m[0], text)


def printable(text: str) -> str:
    """A text on one line: what cannot be printed, such as a line break or a byte that is not UTF-8, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def redact_tree(value: Any) -> Any:
    """Applies `redact` to every text in a JSON-like value; tuples become lists."""
    if isinstance(value, Mapping):
        return {name: redact_tree(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(part) for part in value]
    return redact(value) if isinstance(value, str) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested settings as (dotted name, text): sequences joined by commas, credentials replaced by `***`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif SECRET_NAME.search(name):
            yield f"{prefix}{name}", HIDDEN
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", redact(",".join(str(part) for part in value))
        else:
            yield f"{prefix}{name}", redact(str(value))
