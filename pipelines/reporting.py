"""The report of a job: a short table on the terminal and `report.json` at its output."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines import storage
from pipelines.console import make_console
from pipelines.redaction import printable, redact, redact_tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to import

Row = Mapping[str, Any]
FILE = "report.json"
# Characters per line in a log file, which has no width of its own; rich would assume 80.
LOG_WIDTH = 200


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a job, or its plan (`--dry-run`).

    Attributes:
        title: one line.
        rows: rows of the table, all with the same keys.
        facts: further figures, shown under the table and stored in `report.json`.
        url: folder that `report.json` is written to; empty for a report that is only shown.
    """

    title: str
    rows: Sequence[Row] = ()
    facts: Row = field(default_factory=dict)
    url: str = ""


def show(report: Report, console: Console | None = None) -> None:
    """Prints the report's title, its rows as a table, and its facts, without credentials of URLs."""
    console, title = console or report_console(), as_text(report.title)
    if report.rows:
        table = Table(title=title, title_justify="left")
        for name in report.rows[0]:
            table.add_column(name, justify="left" if isinstance(report.rows[0][name], str) else "right")
        for row in report.rows:
            table.add_row(*(as_text(value) for value in row.values()))
        console.print(table)
    else:
        console.print(title)
    for name, value in report.facts.items():
        console.print(as_text(f"  {name}: {format_value(value)}"), soft_wrap=True)


def report_console() -> Console:
    """A console on standard output: as wide as the terminal, or 200 characters where it is not one."""
    console = make_console()
    return console if console.is_terminal else make_console(width=LOG_WIDTH)


def as_text(value: Any) -> Text:
    """A value as it is printed: on one line, without credentials; in text, brackets are not taken for markup."""
    return Text(printable(redact(format_value(value))))


def format_value(value: Any) -> str:
    """A value as text: floats to four digits, None as `-`."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save(report: Report) -> None:
    """Writes `report.json` (`{"title", "rows", ...facts}`, without credentials of URLs) to the report's folder."""
    document = redact_tree({"title": report.title, "rows": report.rows, **report.facts})
    storage.write_bytes(storage.join(report.url, FILE), json.dumps(document, indent=1).encode())


def encode_figure(figure: "Figure") -> bytes:
    """PNG bytes of a plot, 120 dots per inch."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()
