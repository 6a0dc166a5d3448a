"""Hyper-parameters of TheWorld."""

import dataclasses
from typing import Annotated, Any, Literal

from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.wan import NORMALIZATION, WanConfig
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.gemma3.config import Gemma3Config
from jworld.utils import ranges

Architecture = Literal["mlp", "mlp_no_final_gelu", "linear"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """World input of Gemma-3: the latents of one image, and of predicted frames after it.

    Source: theworld, `python/theworld/modeling`.

    Attributes:
      compat: "original" matches the training of the published checkpoints: pixels in 0..255, latents that are not
        normalized, a GELU after the projection, causal attention to images of the prompt, a loss on all tokens.
      layout: a token is a position with all channels ("spatial") or a channel with all positions ("channel").
      architecture: of the projection; None for that of `compat`.
      image_size: pixels of the image's sides.
      latent_channels: C.
      autoencoder_width, autoencoder_multipliers, autoencoder_blocks, autoencoder_time_levels: of the Wan autoencoder,
        which is part of the model.
      autoencoder_file: file of an autoencoder of any family, which replaces the Wan autoencoder in the model; "" for
        none.
      autoencoder_ratio: pixels per latent of the autoencoder of that file.
      start_token, end_token: ids of the brackets around the world's tokens.
      steps: latent frames that are predicted from the image (world steps); the original has none.
      predictor: folder of the network that predicts them: a run of Cosmos Video2World, or imported weights.
      predictor_steps: number of its solver steps.
    """

    compat: Literal["", "original"] = ""
    layout: Literal["spatial", "channel"] = "spatial"
    architecture: Architecture | None = None
    image_size: ranges.Pixels = 512
    latent_channels: ranges.Size = 16
    autoencoder_width: ranges.Size = 96
    autoencoder_multipliers: tuple[ranges.Patch, ...] = (1, 2, 4, 4)
    autoencoder_blocks: ranges.LayersOrZero = 2
    autoencoder_time_levels: tuple[bool, ...] = (False, True, True)
    autoencoder_file: str = ""
    autoencoder_ratio: ranges.Ratio = 16
    start_token: ranges.Index = 262145
    end_token: ranges.Index = 262146
    steps: Annotated[int, ranges.Range(0, 1000)] = 0
    predictor: str = ""
    predictor_steps: ranges.Steps = 4

    @property
    def original(self) -> bool:
        """True if the model matches the published checkpoints' program."""
        return self.compat == "original"

    @property
    def projection(self) -> Architecture:
        """Architecture of the projection, explicit or from `compat`."""
        return self.architecture or ("mlp" if self.original else "mlp_no_final_gelu")

    @property
    def ratio(self) -> int:
        """Pixels per latent, in height and width."""
        return self.autoencoder_ratio if self.autoencoder_file else self.autoencoder().spatial_ratio

    @property
    def side(self) -> int:
        """Latents along a side of the image."""
        return self.image_size // self.ratio

    @property
    def places(self) -> int:
        """Positions in a frame of latents."""
        return self.side**2

    @property
    def features(self) -> int:
        """Size of a token before the projection."""
        return self.latent_channels if self.layout == "spatial" else self.places

    @property
    def frames(self) -> int:
        """Latent frames: the image, and the predicted ones."""
        return 1 + self.steps

    @property
    def tokens(self) -> int:
        """Tokens between the brackets, of all frames."""
        return self.frames * (self.places if self.layout == "spatial" else self.latent_channels)

    def autoencoder(self, **settings: Any) -> WanConfig:
        """Return the config of the Wan autoencoder, with further settings."""
        return WanConfig(
            channels=self.autoencoder_width,
            multipliers=self.autoencoder_multipliers,
            blocks=self.autoencoder_blocks,
            time_levels=self.autoencoder_time_levels,
            latent_channels=self.latent_channels,
            normalisation=NORMALIZATION if self.latent_channels == len(NORMALIZATION.shift) else Normalization(),
            # One frame.
            chunk=None,
            **settings,
        )

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.image_size % self.ratio:
            raise ValueError(f"image_size is {self.image_size}, expected a multiple of {self.ratio} pixels, a latent")
        if self.autoencoder_file and self.original:
            raise ValueError(
                f"autoencoder_file is {self.autoencoder_file!r}, but the original has none: unset it or compat"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TheWorldConfig:
    """Hyper-parameters of Gemma-3 with a world input.

    Attributes:
      gemma: the language model and its vision tower.
      world: the world input; None for plain Gemma-3.
      predictor: the network that predicts the next frames if `world.steps` is above 0, else None.
    """

    gemma: Gemma3Config
    world: WorldConfig | None
    predictor: CosmosConfig | None = None

    def __post_init__(self) -> None:
        if self.world is not None and max(self.world.start_token, self.world.end_token) >= self.gemma.vocabulary:
            raise ValueError(
                f"world.start_token {self.world.start_token} and world.end_token {self.world.end_token} must be below "
                f"the vocabulary {self.gemma.vocabulary}"
            )
