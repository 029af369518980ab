"""Consoles that print names of files as they are."""

from typing import Any

from rich.console import Console


def make_console(**options: Any) -> Console:
    """A console without markup, emoji codes and highlighting, all of which would change names such as `a[b]:c:.jpg`."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def warn(message: str) -> None:
    """Prints one line on standard error."""
    make_console(stderr=True, soft_wrap=True).print(message)
