"""What the key tables of the video autoencoders share."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters
from conversion.engine import CONV3D, Layout, Rule, Shape, patch_kernel
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


def size(shapes: Mapping[str, Shape], name: str, axis: int) -> int | None:
    """A size of a convolution's weights; None where there are none."""
    shape = shapes.get(f"{name}.weight", ())
    return shape[axis] if len(shape) > axis else None


def numbered(shapes: Mapping[str, Shape], prefix: str) -> list[int]:
    """The different numbers that follow `prefix` in the names, in order."""
    found = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    return sorted(int(number) for number in found if number.isdecimal() and len(number) < 9)


def known(**sizes: Any) -> dict[str, Any]:
    """Those that the shapes tell."""
    return {name: value for name, value in sizes.items() if value}


def scaling(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json's scaling and shift factor -> {"normalisation": ...}; empty without them."""
    fields = (Field("scaling_factor", "scale", numbers), Field("shift_factor", "shift", numbers))
    values = hyperparameters.read(config, fields, {}, where)
    return {"normalisation": Normalisation(**values)} if values else {}


def to_scaling(normalisation: Normalisation) -> dict[str, Any]:
    """The inverse of `scaling`; latents that are normalised channel by channel are left as they are there."""
    if scaling_limits(normalisation):
        normalisation = Normalisation()
    shift = {"shift_factor": normalisation.shift[0]} if normalisation.shift[0] else {}
    return {"scaling_factor": normalisation.scale[0]} | shift


def scaling_limits(normalisation: Normalisation) -> list[str]:
    """What a scaling and a shift factor cannot say."""
    if len(normalisation.shift) == len(normalisation.scale) == 1:
        return []
    return ["latents are normalised channel by channel, there by one number, so it gives them without"]
