"""Packages that only some jobs need, and the extras that install them."""

import importlib.util
from collections.abc import Sequence


def require_packages(job: str, packages: Sequence[str]) -> None:
    """Raises a ValueError with the remedy if a package of the job's extra, which is named as the job, is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{job} needs {', '.join(missing)}; install them with pip install 'reddit-on-ray[{job}]'")
