"""The methods that an evaluation compares: the input as it is, a classical baseline, and networks."""

from dataclasses import dataclass

from pipelines.config.use import EvaluateConfig

INPUT, CLAHE, TRUTH = "input", "clahe", "ground truth"


@dataclass(frozen=True)
class Method:
    """A row of the report: a name, sampling steps (0: no network), and the URL of weights."""

    name: str
    steps: int
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Parses NAME:STEPS=URL; raises ValueError for anything else, and for names of other rows."""
        head, separator, url = text.partition("=")
        name, _, steps = head.partition(":")
        if not (separator and url and name and steps.isdigit() and int(steps)):
            raise ValueError(
                f"weights holds {text!r}, but must be NAME:STEPS=URL, such as student:2=runs/x.safetensors"
            )
        if name in (INPUT, CLAHE):
            raise ValueError(f"weights holds {head}, but {name} is a row already; give another name, such as student")
        return cls(name, int(steps), url)

    @property
    def key(self) -> str:
        return f"{self.name}:{self.steps}"


def methods_of(config: EvaluateConfig) -> list[Method]:
    """Input, baseline and every network, in the order of the report.

    Raises:
        ValueError: if two have the same name and steps.
    """
    methods = [Method(INPUT, 0), Method(CLAHE, 0), *(Method.parse(text) for text in config.weights)]
    keys = [method.key for method in methods]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"weights holds {twice[0]} twice; give each its own name, such as other:{twice[0]}")
    return methods


def shown_methods(config: EvaluateConfig) -> list[Method]:
    """The methods in `before_after.png`.

    Raises:
        ValueError: if one of them is not evaluated.
    """
    methods = {method.key: method for method in methods_of(config)}
    unknown = [key for key in config.shown if key not in methods]
    if unknown:
        raise ValueError(f"shown holds {unknown[0]!r}, but only {', '.join(methods)} are evaluated; name one of these")
    return [methods[key] for key in config.shown] if config.shown else list(methods.values())
