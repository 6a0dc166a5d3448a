"""Hyper-parameters of TheWorld, checked at birth."""

import dataclasses
from typing import Any, Literal

from jworld.models.autoencoders.latents import Normalisation
from jworld.models.autoencoders.wan import NORMALISATION, WanConfig
from jworld.models.cosmos.config import CosmosConfig
from jworld.models.gemma3.config import Gemma3Config

Architecture = Literal["mlp", "mlp_no_final_gelu", "linear"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What Gemma-3 gets of the world: the latents of one image, and of predicted frames behind it.

    Source: theworld, `python/theworld/modeling`.

    Attributes:
      compat: "original" has what published checkpoints were trained with: pixels in 0..255 and latents as they come
        out of the autoencoder, a GELU behind the projection, images of the prompt read causally, a loss on all tokens.
      layout: a token is a place with all channels ("spatial") or a channel with all places ("channel").
      architecture: of the projection; None for that of `compat`.
      image_size: pixels of the image's sides.
      latent_channels: C.
      autoencoder_width, autoencoder_multipliers, autoencoder_blocks, autoencoder_time_levels: of the Wan autoencoder,
        which is part of the model.
      codec: file of a linear codec, whose weights are part of the model in the place of that; "" for none.
      codec_ratio: pixels per latent of the codec.
      start_token, end_token: ids of the brackets around the world's tokens.
      steps: latent frames that are predicted from the image (world steps); the original has none.
      predictor: folder of the network that predicts them: a run of Cosmos Video2World, or imported weights.
      predictor_steps: of the solver that predicts.
    """

    compat: Literal["", "original"] = ""
    layout: Literal["spatial", "channel"] = "spatial"
    architecture: Architecture | None = None
    image_size: int = 512
    latent_channels: int = 16
    autoencoder_width: int = 96
    autoencoder_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    autoencoder_blocks: int = 2
    autoencoder_time_levels: tuple[bool, ...] = (False, True, True)
    codec: str = ""
    codec_ratio: int = 16
    start_token: int = 262145
    end_token: int = 262146
    steps: int = 0
    predictor: str = ""
    predictor_steps: int = 4

    @property
    def original(self) -> bool:
        """Whether it behaves as the published checkpoints' program does."""
        return self.compat == "original"

    @property
    def projection(self) -> Architecture:
        """The architecture, whether it was named or follows from `compat`."""
        return self.architecture or ("mlp" if self.original else "mlp_no_final_gelu")

    @property
    def ratio(self) -> int:
        """Pixels per latent, in height and width."""
        return self.codec_ratio if self.codec else self.autoencoder().spatial_ratio

    @property
    def side(self) -> int:
        """Latents along a side of the image."""
        return self.image_size // self.ratio

    @property
    def places(self) -> int:
        """Of a frame of latents."""
        return self.side**2

    @property
    def features(self) -> int:
        """Numbers of a token before the projection."""
        return self.latent_channels if self.layout == "spatial" else self.places

    @property
    def frames(self) -> int:
        """Latent frames: the image, and what comes next."""
        return 1 + self.steps

    @property
    def tokens(self) -> int:
        """Tokens between the brackets, of all frames."""
        return self.frames * (self.places if self.layout == "spatial" else self.latent_channels)

    def autoencoder(self, **settings: Any) -> WanConfig:
        """Of the Wan autoencoder, with further settings."""
        return WanConfig(
            channels=self.autoencoder_width,
            multipliers=self.autoencoder_multipliers,
            blocks=self.autoencoder_blocks,
            time_levels=self.autoencoder_time_levels,
            latent_channels=self.latent_channels,
            normalisation=NORMALISATION if self.latent_channels == len(NORMALISATION.shift) else Normalisation(),
            # One frame.
            chunk=None,
            **settings,
        )

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.image_size % self.ratio:
            raise ValueError(f"image_size is {self.image_size}, expected a multiple of {self.ratio} pixels, a latent")
        if self.codec and self.original:
            raise ValueError(f"codec is {self.codec!r}, but the original has none: leave it or compat out")
        if self.steps < 0 or self.predictor_steps < 1:
            raise ValueError(
                f"steps is {self.steps} and predictor_steps {self.predictor_steps}, expected at least 0 and at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TheWorldConfig:
    """Gemma-3, and what it gets of the world; None is plain Gemma-3.

    Attributes:
      gemma: the language model and its vision tower.
      world: what it gets of the world, or None.
      predictor: the network that predicts what comes next; with `world.steps`, and None without.
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
