"""The card of a student: its interface, training data, validation figures and licence, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from pipelines.reporting import format_value

HEADING = "# Few-step low-light enhancement"
LOSS_TERMS = ("pixel", "ssim", "perceptual")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The facts that a student's card shows.

    Attributes:
        steps: sampling steps that it was distilled for.
        data: name or URL of the training pairs.
        interface: formats of input and output.
        licence: licence of the data; empty if unknown.
        metrics: rows of validation figures with the same keys, raw and GT-mean side by side.
        facts: further lines, such as the teacher's hash and the refinement weight.
    """

    steps: int
    data: str
    interface: str = "input and output: sRGB photographs, uint8 [N, H, W, 3]; any height and width"
    licence: str = ""
    metrics: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], steps: int) -> Self:
        """The card of a student, from the facts that a distillation stores with its weights.

        Args:
            facts: of the weights file; whatever is missing is left out of the card.
            steps: sampling steps, also of weights that do not record theirs.
        """
        settings, validation = facts.get("config", {}), facts.get("validation")
        loss = settings.get("loss", {})
        known = {
            "teacher (SHA-256)": facts.get("teacher_sha256"),
            "refine_weight": settings.get("refine_weight"),
            "loss weights": ", ".join(f"{name} {loss[name]:g}" for name in LOSS_TERMS if name in loss),
            "optimizer steps per stage": settings.get("optim", {}).get("steps"),
        }
        pairs_key, judged_at = facts.get("pairs_key"), facts.get("num_steps", steps)
        return cls(
            steps=steps,
            data=facts.get("pairs") or (f"pair dataset {pairs_key}" if pairs_key else "not recorded"),
            licence=facts.get("licence", ""),
            metrics=[{"split": "validation", "steps": judged_at, **validation}] if validation else [],
            facts={name: value for name, value in known.items() if value not in (None, "")},
        )

    def render(self) -> str:
        """The card as Markdown."""
        lines = [
            HEADING,
            "",
            f"A student for {self.steps} DDIM steps, distilled from a diffusion teacher as in ReDDiT "
            "(Lan et al., Efficient Diffusion as Low Light Enhancer, CVPR 2025, arXiv 2410.12346).",
            "",
            f"- {self.interface}",
            f"- training data: {self.data}",
            f"- licence of the data: {self.licence or 'not known; ask the owner of the data before you publish'}",
            *(f"- {name}: {format_value(value)}" for name, value in self.facts.items()),
        ]
        if self.metrics:
            names = list(self.metrics[0])
            lines += ["", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            lines += ["| " + " | ".join(format_value(row[name]) for name in names) + " |" for row in self.metrics]
            lines += [
                "",
                "`psnr` and `ssim` are raw; `_gt_mean` matches the mean brightness to the ground truth's first, "
                "which flatters. `sharpness` is Laplacian energy relative to the ground truth's; 1 is right.",
            ]
        return "\n".join(lines) + "\n"
