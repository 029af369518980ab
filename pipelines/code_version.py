"""Identifies the code that a run was made with, also outside a Git repository."""

import hashlib
from functools import cache
from pathlib import Path

DIGITS = 12
ROOT = Path(__file__).parents[1]
PACKAGES = ("reddit_core", "pipelines")


@cache
def code_digest() -> str:
    """The first 12 hex digits of a SHA-256 over all source files of the packages, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:DIGITS]
