"""Counts of floating-point operations by formula, for networks to add up.

A multiply-add counts as two; norms, activations, softmax and rotary positions, about 2 % of a large model, as none.
"""

from typing import NamedTuple

#: A backward pass makes two products for each of the forward pass. Recomputation under remat is not useful work.
TRAINING = 3


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
