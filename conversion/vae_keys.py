"""Shared parts of the key tables of the video autoencoders."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters
from conversion.engine import CONV3D, Layout, Rule, Shape, patch_kernel
from conversion.hyperparameters import Field
from jworld.models.autoencoders.latents import Normalization

#: Convolution of one pixel (and frame) -> linear layer.
PIXEL2D, PIXEL3D = patch_kernel((1, 1)), patch_kernel((1, 1, 1))


def conv(source: str, target: str, layout: Layout = CONV3D) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")]


def sizes(value: Any) -> tuple[int, ...] | None:
    """Return a config.json's list of positive integers, None for anything else."""
    fits = isinstance(value, list) and value and all(type(size) is int and size > 0 for size in value)
    return tuple(value) if fits else None


def flags(value: Any) -> tuple[bool, ...] | None:
    """Return a config.json's list of booleans, None for anything else."""
    return tuple(value) if isinstance(value, list) and all(type(flag) is bool for flag in value) else None


def numbers(value: Any) -> tuple[float, ...] | None:
    """Return a config.json's number or list of numbers as a tuple, None for anything else."""
    values = value if isinstance(value, list) else [value]
    fits = values and all(type(number) in (int, float) for number in values)
    return tuple(float(number) for number in values) if fits else None


def size(shapes: Mapping[str, Shape], name: str, axis: int) -> int | None:
    """Return one size of a convolution's weights, None if it does not exist."""
    shape = shapes.get(f"{name}.weight", ())
    return shape[axis] if len(shape) > axis else None


def numbered(shapes: Mapping[str, Shape], prefix: str) -> list[int]:
    """Return the different numbers that follow `prefix` in the names, in order."""
    found = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    return sorted(int(number) for number in found if number.isdecimal() and len(number) < 9)


def known(**sizes: Any) -> dict[str, Any]:
    """Return the sizes that are known."""
    return {name: value for name, value in sizes.items() if value}


def scaling(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the field `normalisation` for a config.json's scaling and shift factor, {} without them."""
    fields = (Field("scaling_factor", "scale", numbers), Field("shift_factor", "shift", numbers))
    values = hyperparameters.read(config, fields, {}, where)
    return {"normalisation": Normalization(**values)} if values else {}


def to_scaling(normalisation: Normalization) -> dict[str, Any]:
    """Return the entries of config.json: the inverse of `scaling`, without normalization per channel."""
    if scaling_limits(normalisation):
        normalisation = Normalization()
    shift = {"shift_factor": normalisation.shift[0]} if normalisation.shift[0] else {}
    return {"scaling_factor": normalisation.scale[0]} | shift


def scaling_limits(normalisation: Normalization) -> list[str]:
    """Return what a scaling and a shift factor cannot express."""
    if len(normalisation.shift) == len(normalisation.scale) == 1:
        return []
    return ["latents are normalized per channel, there by one number, so it returns them without normalization"]
