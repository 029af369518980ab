"""What a job prints when it ends."""

import pytest

from jobs.cli import fail
from pipelines.progress import Progress
from pipelines.reporting import Report, show


def test_a_log_has_whole_tables(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a_long_name_of_figure_{number}" for number in range(6)]
    show(Report(title="Figures", rows=[dict.fromkeys(names, 0.123456)], facts={"state": "done"}))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert shown.count("0.1235") == len(names)
    assert "  state: done\n" in shown


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name, odd = "photo[edited] [/b] :smile: $x$.jpg", "caf\udce9\n.jpg"
    escaped = r"caf\udce9\n.jpg"
    facts = {f"left out: {name}": "broken", odd: odd}
    show(Report(title=name, rows=[{"pair": name}, {"pair": odd}], facts=facts))
    show(Report(title=odd, rows=[], facts={}))
    Progress("enhance", 1, "photographs").print(f"left out {name}, {odd}")
    shown = capsys.readouterr().out
    assert shown.count(name) == 4 and shown.count(escaped) == 5 and "udce9\n" not in shown
    with pytest.raises(SystemExit):
        fail(f"{name}, {odd}")
    assert capsys.readouterr().err == f"error: {name}, {escaped}\n"
