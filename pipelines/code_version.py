"""Which code a run was made with, also where no repository is at hand."""

import hashlib
from functools import cache
from pathlib import Path

DIGITS = 12
ROOT = Path(__file__).parents[1]
PACKAGES = ("reddit_core", "pipelines")


@cache
def code_digest() -> str:
    """The first digits of a hash over every source file of the packages, in a fixed order."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:DIGITS]
