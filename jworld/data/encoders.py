"""What turns a user's first frame and prompt into the model's inputs, as described by a data set's manifest."""

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np

from jworld.data import images, records, text
from jworld.errors import UserError
from jworld.models.autoencoders import linear

FAMILIES = {
    "autoencoder": linear.FAMILY,
    "text_encoder": text.HASHED_WORDS_FAMILY,
    "vision_encoder": images.THUMBNAIL_FAMILY,
}


@dataclasses.dataclass(frozen=True)
class Encoders:
    """The autoencoder of a data set and its text and image encoders; `manifest` is the data set's."""

    autoencoder: linear.LinearAutoencoder
    manifest: dict[str, Any]

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Encoders":
        """From a folder of records, or from what `copy` wrote."""
        directory = pathlib.Path(directory)
        manifest = records.read_manifest(directory)
        if not cls.supports(manifest):
            raise UserError(
                f"{directory / records.MANIFEST} names encoders that jworld does not have, expected {FAMILIES}: "
                "use a data set made by python -m jworld.precompute"
            )
        return cls(linear.LinearAutoencoder.load(directory / records.AUTOENCODER_FILE), manifest)

    @staticmethod
    def supports(manifest: dict[str, Any]) -> bool:
        """Whether this program has the encoders that a manifest names."""
        return all(manifest[key]["family"] == family for key, family in FAMILIES.items())

    @staticmethod
    def copy(source: pathlib.Path, target: pathlib.Path) -> None:
        """Copy manifest and autoencoder, all that sampling needs of a data set."""
        target.mkdir(parents=True, exist_ok=True)
        for name in (records.AUTOENCODER_FILE, records.MANIFEST):
            shutil.copyfile(source / name, target / name)

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        width, height = self.manifest["image_size"]
        return width, height

    @property
    def fps(self) -> float:
        return self.manifest["fps"]

    def image(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] of any size -> its latent [1, h, w, C] and vision states [V, Dv], float32."""
        width, height = self.image_size
        frame = images.resize(frame, width=width, height=height)
        return np.asarray(self.autoencoder.encode(frame[None])), images.thumbnail_tokens(frame)

    def prompt(self, prompt: str) -> np.ndarray:
        """Text states [S, Dt], float32."""
        return text.hashed_words(prompt, dim=self.manifest["text_encoder"]["dim"])
