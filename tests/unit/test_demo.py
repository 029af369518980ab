"""The demo's verdict."""

from jobs.demo import verdict
from pipelines.reporting import Row


def rows(psnr: float, ssim: float) -> list[Row]:
    """Rows of an evaluation in which the 2-step student has these figures with GT-mean."""
    found = {("input", 0): (26.0, 0.6), ("teacher", 16): (28.0, 0.8), ("student", 2): (psnr, ssim)}
    return [
        {"method": method, "steps": steps, "psnr_gt_mean": first, "ssim_gt_mean": second}
        for (method, steps), (first, second) in found.items()
    ]


def test_aims_that_are_reached() -> None:
    first, second = verdict(rows(27.8, 0.79))
    assert "+1.80 dB, +0.190 SSIM (both above 0: reached)." in first
    assert "-0.20 dB, -0.010 SSIM (at least -0.3 and -0.02: reached)." in second


def test_a_missed_aim_has_its_reason() -> None:
    first, second = verdict(rows(25.9, 0.79))
    assert "-0.10 dB" in first and "missed). Missed because" in first
    assert "-2.10 dB" in second and "missed). Missed because" in second
    assert "missed" in verdict(rows(27.8, 0.77))[1]
