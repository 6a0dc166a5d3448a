"""Hyper-parameters of the HunyuanVideo-1.5 transformer, checked at initialization."""

import dataclasses
from typing import Annotated, Literal

from jworld.models.layers import joining
from jworld.models.layers.config import TransformerConfig
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class HunyuanConfig(TransformerConfig):
    """Hyper-parameters, by default of the published transformer: 8.33B parameters, 8.56B with actions and cameras.

    Source: the configuration of the published checkpoints, HY-WorldPlay and HunyuanVideo-1.5.

    Attributes:
      channels: latent channels C of the video; the input has 2C + 1 (noisy, condition, mask).
      patch_size: latent pixels (time, height, width) per token; time must be 1.
      mlp_ratio: inner width of an MLP, as a multiple of D.
      rope_dims: channels of a head that encode time, height and width; they sum to the head size.
      rope_theta: base of the rotary frequencies.
      refiner_layers: layers that refine the text states.
      text_dim, glyph_dim, vision_dim: widths of the conditioning encoders; glyph_dim None omits the glyph input.
      glyph_hidden, glyph_out: widths inside the glyph projection.
      actions: WorldPlay's action embedding and camera attention; False is the plain HunyuanVideo-1.5.
      prediction: what the last layer predicts: the "velocity", as published, or the "clean" latents, from which the
        velocity follows. Clean latents vary in few directions and noise in all, so a token that holds more numbers than
        the network is wide can only be predicted clean (Li & He 2025, arXiv 2511.13720).
      references: condition every latent on the earlier one with the nearest camera, from which clean latents may be
        copied; as published (False), only the first latent of a video has such a condition.
      output_kernel: size of a convolution over the predicted clean latents, which joins neighboring tokens; 1 is none,
        as published.
      step_sizes: a further input, the size of the denoising step, as shortcut models have (arXiv 2410.12557); as
        published (False), the prediction does not depend on it. The input starts without effect, so weights without it
        can be continued.
    """

    channels: ranges.Size = 32
    patch_size: tuple[ranges.Patch, ranges.Patch, ranges.Patch] = (1, 1, 1)
    width: ranges.Size = 2048
    num_heads: ranges.Size = 16
    num_layers: ranges.Layers = 54
    mlp_ratio: ranges.MlpRatio = 4.0
    rope_dims: tuple[ranges.SizeOrZero, ranges.SizeOrZero, ranges.SizeOrZero] = (16, 56, 56)
    rope_theta: ranges.RopeTheta = 256.0
    refiner_layers: ranges.LayersOrZero = 2
    text_dim: ranges.Size = 3584
    glyph_dim: ranges.Size | None = 1472
    glyph_hidden: ranges.Size = 2048
    glyph_out: ranges.Size = 2048
    vision_dim: ranges.Size = 1152
    actions: bool = True
    prediction: Literal["velocity", "clean"] = "velocity"
    references: bool = False
    output_kernel: Annotated[int, ranges.Range(1, 7)] = 1
    step_sizes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.rope_dims) != self.head_dim or any(dim % 2 for dim in self.rope_dims):
            raise ValueError(f"rope_dims {self.rope_dims} must be even and sum to the head size {self.head_dim}")
        if self.actions and self.head_dim % 4:
            raise ValueError(f"head size {self.head_dim} must be a multiple of 4 for the camera attention")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size} must have 1 in time: actions are per latent frame")
        joining.check(self.prediction, self.output_kernel)
        if self.references and self.prediction != "clean":
            raise ValueError(f"prediction is {self.prediction!r}, but references need 'clean': latents are copied")
        if self.references and not self.actions:
            raise ValueError("references need actions: they are found by cameras")
