"""What the key tables of the video autoencoders share."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters
from conversion.engine import CONV3D, Layout, Rule, patch_kernel
from conversion.hyperparameters import Field
from jworld.models.autoencoders.latents import Normalisation

#: Convolution of one pixel (and frame) -> linear layer.
PIXEL2D, PIXEL3D = patch_kernel((1, 1)), patch_kernel((1, 1, 1))


def conv(source: str, target: str, layout: Layout = CONV3D) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")]


def sizes(value: Any) -> tuple[int, ...] | None:
    """A config.json's list of positive integers; None for anything else."""
    fits = isinstance(value, list) and value and all(type(size) is int and size > 0 for size in value)
    return tuple(value) if fits else None


def flags(value: Any) -> tuple[bool, ...] | None:
    """A config.json's list of truth values; None for anything else."""
    return tuple(value) if isinstance(value, list) and all(type(flag) is bool for flag in value) else None


def numbers(value: Any) -> tuple[float, ...] | None:
    """A config.json's list of numbers, or one of them; None for anything else."""
    values = value if isinstance(value, list) else [value]
    fits = values and all(type(number) in (int, float) for number in values)
    return tuple(float(number) for number in values) if fits else None


def scaling(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json's scaling and shift factor -> {"normalisation": ...}; empty without them."""
    fields = (Field("scaling_factor", "scale", numbers), Field("shift_factor", "shift", numbers))
    values = hyperparameters.read(config, fields, {}, where)
    return {"normalisation": Normalisation(**values)} if values else {}
