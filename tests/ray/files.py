"""Files of datasets, compared and damaged."""

from pathlib import Path

REPORT = "report.json"  # holds timings


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name, but the report."""
    root = Path(folder)
    files = (path for path in root.rglob("*") if path.is_file() and path.name != REPORT)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def flip_bit(path: Path) -> bytes:
    """Flips one bit in the middle of a file; returns what the file held."""
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    return data
