"""Inverse dynamics: which motion of the camera lies between the frames of one latent.

A measure of generated videos and never part of a loss: it is trained on recorded episodes only. The network sees the
five frames from one latent to the next, small, as channels of one image.
"""

import dataclasses
import itertools
import json
import pathlib
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models import network_files
from jworld.utils import tensor_files
from jworld.utils.errors import UserError

#: Frames of one motion: the last of the latent before, and those of the latent.
FRAMES = 5
#: Classes of a move and of a turn, as in `cameras.actions`.
CLASSES = 9
#: Numbers of a motion: steps to the right and forward in world units, turn to the right in degrees.
NUMBERS = 3
_HEADER = "motion"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Hyper-parameters.

    Attributes:
      width, height: size of the images in pixels, multiples of 16.
      channels: of the first convolution; each further one halves the size.
      features: width of the features from which everything is predicted.
      scale: usual size of each number of a motion.
    """

    width: int = 64
    height: int = 48
    channels: int = 24
    features: int = 128
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if self.width % 16 or self.height % 16:
            raise UserError(f"images of {self.width}x{self.height} pixels, expected multiples of 16")


class Motion(NamedTuple):
    """Predictions for N motions: logits of the move and of the turn [N, 9], numbers [N, 3], features [N, D]."""

    move: jax.Array
    turn: jax.Array
    numbers: jax.Array
    features: jax.Array


class MotionNetwork(nnx.Module):
    """Images [N, 5, height, width, 3] in [-1, 1] -> `Motion`; float32."""

    def __init__(self, config: MotionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = [3 * FRAMES, *(config.channels * factor for factor in (1, 2, 3, 3))]
        self.convolutions = nnx.List(
            [nnx.Conv(before, after, (3, 3), strides=2, rngs=rngs) for before, after in itertools.pairwise(widths)]
        )
        cells = config.width // 16 * (config.height // 16)
        self.hidden = nnx.Linear(cells * widths[-1], config.features, rngs=rngs)
        self.head = nnx.Linear(config.features, 2 * CLASSES + NUMBERS, rngs=rngs)

    def __call__(self, images: jax.Array) -> Motion:
        x = einops.rearrange(images, "n t h w c -> n h w (t c)")
        for convolution in self.convolutions:
            x = jax.nn.gelu(convolution(x))
        features = jax.nn.gelu(self.hidden(einops.rearrange(x, "n h w c -> n (h w c)")))
        move, turn, numbers = jnp.split(self.head(features), (CLASSES, 2 * CLASSES), axis=-1)
        return Motion(move, turn, numbers * jnp.array(self.config.scale), features)


def save(model: MotionNetwork, path: str | pathlib.Path) -> None:
    """Write a network with parameters of 16 bits."""
    header = {_HEADER: json.dumps(dataclasses.asdict(model.config), sort_keys=True)}
    network_files.save(model, path, header, dtype="float16")


def load(path: str | pathlib.Path) -> MotionNetwork:
    """Load a file of `save`.

    Raises:
      UserError: the file is absent or of another kind.
    """
    fix = "give a file of scripts/train_motion.py, or train it again"
    with tensor_files.opened(path, fix=fix, name=f"motion network {path}") as file:
        fields = tensor_files.header(file, _HEADER, path, fix=fix)
    try:
        config = MotionConfig(**fields | {"scale": tuple(fields["scale"])})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a saved motion network ({error!r}): {fix}") from error
    return network_files.load(path, lambda: MotionNetwork(config, rngs=nnx.Rngs(0)), remedy="train it again")
