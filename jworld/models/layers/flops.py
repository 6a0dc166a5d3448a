"""Floating-point operations by formula, for networks to add up.

A multiply-add counts as two; norms, activations, softmax and rotary positions, about 2 % of a large model, as none.
"""

from collections.abc import Mapping
from typing import NamedTuple

#: (trained weights, all weights) by the first name of their paths.
Sizes = Mapping[str, tuple[int, int]]


class Flops(NamedTuple):
    """Operations of one sample.

    Attributes:
      linear: products with weights, and other products that a network counts with them.
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
    """Return the operations of a sample's forward and backward pass; recomputation under remat is not useful work.

    For each product of the forward pass, a backward pass has two: one for the gradient of the input, and one for that
    of the weights, if they are trained.

    Args:
      sample: the forward pass.
      trained: share of trained weights; their input needs a gradient.
    """
    return (2 + trained) * sample.linear + 3 * sample.attention


def trained_share(sizes: Sizes | None, *parts: str) -> float:
    """Return the trained share of the weights of `parts`, or of all parts; 1 if `sizes` is None."""
    if sizes is None:
        return 1.0
    chosen = [sizes[name] for name in parts or sizes]
    return sum(trained for trained, _ in chosen) / sum(count for _, count in chosen)
