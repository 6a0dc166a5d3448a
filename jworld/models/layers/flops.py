"""Counts of floating-point operations by formula, for networks to add up.

A multiply-add counts as two; norms, activations, softmax and rotary positions, about 2 % of a large model, as none.
"""

from collections.abc import Mapping
from typing import NamedTuple

#: How many weights are trained, and how many there are, by the first name of their paths.
Sizes = Mapping[str, tuple[int, int]]


class Flops(NamedTuple):
    """Operations of one sample.

    Attributes:
      linear: products with weights, and what a network counts with them.
      attention: logits and weighted sums of values.
    """

    linear: int
    attention: int

    @property
    def total(self) -> int:
        return self.linear + self.attention

    def plus(self, other: "Flops", times: int = 1) -> "Flops":
        return Flops(self.linear + times * other.linear, self.attention + times * other.attention)


def training(sample: Flops, trained: float) -> float:
    """Forward and backward pass of a sample; recomputation under remat is not useful work.

    A backward pass makes two products for each of the forward pass: for the gradient of its input, and for that of its
    weights, where they are trained.

    Args:
      sample: the forward pass.
      trained: share of the weights that are trained, behind some that are or an input that needs a gradient.
    """
    return (2 + trained) * sample.linear + 3 * sample.attention


def trained_share(sizes: Sizes | None, *parts: str) -> float:
    """Of the weights of `parts`, or of all parts; 1 where no sizes are told."""
    if sizes is None:
        return 1.0
    chosen = [sizes[name] for name in parts or sizes]
    return sum(trained for trained, _ in chosen) / sum(count for _, count in chosen)
