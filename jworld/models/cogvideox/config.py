"""Hyper-parameters of the CogVideoX transformer with the control blocks of The Matrix."""

import dataclasses
from typing import Annotated, Literal

from jworld.models.layers import joining
from jworld.models.layers.config import TransformerConfig
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideoXConfig(TransformerConfig):
    """Hyper-parameters, by default of CogVideoX-2B: 1.69B parameters, 2.01B with the control blocks of The Matrix.

    Source: the transformer's config.json of CogVideoX-2B, and The Matrix `stage2/cogvideox/transformer.py`.

    Attributes:
      channels: latent channels C.
      patch_size: latent pixels per token in height and width; one latent frame in time.
      mlp_ratio: inner width of an MLP, as a multiple of D.
      time_dim: width of the time embedding.
      text_dim, text_tokens: width and number of the text encoder's states; positions of the video begin after them.
      spatial_scale, temporal_scale: divisors of the positions in the sinusoids.
      norm_eps: epsilon of the norms.
      control_dim: width of a control vector, one per latent frame; None for a model without control.
      control_layers: first layer that a control block follows, and the layer after the last one.
      guidance_dim: width of an embedded guidance scale added to the time, for a student distilled with guidance; None
        for none, as published.
      prediction: what the last layer predicts: "velocity", v as published, or the "clean" latents, from which v
        follows. A network that is narrower than a token's numbers cannot pass on their noise, which v needs.
      output_kernel: size of a convolution over the predicted clean latents, which joins neighboring tokens; 1 is none,
        as published.
    """

    channels: ranges.Size = 16
    patch_size: ranges.Patch = 2
    width: ranges.Size = 1920
    num_heads: ranges.Size = 30
    num_layers: ranges.Layers = 30
    mlp_ratio: ranges.MlpRatio = 4.0
    time_dim: ranges.Size = 512
    text_dim: ranges.Size = 4096
    text_tokens: ranges.Size = 226
    spatial_scale: ranges.Positive = 1.875
    temporal_scale: ranges.Positive = 1.0
    norm_eps: ranges.Epsilon = 1e-5
    control_dim: ranges.Size | None = None
    control_layers: tuple[ranges.LayersOrZero, ranges.LayersOrZero] = (15, 30)
    guidance_dim: ranges.Size | None = None
    prediction: Literal["velocity", "clean"] = "velocity"
    output_kernel: Annotated[int, ranges.Range(1, 7)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of 16 for the sines of three axes")
        joining.check(self.prediction, self.output_kernel)
        start, stop = self.control_layers
        if self.control_dim is not None and not 0 <= start < stop <= self.num_layers:
            raise ValueError(f"control_layers {self.control_layers} must be a part of the {self.num_layers} layers")
