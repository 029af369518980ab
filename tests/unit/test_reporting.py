"""What a job prints when it ends."""

import pytest

from pipelines.reporting import Report, show


def test_a_log_has_whole_tables(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"a_long_name_of_figure_{number}" for number in range(6)]
    show(Report(title="Figures", rows=[dict.fromkeys(names, 0.123456)], facts={"state": "done"}))
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert shown.count("0.1235") == len(names)
    assert "  state: done\n" in shown
