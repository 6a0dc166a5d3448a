"""Floating-point operations of the Cosmos-Predict2 transformer by formula."""

import math

from jworld.models.cosmos.config import CosmosConfig
from jworld.models.layers.flops import Flops


def forward_flops(cfg: CosmosConfig, *, frames: int, height: int, width: int, text_tokens: int) -> Flops:
    """Count one forward pass of one sample; a training step of a batch B has 3 B times as much.

    Args:
      cfg: the model.
      frames: latent frames, of all views together.
      height, width: of a latent frame.
      text_tokens: text tokens of one view, padding included; padding is attended.
    """
    D, views = cfg.width, 1 if cfg.views is None else frames // cfg.view_frames
    tokens = frames * (height // cfg.patch_size[1]) * (width // cfg.patch_size[2])
    # Self-attention, queries and output of cross-attention, MLP; keys and values of the text.
    token = 6 * D**2 + 2 * D * int(D * cfg.mlp_ratio)
    text = 2 * cfg.text_width * D
    layer = tokens * token + views * text_tokens * text + 3 * frames * _modulation_weights(cfg, 3)
    linear = cfg.num_layers * layer + _outside_weights(cfg, frames, tokens, views * text_tokens)
    pairs = cfg.num_layers * tokens * (tokens + text_tokens)
    return Flops(linear=2 * linear, attention=4 * pairs * D)


def _modulation_weights(cfg: CosmosConfig, parts: int) -> int:
    if cfg.modulation_rank is None:
        return parts * cfg.width**2
    return cfg.modulation_rank * (1 + parts) * cfg.width


def _outside_weights(cfg: CosmosConfig, frames: int, tokens: int, text: int) -> int:
    """Count the multiply-adds outside of the blocks: patches, times, actions, text, last modulation."""
    D, common = cfg.width, cfg.modulation_rank is not None
    total = tokens * math.prod(cfg.patch_size) * (cfg.in_channels + cfg.channels) * D
    if cfg.output_kernel > 1:
        total += tokens * math.prod(cfg.patch_size) * (cfg.output_kernel * cfg.channels) ** 2
    total += frames * (D**2 + (3 if common else 1) * D**2 + _modulation_weights(cfg, 2))
    if cfg.text_width != cfg.text_dim:
        total += text * cfg.text_dim * cfg.text_width
    if cfg.action_dim is not None:
        hidden = int(D * cfg.mlp_ratio)
        total += 2 * cfg.action_dim * hidden + 4 * hidden * D
    return total
