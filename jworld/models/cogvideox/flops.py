"""Floating-point operations of the CogVideoX transformer by formula."""

from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.layers.flops import Flops


def forward_flops(
    cfg: CogVideoXConfig, *, frames: int, height: int, width: int, control: bool, frame_times: bool
) -> Flops:
    """Count one forward pass of one sample; a training step of a batch B has 3 B times as much.

    Args:
      cfg: the model.
      frames: latent frames.
      height, width: of a latent frame.
      control: whether the control blocks run.
      frame_times: whether every frame has its own time.
    """
    D, times = cfg.width, frames if frame_times else 1
    size = (height // cfg.patch_size) * (width // cfg.patch_size)
    video = frames * size
    tokens = video + cfg.text_tokens
    modulation = times * cfg.time_dim * 6 * D
    linear = cfg.num_layers * (tokens * (4 * D**2 + 2 * D * int(D * cfg.mlp_ratio)) + 2 * modulation)
    attention = cfg.num_layers * tokens**2
    linear += 2 * video * cfg.channels * cfg.patch_size**2 * D + cfg.text_tokens * cfg.text_dim * D
    if cfg.output_kernel > 1:
        linear += video * (cfg.patch_size * cfg.output_kernel * cfg.channels) ** 2
    linear += times * (D * cfg.time_dim + cfg.time_dim**2 + cfg.time_dim * 2 * D)
    if control and cfg.control_dim is not None:
        layers = cfg.control_layers[1] - cfg.control_layers[0]
        linear += layers * (2 * (video + frames) * D**2 + modulation)
        linear += frames * (cfg.control_dim**2 + cfg.control_dim * D + D**2)
        attention += layers * video * frames
    return Flops(linear=2 * linear, attention=4 * attention * D)
