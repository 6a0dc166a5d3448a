"""Records of latents as training data of a run: created if the recipe describes how, and checked against the model."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import ml_collections

from jworld.data import pipeline, records, training_data
from jworld.data.recording import recorder
from jworld.data.records import content, text_store
from jworld.encoders import choices, preview_decoders
from jworld.encoders import model_encoders as encoders_lib
from jworld.encoders.choices import EncoderOverrides
from jworld.encoders.model_encoders import Encoders
from jworld.precompute import demo_data
from jworld.utils import config as run_config
from jworld.utils.errors import UserError


class LatentRecords:
    """Records in `config.data.records`; recorded and encoded on first use if `config.data.recording` names a source.

    Attributes:
      expected: values that the manifest must have, by dotted key.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        expected: Mapping[str, Any],
        spec: training_data.Spec,
        transform: Callable[[text_store.TextStore, int], grain.transforms.RandomMap],
        min_frames: int,
        default_fps: float,
        fps: float | None = None,
    ) -> None:
        """Read the sections of the config.

        Args:
          config: the run's config.
          expected: values that the manifest must have, by dotted key.
          spec: arrays of a batch.
          transform: (text store, global batch) -> transform from records to examples.
          min_frames: latent frames that every clip must have.
          default_fps: frame rate of generated videos if no data set records one.
          fps: frame rate of generated videos, in place of that of the data set.
        """
        self._config = config
        self._recording = run_config.section(recorder.RecordingConfig, config.data.recording, "data.recording")
        self._encoding = run_config.section(demo_data.EncodingConfig, config.data.encoding, "data.encoding")
        self._spec, self._transform, self._min_frames = spec, transform, min_frames
        self._default_fps, self._fps = default_fps, fps
        self.expected = expected

    def prepare(self) -> None:
        """Make the records if they are absent, see `systems.base.TrainingData`."""
        model = self._config.model
        demo_data.ensure(
            self._config.data.records,
            self._recording,
            self._encoding,
            channels=model.channels,
            text_dim=model.text_dim,
        )

    def batches(self, split: str) -> pipeline.BatchIterator:
        """Return the batches of a split, see `systems.base.TrainingData`."""
        directory = pathlib.Path(self._config.data.records)
        source = records.RecordSource(directory, split, min_frames=self._min_frames)
        records.check_manifest(source.manifest, self.expected, path=directory)
        transform = self._transform(text_store.TextStore(directory, source.manifest), self._config.global_batch)
        identity = content.of_records(directory, source.manifest)
        return training_data.batches(self._config, source, transform, self._spec, split=split, content=identity)

    def keep(self, directory: pathlib.Path) -> None:
        """Copy the manifest and the encoders, see `systems.base.TrainingData`."""
        encoders_lib.copy(pathlib.Path(self._config.data.records), directory)

    def check_kept(self, directory: pathlib.Path) -> None:
        """Refuse records with latents of another autoencoder, see `systems.base.TrainingData`."""
        if (directory / records.MANIFEST).is_file():
            stored, path = records.read_manifest(directory)["autoencoder"], self._config.data.records
            expected: dict[str, Any] = {
                f"autoencoder.{key}": stored[key] for key in ("family", "hash") if key in stored
            }
            expected["views"] = self.expected.get("views")
            records.check_manifest(records.read_manifest(path), expected, path=path)

    def find_problem(self, directory: pathlib.Path) -> str:
        """Return why a sample is impossible, see `systems.base.TrainingData`."""
        manifest, given = records.read_manifest(directory), choices.from_config(self._config)
        if self._recording.source:
            return encoders_lib.find_problem(directory, manifest, given)
        return "" if given.autoencoder else encoders_lib.find_autoencoder_problem(directory, manifest)

    def encoders(
        self, directory: pathlib.Path, *, given: EncoderOverrides, mesh: jax.sharding.Mesh, stored: bool = False
    ) -> Encoders:
        """Open the encoders, see `systems.base.TrainingData`."""
        # Generation does not depend on the other arrays of the records.
        expected = {key: value for key, value in self.expected.items() if key != "arrays"}
        height, width, channels = self.expected["latent_shape"]
        preview = given.preview_decoder
        if (directory / records.MANIFEST).is_file():
            manifest = records.read_manifest(directory)
            # Before anything large is read.
            if preview is not None:
                preview_decoders.check(preview, preview_decoders.of_manifest(manifest))
            # Nor on their size.
            expected["latent_shape"] = [*manifest["latent_shape"][:2], channels]
            records.check_manifest(manifest, expected, path=directory)
            own = stored and not self._recording.source
            prompts = encoders_lib.StoredPrompts(self._config.data.records) if own else None
            opened = encoders_lib.open_set(directory, given=given, mesh=mesh, prompts=prompts)
            ratio = opened.autoencoder.spatial_ratio
            fit = dataclasses.replace(opened.fit, width=width * ratio, height=height * ratio)
            return _previewed(dataclasses.replace(opened, fit=fit, fps=self.rate(directory)), preview)
        if given == EncoderOverrides(options=given.options, preview_decoder=preview):
            raise UserError(
                f"{directory} has no {records.MANIFEST}, so the model's autoencoder and encoders are unknown: name a "
                "folder of records made for the model with --encoders, or all of them with --autoencoder, "
                "--text-encoder, --image-encoder and, if it uses glyphs, --glyph-encoder"
            )
        if preview is not None and given.autoencoder is not None:
            preview_decoders.check(preview, preview_decoders.of_file(given.autoencoder))
        return _previewed(encoders_lib.open_given(given, expected, fps=self.rate(directory), mesh=mesh), preview)

    def rate(self, directory: pathlib.Path) -> float:
        """Return the frames per second of videos that are generated with the encoders in `directory`."""
        if self._fps is not None:
            return self._fps
        if not (directory / records.MANIFEST).is_file():
            return self._default_fps
        rate: float = records.read_manifest(directory)["fps"]
        return rate

    def spatial_ratio(self, directory: pathlib.Path) -> int:
        """Return the pixels of a latent in each direction, with the encoders in `directory`."""
        if not (directory / records.MANIFEST).is_file():
            return self._encoding.spatial_ratio
        manifest = records.read_manifest(directory)
        ratio: int = manifest["image_size"][1] // manifest["latent_shape"][0]
        return ratio


def _previewed(opened: Encoders, preview: str | None) -> Encoders:
    """Return the encoders with the preview decoder of this file, if there is one."""
    if preview is None:
        return opened
    return dataclasses.replace(opened, autoencoder=preview_decoders.attached(opened.autoencoder, preview))
