"""Types of config values with their bounds, as `typing.Annotated`: `width: ranges.Size` is an integer from 1 to 2**20.

Every number of a config's dataclass has such a type. `config.section` and the command line check values against it,
and `check` does so for a dataclass that is made in another way. Nothing else states the bounds of a single value; a
dataclass itself checks how its values fit together.
"""

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Hashable
from typing import Annotated, Any, Literal, Protocol

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
import numpy as np


class Constraint(Protocol):
    """A condition on a value of the right type."""

    def holds(self, value: Any) -> bool:
        """Return whether a value satisfies the condition."""

    def words(self, kind: str) -> str:
        """Return the condition in words; `kind` is the type in words, such as "an integer"."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`.

    Attributes:
      least, most: bounds.
      above: `least` itself is excluded.
      below: `most` itself is excluded.
      also: numbers outside the bounds with a meaning of their own, such as -1 for the newest.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def holds(self, value: Any) -> bool:
        if value in self.also:
            return True
        over = value > self.least if self.above else value >= self.least
        under = value < self.most if self.below else value <= self.most
        return bool(over and under)

    def words(self, kind: str) -> str:
        if self.above:
            text = f"{kind} above {self.least:.10g}, {'below' if self.below else 'up to'} {self.most:.10g}"
        else:
            text = f"{kind} from {self.least:.10g} to {'below ' if self.below else ''}{self.most:.10g}"
        return " or ".join([*(f"{number:g}" for number in self.also), text])


class Pattern:
    """Text that is a regular expression."""

    def holds(self, value: Any) -> bool:
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError):
            return False
        return True

    def words(self, kind: str) -> str:
        del kind
        return "a regular expression, such as .*"


class NotEmpty:
    """Text that names something: an empty path would be the current folder."""

    def holds(self, value: Any) -> bool:
        return bool(value.strip())

    def words(self, kind: str) -> str:
        del kind
        return "a path"


class FloatType:
    """Name of a dtype for weights and activations, or the dtype itself."""

    NAMES = ("bfloat16", "float16", "float32", "float64")

    def holds(self, value: Any) -> bool:
        try:
            return value is not None and np.dtype(value).name in self.NAMES
        except TypeError:
            return False

    def words(self, kind: str) -> str:
        del kind
        return f"one of {', '.join(map(repr, self.NAMES))}"


#: The largest integer that arrays of indices and counters hold.
LARGEST = 2**31 - 1
#: The largest number of a weight, scale or distance that has a use.
MOST = 1e9

Count = Annotated[int, Range(1, LARGEST)]
CountOrZero = Annotated[int, Range(0, LARGEST)]
#: Length of an array's axis.
Size = Annotated[int, Range(1, 2**20)]
SizeOrZero = Annotated[int, Range(0, 2**20)]
Layers = Annotated[int, Range(1, 4096)]
LayersOrZero = Annotated[int, Range(0, 4096)]
#: Id of a token.
Index = Annotated[int, Range(0, 2**24)]
#: Random seeds of JAX, NumPy and Grain alike.
Seed = Annotated[int, Range(0, 2**32 - 1)]
#: Pixels along a side of an image.
Pixels = Annotated[int, Range(1, 16384)]
PixelsOrZero = Annotated[int, Range(0, 16384)]
#: Pixels or frames per latent.
Ratio = Annotated[int, Range(1, 256)]
#: Size of an axis of the mesh; -1 takes the remaining devices.
MeshAxis = Annotated[int, Range(1, 2**20, also=(-1,))]
Number = Annotated[float, Range(-MOST, MOST)]
Positive = Annotated[float, Range(0, MOST, above=True)]
PositiveOrZero = Annotated[float, Range(0, MOST)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
ShareAboveZero = Annotated[float, Range(0, 1, above=True)]
Epsilon = Annotated[float, Range(0, 1, above=True)]
Minutes = Annotated[float, Range(0, 1e6)]
FramesPerSecond = Annotated[float, Range(0, 1000, above=True)]
#: Scale of classifier-free guidance.
Guidance = Annotated[float, Range(0, 1000)]
#: Shift of diffusion times towards noise.
Shift = Annotated[float, Range(0, 1000, above=True)]
#: Mean of a logit or logarithm.
Logit = Annotated[float, Range(-100, 100)]
#: Denoising steps, of at most all timesteps.
Steps = Annotated[int, Range(1, 1000)]
#: Latent pixels of a patch along an axis.
Patch = Annotated[int, Range(1, 64)]
#: Inner width of an MLP, as a multiple of the model's.
MlpRatio = Annotated[float, Range(0, 256, above=True)]
#: Base of rotary frequencies.
RopeTheta = Annotated[float, Range(1, 1e12)]
Frames = Annotated[int, Range(1, 1_000_000)]
DType = Annotated[Any, FloatType()]
Regex = Annotated[str, Pattern()]
Path = Annotated[str, NotEmpty()]


def hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields with their conditions."""
    return _hints(cls)


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    assert isinstance(cls, type)
    all_hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: all_hints[field.name] for field in dataclasses.fields(cls)}


def check(section: Any) -> None:
    """Raise a ValueError that names the first field of a dataclass whose value is outside its bounds.

    Types are checked where a config is read; a field without conditions or choices may hold anything here.
    """
    for name, hint in hints(type(section)).items():
        value = getattr(section, name)
        if is_bounded(hint) and not fits(as_tuple(value), hint):
            raise ValueError(f"{name}: found {found(value)}, expected {describe(hint)}")


def found(value: Any) -> str:
    """Return a value for an error, shortened."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def is_bounded(hint: Any) -> bool:
    """Return whether a type, or a part of it, has conditions or choices."""
    chosen = hasattr(hint, "__metadata__") or typing.get_origin(hint) is Literal
    return chosen or any(map(is_bounded, typing.get_args(hint)))


def unwrapped(hint: Any) -> Any:
    """Return a type without the conditions on the outside."""
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def as_tuple(value: Any) -> Any:
    """Return a value with every list in it as a tuple."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is one of a type; an integer is also a number, and numbers are finite."""
    if hasattr(hint, "__metadata__"):
        return fits(value, hint.__origin__) and all(condition.holds(value) for condition in hint.__metadata__)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return isinstance(value, str | int | float | bool) and value in arguments
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint in (None, types.NoneType) else isinstance(value, hint)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def describe(hint: Any) -> str:
    """Return a type in words, such as "an integer from 1 to 4096 or None"."""
    if hasattr(hint, "__metadata__"):
        return functools.reduce(
            lambda kind, condition: str(condition.words(kind)), hint.__metadata__, describe(hint.__origin__)
        )
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}, such as {','.join(map(_example, arguments))}{_each(arguments)}"
    if tuple in (origin, hint):
        return f"a list such as {_example(hint)}{_each(arguments)}"
    if hint in (None, types.NoneType):
        return "None"
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    return words.get(hint, "any value" if hint is Any else getattr(hint, "__name__", str(hint)))


def _each(arguments: tuple[Any, ...]) -> str:
    """Return the conditions of a list's entries in words, "" without any."""
    bounded = dict.fromkeys(describe(argument) for argument in arguments if hasattr(argument, "__metadata__"))
    return f", each {' or '.join(bounded)}" if bounded else ""


def _example(hint: Any) -> str:
    """Return a value of a type as one writes it on the command line."""
    conditions = getattr(hint, "__metadata__", ())
    hint = unwrapped(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if tuple in (origin, hint):
        inner = arguments or (int, ...)
        items = (inner[0], inner[0]) if inner[-1] is Ellipsis else inner
        return ",".join(f"({_example(item)})" if typing.get_origin(item) is tuple else _example(item) for item in items)
    examples: dict[Any, tuple[Any, ...]] = {int: (1, 16), float: (0.5, 1.0, 90.0), bool: (True,)}
    fitting = [value for value in examples.get(hint, ()) if all(condition.holds(value) for condition in conditions)]
    return str(fitting[0]) if fitting else "text"
