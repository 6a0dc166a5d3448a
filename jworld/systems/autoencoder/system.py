"""The autoencoder system: a video autoencoder of any family, trained from scratch on the frames of videos."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
from flax import nnx

from jworld.data import records
from jworld.evaluation import results, settings
from jworld.models.autoencoders import files, linear, network, patch
from jworld.models.autoencoders.latents import Normalization
from jworld.systems import base
from jworld.systems.autoencoder import data, evaluation, objective, overlap, transform
from jworld.utils import config as run_config
from jworld.utils import errors, ranges

#: Log variance of the posterior before training. The means start with a deviation of about 0.3 over a video, which
#: noise of deviation 1 (log variance 0) would hide.
INITIAL_LOGVAR = -4.0
#: The same for latents that start as those of a linear autoencoder, whose faint details more noise would hide.
TRANSFORM_LOGVAR = -9.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(settings.SamplesConfig):
    """The samples (`config.sample`).

    Attributes:
      clips: number of held-out clips.
      frames: frames of each clip.
    """

    clips: Annotated[int, ranges.Range(1, 10_000)] = 3
    frames: ranges.Frames = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts:
            raise ValueError("prompts are set, but an autoencoder does not read text: leave the key out")


class Autoencoder(base.BaseSystem[network.VideoAutoencoder, data.FrameFiles]):
    """Model, batch, loss and reconstructions of one run, built from its config.

    Raises:
      UserError: a key of the config is unknown, of the wrong type, or contradicts another.
    """

    sample_name: ClassVar[str] = "reconstruction"

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        run_config.require_path(config, "data.records")
        self.network, self.model_config = _network(config.model)
        self.objective = self.read(objective.ObjectiveConfig, "loss")
        self.sample = self.read(SampleConfig, "sample")
        if config.optimizer.name != "adamw":
            raise errors.UserError(
                f"config.optimizer.name is {config.optimizer.name!r}, expected 'adamw': other optimizers need "
                "matrices, and autoencoders have convolutions"
            )
        self.clip = self.read(data.ClipConfig, "data.clip")
        self._check_sizes()
        finish = None
        if isinstance(self.model_config, patch.PatchConfig):
            self._transform()
            finish = self._fit_transform
        self.data = data.DecodedVideos(config, spec=self.batch_spec(config.global_batch), finish=finish)
        self._sections["data.videos"] = self.data.videos

    @property
    def evaluation_flags(self) -> frozenset[str]:
        """See `System`: only frames are needed."""
        return frozenset()

    def _transform(self) -> linear.LinearConfig:
        settings = transform.settings(self.model_config)
        if settings is None:
            raise errors.UserError(
                f"config.model.spatial_ratio is {self.model_config.spatial_ratio}, expected 8 or 16, as the linear "
                "autoencoder has where training starts"
            )
        return settings

    def _fit_transform(self) -> None:
        console = rich.console.Console(highlight=False, soft_wrap=True)
        frames = self.data.open()
        fitted = transform.load_or_fit(frames, self._transform(), console=console)
        assert isinstance(self.model_config, patch.PatchConfig)
        transform.load_or_fit_overlap(frames, fitted, self.model_config, console=console)

    def _check_sizes(self) -> None:
        space, time = self.model_config.spatial_ratio, self.model_config.temporal_ratio
        for name, frames in (("data.clip.frames", self.clip.frames), ("sample.frames", self.sample.frames)):
            if frames <= time or frames % time != 1 % time:
                raise errors.UserError(f"config.{name} is {frames}, expected {time}k+1 and at least {time + 1}")
        if any(size % space for size in self.clip.size):
            raise errors.UserError(f"config.data.clip.size is {self.clip.size}, expected multiples of {space}")

    def init(self, rngs: nnx.Rngs) -> network.VideoAutoencoder:
        """See `System`."""
        model = self.network(self.model_config, rngs=rngs)
        bias = model.moments_bias
        if isinstance(model, patch.PatchAutoencoder):
            bias[...] = bias[...].at[self.model_config.latent_channels :].set(TRANSFORM_LOGVAR)
            # Absent only where no values are needed: before the frames are made, and when weights are read.
            folder = pathlib.Path(self.config.data.records)
            if (path := folder / transform.overlap_name(model.config)).is_file():
                model.transform.fit(linear.LinearAutoencoder.load(folder / transform.file_name(self._transform())))
                model.decoder.fit(**dataclasses.asdict(overlap.Overlap.load(path)))
        else:
            bias[...] = bias[...].at[self.model_config.latent_channels :].set(INITIAL_LOGVAR)
        return model

    def batch_spec(self, global_batch: int) -> dict[str, records.ArraySpec]:
        """See `System`."""
        width, height = self.clip.size
        shape = (global_batch, self.clip.frames, height, width, self.model_config.image_channels)
        return {"video": records.ArraySpec(shape, np.uint8, ("batch", None, None, None, None))}

    def loss(self, model: nnx.Module, batch: objective.Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `System`."""
        assert isinstance(model, network.VideoAutoencoder)
        return objective.loss(model, batch, key, self.objective)

    def step_tokens(self, global_batch: int) -> int:
        """Return the latent positions of one training step."""
        cfg, (width, height) = self.model_config, self.clip.size
        frames = 1 + (self.clip.frames - 1) // cfg.temporal_ratio
        return global_batch * frames * (height // cfg.spatial_ratio) * (width // cfg.spatial_ratio)

    def step_flops(self, global_batch: int, sizes: Any = None) -> None:
        """Return None: there is no formula for the convolutions yet, so logs have no share of the peak."""

    def make_sample(
        self, model: network.VideoAutoencoder, encoders: data.FrameFiles, config: ml_collections.ConfigDict
    ) -> results.Comparison:
        """See `System`: held-out clips and their reconstructions."""
        reconstruct = evaluation.reconstructor(model)
        return evaluation.sample(reconstruct, self.data.open(), count=self.sample.clips, frames=self.sample.frames)

    def evaluate(
        self,
        model: network.VideoAutoencoder,
        encoders: data.FrameFiles,
        config: ml_collections.ConfigDict,
        options: results.Options,
        console: rich.console.Console,
    ) -> results.Report:
        """See `System`: PSNR on held-out videos."""
        return evaluation.evaluate(model, self.data.open(), options, console)


def _network(
    section: ml_collections.ConfigDict,
) -> tuple[Callable[..., network.VideoAutoencoder], network.AutoencoderConfig]:
    """Return class and config of the network that `config.model` describes.

    The normalization of latents is the identity here; it is measured after training.
    """
    values = {"normalisation": Normalization(), **section}
    family = values.pop("family", None)
    if family not in files.NETWORKS:
        raise errors.UserError(f"config.model.family is {family!r}, expected one of {', '.join(files.NETWORKS)}")
    cls, config_type = files.NETWORKS[family]
    try:
        types = {name: jnp.dtype(values[name]) for name in ("dtype", "param_dtype") if name in values}
    except TypeError as error:
        raise errors.UserError(f"config.model: {error}: expected float32 or bfloat16") from error
    return cls, run_config.section(config_type, values | types, "model")
