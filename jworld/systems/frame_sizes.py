"""Sizes of generated videos: those that fit a model, and those that its published program chooses by aspect ratio."""

import dataclasses
import math
from collections.abc import Mapping

from jworld.utils import errors

#: (width, height), in pixels or as a ratio.
Size = tuple[int, int]

#: Largest ratio of the sides of a bucket, as in HunyuanVideo-1.5.
MAX_RATIO = 4.0


def buckets(tokens: int, unit: Size) -> list[Size]:
    """Return the sizes of at most `tokens` tokens of `unit` pixels that cannot grow in both directions, widest first.

    Source: the buckets of HunyuanVideo-1.5, for example 1600 tokens of 16 x 16 pixels for "480p".
    """
    shapes = []
    for columns in range(tokens, 0, -1):
        # Heights h with columns * h <= tokens < (columns + 1) * (h + 1).
        first, last = tokens // (columns + 1), tokens // columns
        shapes += [(columns, rows) for rows in range(max(first, 1), last + 1)]
    return [
        (columns * unit[0], rows * unit[1])
        for columns, rows in shapes
        if tokens < (columns + 1) * (rows + 1) and max(columns, rows) <= MAX_RATIO * min(columns, rows)
    ]


def nearest(sizes: Mapping[Size, Size], aspect: Size) -> Size:
    """Return the size whose key has the nearest height by width; of equally near ones the first."""
    return sizes[min(sizes, key=lambda label: abs(round(label[1] / label[0], 5) - aspect[1] / aspect[0]))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSizes:
    """The sizes that a model can generate, in pixels.

    Attributes:
      current: size of the config.
      unit: width and height of a token; sizes are multiples.
      ratio: pixels of a latent in each direction.
      tiers: published sets of sizes by name, such as "480p": ratio -> size.
      named: aspect ratios are only those of `tiers`, for a model whose current size is in one.
      most: largest size; None for no limit.
    """

    current: Size
    unit: Size
    ratio: int
    tiers: Mapping[str, Mapping[Size, Size]] = dataclasses.field(default_factory=dict)
    named: bool = False
    most: Size | None = None

    def choose(self, size: Size | str | None, aspect: Size | None) -> Size:
        """Return the size for the values of --size and --aspect.

        Raises:
          UserError: the size does not fit the model, or there is no such tier or ratio.
        """
        if isinstance(size, tuple):
            if aspect is not None:
                raise errors.UserError(
                    f"--aspect {show(aspect, ':')}: --size {show(size)} already sets it: leave one of them out"
                )
            self.check(size)
            return size
        tier = self._tier(size)
        if tier is None:
            tokens = self.current[0] // self.unit[0] * (self.current[1] // self.unit[1])
            tier = {each: each for each in buckets(tokens, self.unit)}
        elif self.named and aspect is not None and not any(_same(aspect, ratio) for ratio in tier):
            raise errors.UserError(
                f"--aspect is {show(aspect, ':')}, expected one of {', '.join(show(ratio, ':') for ratio in tier)}, "
                "or give --size WxH"
            )
        return nearest(tier, aspect or self.current)

    def check(self, size: Size) -> None:
        """Raise a `UserError` with the nearest sizes that fit if `size` does not fit the model."""
        most = self.most or size
        if not any(side % unit for side, unit in zip(size, self.unit, strict=True)) and all(
            0 < side <= limit for side, limit in zip(size, most, strict=True)
        ):
            return
        around = [
            tuple(
                min(max(rounding(side / unit), 1) * unit, limit // unit * unit)
                for side, unit, limit in zip(size, self.unit, self.most or (math.inf, math.inf), strict=True)
            )
            for rounding in (math.floor, math.ceil)
        ]
        fitting = " or ".join(dict.fromkeys(show((int(width), int(height))) for width, height in around))
        largest = f" of at most {show(self.most)}" if self.most else ""
        raise errors.UserError(
            f"--size is {show(size)}, expected multiples of {show(self.unit)} pixels{largest}: the nearest sizes are "
            f"{fitting}"
        )

    def _tier(self, name: str | None) -> Mapping[Size, Size] | None:
        """Return the tier of this name, by default the one with the current size; None if that is in none."""
        if name is None:
            return next((tier for tier in self.tiers.values() if self.current in tier.values()), None)
        if name not in self.tiers:
            expected = f"WxH or one of {', '.join(self.tiers)}" if self.tiers else "WxH, such as 832x480"
            raise errors.UserError(f"--size is {name}, expected {expected}: correct it")
        return self.tiers[name]


def show(size: Size, between: str = "x") -> str:
    """Return a size as it is written on the command line."""
    return f"{size[0]}{between}{size[1]}"


def parse(text: str, between: str) -> Size:
    """Parse "832x480" or "16:9"; a ValueError for anything else."""
    width, found, height = text.strip().lower().partition(between)
    if not found or not (width.isdecimal() and height.isdecimal()) or len(text) > 20:
        raise ValueError(text)
    if not int(width) or not int(height):
        raise ValueError(text)
    return int(width), int(height)


def _same(aspect: Size, ratio: Size) -> bool:
    return aspect[0] * ratio[1] == aspect[1] * ratio[0]
