"""Settings of the samples and evaluations of a training run."""

import dataclasses
from typing import Annotated

from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Samples of a training run, in addition to the keys of its system (`config.sample`).

    Attributes:
      interval: steps between two samples, written to samples/STEP; 0: only at the end.
      prompts: texts to sample in addition to held-out data: captions, or questions for systems that answer in text.
      images: one image file per prompt, which the sample starts from; empty: the image of the held-out data.
    """

    interval: ranges.CountOrZero = 0
    prompts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.images and len(self.images) != len(self.prompts):
            raise ValueError(
                f"there are {len(self.images)} images for {len(self.prompts)} prompts: expected one per prompt, or none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out measurements during training (`config.evaluation`).

    Attributes:
      interval: steps between two measurements, the last of which is at the end; 0: none.
      batches: held-out batches that are measured, always the same ones with the same noise.
    """

    interval: ranges.CountOrZero = 0
    batches: Annotated[int, ranges.Range(1, 100_000)] = 1

    def __post_init__(self) -> None:
        ranges.check(self)
