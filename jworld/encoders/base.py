"""What every encoder of prompts or of first frames offers, and what a data set's manifest says of it."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a manifest says of an encoder; a field that is None has no meaning for it and is left out.

    `kind` and `source` open the encoder again, as "kind:source" (kind "stored": with `read_embeddings`). `family` says
    which model's states these are, `dim` their width and `tokens` how many rows one prompt has at most (an image:
    exactly). `hash` tells two sets of weights apart, `dtype` is what they were run in.
    """

    kind: str
    family: str
    dim: int
    tokens: int | None = None
    source: str | None = None
    hash: str | None = None
    dtype: str | None = None


class Encoder:
    """Something that a manifest can name."""

    entry: Entry

    @property
    def family(self) -> str:
        return self.entry.family

    @property
    def dim(self) -> int:
        return self.entry.dim

    def manifest_entry(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self.entry).items() if value is not None}


class TextEncoder(Encoder, abc.ABC):
    """Prompts -> states."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Per prompt float32 [S_i, D], S_i its true length: what is left out is padding that no model attends to."""


class ImageEncoder(Encoder, abc.ABC):
    """Images -> states."""

    @abc.abstractmethod
    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] of any size -> float32 [B, V, D]."""
