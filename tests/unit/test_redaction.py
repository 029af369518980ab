"""No credential gets into what others see."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipelines import reporting
from pipelines.redaction import flatten, redact, redact_tree
from pipelines.reporting import Report


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("s3://bucket/key?X-Amz-Signature=abc&part=2", "s3://bucket/key?X-Amz-Signature=***&part=2"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/plain/path", "/plain/path"),
        ("two: ftp://a:b@c and ftp://d:e@f", "two: ftp://***@c and ftp://***@f"),
    ],
)
def test_redacts_urls(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_flattens_and_hides_secrets() -> None:
    config = {
        "optim": {"steps": 5, "precision": "bf16"},
        "stages": (16, 8),
        "uri": "http://u:p@h",
        "AWS_SECRET_ACCESS_KEY": "x",
        "nested": {"password": "y"},
    }
    assert dict(flatten(config)) == {
        "optim.steps": "5",
        "optim.precision": "bf16",
        "stages": "16,8",
        "uri": "http://***@h",
        "AWS_SECRET_ACCESS_KEY": "***",
        "nested.password": "***",
    }


def test_redacts_urls_wherever_they_stand() -> None:
    tree = {"lpips": "https://h/vgg.pth?X-Amz-Signature=abc", "more": [8, {"uri": "http://u:p@h"}], "x": None}
    assert redact_tree(tree) == {
        "lpips": "https://h/vgg.pth?X-Amz-Signature=***",
        "more": [8, {"uri": "http://***@h"}],
        "x": None,
    }


@pytest.mark.parametrize("rows", [(), ({"steps": 2, "url": "https://me:hush@host/x"},)])
def test_a_report_shows_and_keeps_no_credentials(tmp_path: Path, rows: tuple[reporting.Row, ...]) -> None:
    url = "s3://bucket/x?X-Amz-Signature=hush"
    report = Report(title=f"3 pairs in {url}", rows=rows, facts={"reasons": url, "all": [url]}, url=str(tmp_path))
    shown = io.StringIO()
    reporting.show(report, Console(file=shown, width=200))
    reporting.save(report)
    for text in (shown.getvalue(), (tmp_path / "report.json").read_text()):
        assert "hush" not in text and "s3://bucket/x?X-Amz-Signature=***" in text
