"""Interfaces of the encoders of prompts and first frames, and their entries in manifests."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Entry of an encoder in a manifest; fields that are None are left out.

    Attributes:
      kind: with `source`, opens the encoder as "kind:source"; "stored" is for files of `read_embeddings`.
      family: model that computes the states.
      dim: width of the states.
      tokens: rows per image, or per prompt at most.
      source: folder, hub id or file of the encoder.
      hash: identifies the weights.
      dtype: dtype of the computation.
    """

    kind: str
    family: str
    dim: int
    tokens: int | None = None
    source: str | None = None
    hash: str | None = None
    dtype: str | None = None


class Encoder:
    """Base class of encoders, with their manifest entry."""

    entry: Entry

    @property
    def family(self) -> str:
        return self.entry.family

    @property
    def dim(self) -> int:
        return self.entry.dim

    def manifest_entry(self) -> dict[str, Any]:
        """Return the entry as JSON."""
        return {key: value for key, value in dataclasses.asdict(self.entry).items() if value is not None}


class TextEncoder(Encoder, abc.ABC):
    """Encoder of prompts."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Encode prompts, each as float32 [S_i, D]; its length S_i excludes padding that no model attends to."""


class ImageEncoder(Encoder, abc.ABC):
    """Encoder of images."""

    @abc.abstractmethod
    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode images uint8 [B, H, W, 3] of any size as float32 [B, V, D]."""
