"""The space that a sweep searches, and the objective that it maximizes, parsed from the command line."""

import itertools
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal

from pipelines.config.jobs import DistillConfig
from pipelines.config.parts import require
from pipelines.reporting import format_value
from pipelines.training.validation import LPIPS

Kind = Literal["uniform", "loguniform", "choice"]
Values = dict[str, Any]
"""A trial's searched values, by dotted key of the distillation's config."""

DIMENSION = re.compile(r"^\s*([a-z_.-]+)\s*=\s*(uniform|loguniform|choice)\(([^()]*)\)\s*$")
TERM = re.compile(r"\s*([+-]?)\s*(?:([0-9.]+(?:e-?[0-9]+)?)\s*\*\s*)?([a-z_]+)\s*")
# Settings that cannot be searched: locations, and whatever all trials must share to be comparable and to use one cache.
FIXED = ("cache", "teacher", "output", "pairs", "lpips", "stages", "progressive", "trajectories", "segment")
FIXED_PARTS = (*FIXED, "tracking", "compute", "checkpoint", "optim.steps")
METRICS = (
    *("psnr", "psnr_gt_mean", "psnr_moments", "psnr_given", "ssim", "ssim_gt_mean", "ssim_given"),
    *("sharpness", "sharpness_gt_mean", "sharpness_given"),
)
SHARPNESS_GAP = "sharpness_gap"


@dataclass(frozen=True)
class Dimension:
    """One searched setting.

    Attributes:
        key: dotted key of the distillation's config.
        kind: how values are drawn.
        values: the lower and upper limit, or the choices.
    """

    key: str
    kind: Kind
    values: tuple[Any, ...]

    def contains(self, value: Any) -> bool:
        """Whether the search can draw this value."""
        return value in self.values if self.kind == "choice" else self.values[0] <= value <= self.values[1]


def default_space(base: DistillConfig) -> tuple[str, ...]:
    """Refinement and loss weights and the learning rate; the perceptual weight only if a backbone is given."""
    perceptual = ("loss.perceptual=uniform(0,1)",) if base.lpips else ()
    weights = ("refine_weight=uniform(0,1)", "loss.pixel=uniform(0,2)", *perceptual)
    return (*weights, "optim.learning_rate=loguniform(1e-5,1e-3)")


def parse_space(texts: Sequence[str], base: DistillConfig) -> tuple[Dimension, ...]:
    """Parses `key=uniform(a,b)`, `key=loguniform(a,b)` and `key=choice(a,b,...)`.

    Raises:
        ValueError: if a text, key, limit or choice cannot be used, or a key comes twice.
    """
    dimensions = tuple(_parse_dimension(text, base) for text in texts)
    keys = [dimension.key for dimension in dimensions]
    for key in keys:
        require(keys.count(key) == 1, f"space names {key} {keys.count(key)} times, but each key once is enough")
    for dimension in dimensions:
        for value in dimension.values:
            with_values(base, {dimension.key: value})  # raises what the distillation's config raises
    return dimensions


def _parse_dimension(text: str, base: DistillConfig) -> Dimension:
    match = DIMENSION.match(text)
    if match is None:
        raise ValueError(f"space {text!r} must be KEY=uniform(a,b), KEY=loguniform(a,b) or KEY=choice(a,b,...)")
    key, kind, words = key_of(match[1]), match[2], [word.strip() for word in match[3].split(",")]
    values = tuple(parse_value(base, key, word) for word in words)
    if kind == "choice":
        twice = [word for word, value in zip(words, values, strict=True) if values.count(value) > 1]
        require(not twice, f"space {text!r} has {' and '.join(twice)}, which are one value; give each value once")
        return Dimension(key, "choice", values)
    numbers = all(isinstance(value, float) for value in values)
    require(
        len(values) == 2 and numbers and values[0] < values[1],
        f"space {text!r} must have two rising limits of a fractional setting; use {key}=choice(...) for others",
    )
    require(kind == "uniform" or values[0] > 0, f"space {text!r} has the limit {words[0]}, but a logarithm needs > 0")
    width = values[1] - values[0] if kind == "uniform" else math.log(values[1]) - math.log(values[0])
    require(0 < width < math.inf, f"space {text!r} is a range that no number can be drawn from; give other limits")
    return Dimension(key, "uniform" if kind == "uniform" else "loguniform", values)


def key_of(text: str) -> str:
    """A setting's name, which may be written with hyphens as in its flag."""
    return text.strip().replace("-", "_")


def parse_value(base: DistillConfig, key: str, word: str) -> Any:
    """Parses the value of a dotted key by that setting's type: float, int, bool or a literal.

    Raises:
        ValueError: if the key cannot be searched, or the word is no value of its type.
    """
    kind, searchable = type_of(key), f"searchable are {', '.join(searchable_keys(base))}"
    if any(key == name or key.startswith(f"{name}.") for name in FIXED_PARTS):
        raise ValueError(f"{key} cannot be searched, since all trials share it; {searchable}")
    if kind is None:
        raise ValueError(f"{key} is no setting of a distillation; {searchable}")
    if typing.get_origin(kind) is Literal:
        options = typing.get_args(kind)
        require(word in options, f"{key} is {word!r}, but must be one of {', '.join(options)}")
        return word
    if kind is bool:
        require(word in {"true", "false"}, f"{key} is {word!r}, but must be true or false")
        return word == "true"
    try:
        value = kind(word)
    except ValueError:
        raise ValueError(f"{key} is {word!r}, but must be {'a number' if kind is float else 'an integer'}") from None
    require(not math.isnan(value), f"{key} is {word!r}, but must be a number")
    return value


def type_of(key: str) -> Any:
    """The type of a dotted setting of a distillation; None if it does not exist or is a group of settings."""
    kind: Any = DistillConfig
    for name in key.split("."):
        kind = typing.get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return None if is_dataclass(kind) else kind


def searchable_keys(base: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys that a space may have."""
    for name in typing.get_type_hints(type(base)):
        key, value = f"{prefix}{name}", getattr(base, name)
        if key in FIXED_PARTS:
            continue
        if is_dataclass(value):
            yield from searchable_keys(value, f"{key}.")
        else:
            yield key


def get_value(base: Any, key: str) -> Any:
    """The value of a dotted key in a config."""
    for name in key.split("."):
        base = getattr(base, name)
    return base


def with_values(base: DistillConfig, values: Mapping[str, Any]) -> DistillConfig:
    """A copy of the distillation's config with dotted settings replaced."""
    return typing.cast(DistillConfig, _with_values(base, values))


def _with_values(node: Any, values: Mapping[str, Any]) -> Any:
    groups: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if rest:
            groups.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: _with_values(getattr(node, name), part) for name, part in groups.items()}
    return replace(node, **changes)


def parse_points(texts: Sequence[str], dimensions: Sequence[Dimension], base: DistillConfig) -> list[Values]:
    """Parses `key=value,key=value` to full points of the space; keys that are not named keep the base's values.

    Raises:
        ValueError: if a key is not searched, or a value is outside its limits.
    """
    return [_parse_point(text, {dimension.key: dimension for dimension in dimensions}, base) for text in texts]


def _parse_point(text: str, dimensions: Mapping[str, Dimension], base: DistillConfig) -> Values:
    point = {key: get_value(base, key) for key in dimensions}
    for part in text.split(","):
        name, _, word = (piece.strip() for piece in part.partition("="))
        key = key_of(name)
        require(key in dimensions, f"points has {part!r}, but must be KEY=VALUE with KEY of {', '.join(dimensions)}")
        point[key] = parse_value(base, key, word)
    for key, value in point.items():
        limits = f"{dimensions[key].kind}({','.join(str(limit) for limit in dimensions[key].values)})"
        require(
            dimensions[key].contains(value),
            f"the point {text!r} has {key}={value}, but the space is {limits}; widen it with --space, or name {key}",
        )
    return point


def base_point(dimensions: Sequence[Dimension], base: DistillConfig) -> list[Values]:
    """The distillation's own values as the first point to try, if they are in the space; otherwise no point."""
    point = {dimension.key: get_value(base, dimension.key) for dimension in dimensions}
    return [point] if all(dimension.contains(point[dimension.key]) for dimension in dimensions) else []


def grid_points(dimensions: Sequence[Dimension]) -> list[Values]:
    """All combinations of the choices.

    Raises:
        ValueError: if a dimension is a range.
    """
    for dimension in dimensions:
        require(
            dimension.kind == "choice",
            f"search grid needs lists, but {dimension.key} is {dimension.kind}; use {dimension.key}=choice(a,b,...)",
        )
    names = [dimension.key for dimension in dimensions]
    return [
        dict(zip(names, combination, strict=True))
        for combination in itertools.product(*(dimension.values for dimension in dimensions))
    ]


@dataclass(frozen=True)
class SweepObjective:
    """The quantity that a sweep maximizes: a weighted sum of validation metrics.

    Attributes:
        terms: (weight, metric) pairs.
    """

    terms: tuple[tuple[float, str], ...]

    def __call__(self, metrics: Mapping[str, Any]) -> float | None:
        """The sum; None if a metric is missing or the sum is not finite."""
        known = {name: float(metrics[name]) for name in (*METRICS, LPIPS) if name in metrics}
        if "sharpness" in known:
            known[SHARPNESS_GAP] = abs(1 - known["sharpness"])
        if any(name not in known for _, name in self.terms):
            return None
        total = sum(weight * known[name] for weight, name in self.terms)
        return total if math.isfinite(total) else None


def parse_objective(text: str, metrics: Sequence[str] = METRICS) -> SweepObjective:
    """Parses `psnr`, or a weighted sum such as `psnr + 10*ssim - 5*sharpness_gap`.

    Args:
        text: the sum.
        metrics: names of the metrics that a validation measures.

    Raises:
        ValueError: if the text is not a sum of these metrics and `sharpness_gap` = |1 - sharpness|.
    """
    terms: list[tuple[float, str]] = []
    position = 0
    while position < len(text):
        match = TERM.match(text, position)
        known = match is not None and match[3] in (*metrics, SHARPNESS_GAP)
        if match is None or not known or (terms and not match[1]):
            break
        terms.append((float(match[2] or 1) * (-1 if match[1] == "-" else 1), match[3]))
        position = match.end()
    require(
        bool(terms) and position == len(text),
        f"metric {text!r} must be a validation metric or a sum of them, such as psnr + 10*ssim - 5*sharpness_gap; "
        f"they are {', '.join(metrics)} and {SHARPNESS_GAP} = |1 - sharpness|; lpips needs --distill.lpips URL",
    )
    return SweepObjective(tuple(terms))


def describe_points(points: Sequence[Values]) -> str:
    """Points as text, `key=value, key=value; ...`."""
    return "; ".join(", ".join(f"{key}={format_value(value)}" for key, value in point.items()) for point in points)
