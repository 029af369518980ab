"""No credential gets into what others see."""

import pytest

from pipelines.redaction import flatten, redact, redact_tree


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
