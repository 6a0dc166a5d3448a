"""Hyper-parameters of the Cosmos-Predict2 transformer."""

import dataclasses
from typing import Annotated, Any, Literal

from jworld.models.layers import joining
from jworld.models.layers.config import TransformerConfig
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosConfig(TransformerConfig):
    """Hyper-parameters, by default of the published Video2World transformer of 2B parameters.

    Source: cosmos-predict2, `configs/base/config_video2world.py` and the classes `MiniTrainDIT`, `MinimalV1LVGDiT`,
    `ActionConditionedMinimalV1LVGDiT` and `MultiViewDiT`.

    Attributes:
      channels: latent channels C of the video.
      patch_size: latent pixels (time, height, width) per token; time must be 1.
      mlp_ratio: inner width of an MLP, as a multiple of D.
      text_dim: width of the text encoder's states.
      text_width: width of cross-attention's context; if it differs from `text_dim`, a layer with GELU comes between.
      modulation_rank: inner width of the modulations (AdaLN-LoRA), which then share one more term made from the time;
        None for a full matrix in each.
      rope_scale: extrapolation factor of the rotary positions: (time, height, width).
      fps_modulation: rotary time positions count at `base_fps` per second for every frame rate.
      base_fps: frames per second at which rotary time positions count.
      time_scale: factor of the times in 0..1 before they are embedded.
      max_size: largest number of latent frames, height and width.
      absolute_positions: a learned position is added before every block.
      condition_mask: an input channel marks the conditioning frames.
      padding_mask: an input channel marks the pixels outside the image.
      action_dim: numbers in the action of a clip, or None without actions.
      views: cameras with an embedding, or None for one camera without.
      view_dim: width of that embedding, which is concatenated to the input.
      view_frames: latent frames of one view.
      prediction: what the last layer predicts: the "velocity", as published, or the "clean" latents, from which the
        velocity follows. Clean latents vary in few directions and noise in all, so a token that holds more numbers than
        the network is wide can only be predicted clean (Li & He 2025, arXiv 2511.13720).
      output_kernel: size of a convolution over the predicted clean latents, which joins neighboring tokens; 1 is none,
        as published.
    """

    channels: ranges.Size = 16
    patch_size: tuple[ranges.Patch, ranges.Patch, ranges.Patch] = (1, 2, 2)
    width: ranges.Size = 2048
    num_heads: ranges.Size = 16
    num_layers: ranges.Layers = 28
    mlp_ratio: ranges.MlpRatio = 4.0
    text_dim: ranges.Size = 1024
    text_width: ranges.Size = 1024
    modulation_rank: ranges.Size | None = 256
    rope_scale: tuple[ranges.Positive, ranges.Positive, ranges.Positive] = (1.0, 3.0, 3.0)
    fps_modulation: bool = False
    base_fps: ranges.FramesPerSecond = 24.0
    time_scale: ranges.Positive = 1.0
    max_size: tuple[ranges.Size, ranges.Size, ranges.Size] = (128, 240, 240)
    absolute_positions: bool = False
    condition_mask: bool = True
    padding_mask: bool = True
    action_dim: ranges.Size | None = None
    views: ranges.Size | None = None
    view_dim: ranges.Size = 7
    view_frames: ranges.Size = 8
    prediction: Literal["velocity", "clean"] = "velocity"
    output_kernel: Annotated[int, ranges.Range(1, 7)] = 1

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that encode time, height and width; time has the remainder of the division by three."""
        space = self.head_dim // 6 * 2
        return self.head_dim - 2 * space, space, space

    @property
    def in_channels(self) -> int:
        """Channels of the patch embedding: latents, condition mask, padding mask, view."""
        view = 0 if self.views is None else self.view_dim
        return self.channels + self.condition_mask + self.padding_mask + view

    @property
    def max_patches(self) -> tuple[int, int, int]:
        time, height, width = (size // patch for size, patch in zip(self.max_size, self.patch_size, strict=True))
        return time, height, width

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2 or self.head_dim < 12:
            raise ValueError(f"head size {self.head_dim} must be even and at least 12 for three rotary axes")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size} must have 1 in time: times are per latent frame")
        if self.action_dim is not None and self.modulation_rank is None:
            raise ValueError("action_dim needs a modulation_rank: actions add to the modulations' common term")
        joining.check(self.prediction, self.output_kernel)


#: Sizes of the published Video2World models, by name.
PUBLISHED: dict[str, dict[str, Any]] = {
    "2b": {},
    "14b": {"width": 5120, "num_heads": 40, "num_layers": 36, "rope_scale": (20 / 24, 2.0, 2.0)},
}
