"""Where the batches of a run come from: what the commands ask of a data set, and records of latents.

A system offers its data set as `system.data`; the commands know no more of it than `TrainingData`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grain
import jax
import ml_collections

from jworld import config as run_config
from jworld.data import embedded, pipeline, records, text
from jworld.data.encoders import Encoders
from jworld.errors import UserError

Spec = Mapping[str, records.ArraySpec]


class TrainingData(Protocol):
    """The data set that a config names."""

    def prepare(self) -> None:
        """Make the set where it is absent and the config says how."""

    def batches(self, split: str) -> pipeline.BatchIterator:
        """This process's batches; `UserError` where the set is absent, damaged or made for another model."""

    def keep(self, directory: pathlib.Path) -> None:
        """Leave in `directory`, that of a run, what sampling needs of the set; nothing where it cannot be sampled."""

    def check_kept(self, directory: pathlib.Path) -> None:
        """`UserError` where this set does not fit a model whose run kept `directory`."""

    def encoders(self, directory: pathlib.Path) -> Any:
        """Open what was kept: an object with `fps`, the frame rate, and what else the system samples with."""


def batches(
    config: ml_collections.ConfigDict,
    source: pipeline.Source,
    transform: grain.transforms.RandomMap,
    spec: Spec,
    *,
    split: str,
) -> pipeline.BatchIterator:
    """Batches as `config.seed`, `config.global_batch` and `config.data` want them; held-out ones in order."""
    return pipeline.make_dataset(
        source,
        transform,
        spec,
        global_batch=config.global_batch,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        shuffle=split == "train",
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


class LatentRecords:
    """Records (`config.data.records`), recorded and encoded here where `config.data.recording` names a source.

    Attributes:
      expected: what the manifest must say: dotted key -> value.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        expected: Mapping[str, Any],
        spec: Spec,
        transform: Callable[[text.TextStore, int], grain.transforms.RandomMap],
        min_frames: int,
    ) -> None:
        """`transform` makes examples of records with their text store and the global batch, `spec` describes them.

        Clips of fewer than `min_frames` latent frames are refused.
        """
        self._config = config
        self._recording = run_config.section(embedded.RecordingConfig, config.data.recording, "data.recording")
        self._encoding = run_config.section(embedded.EncodingConfig, config.data.encoding, "data.encoding")
        self._spec, self._transform, self._min_frames = spec, transform, min_frames
        self.expected = expected

    def prepare(self) -> None:
        """See `TrainingData`."""
        model = self._config.model
        embedded.ensure(
            self._config.data.records,
            self._recording,
            self._encoding,
            channels=model.channels,
            text_dim=model.text_dim,
        )

    def batches(self, split: str) -> pipeline.BatchIterator:
        """See `TrainingData`."""
        directory = pathlib.Path(self._config.data.records)
        source = records.RecordSource(directory, split, min_frames=self._min_frames)
        records.check_manifest(source.manifest, self.expected, path=directory)
        transform = self._transform(text.TextStore(directory, source.manifest), self._config.global_batch)
        return batches(self._config, source, transform, self._spec, split=split)

    def keep(self, directory: pathlib.Path) -> None:
        """See `TrainingData`."""
        data = pathlib.Path(self._config.data.records)
        if Encoders.supports(records.read_manifest(data)):
            Encoders.copy(data, directory)

    def check_kept(self, directory: pathlib.Path) -> None:
        """See `TrainingData`: another autoencoder speaks another language."""
        expected = {"autoencoder.hash": records.read_manifest(directory)["autoencoder"]["hash"]}
        path = self._config.data.records
        records.check_manifest(records.read_manifest(path), expected, path=path)

    def encoders(self, directory: pathlib.Path) -> Encoders:
        """See `TrainingData`."""
        if not (directory / records.MANIFEST).is_file():
            raise UserError(
                f"{directory} has no {records.MANIFEST}, so nothing says which autoencoder and encoders the model "
                "knows: name a folder of records made for it with --encoders, or copy one's manifest and autoencoder "
                "there"
            )
        opened = Encoders.load(directory)
        records.check_manifest(opened.manifest, self.expected, path=directory)
        return opened
