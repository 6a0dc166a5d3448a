"""Floating-point operations of Gemma-3 by formula."""

from jworld.models.gemma3.config import Gemma3Config
from jworld.models.layers.flops import Flops


def text_flops(cfg: Gemma3Config, *, tokens: int, predictions: int) -> Flops:
    """Count the forward pass of one sequence: layers over all tokens, the head over `predictions` of them."""
    heads = cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_key_heads)
    layer = 2 * tokens * cfg.width * (heads + 3 * cfg.mlp_width)
    window = min(cfg.window, tokens)
    # A causal query attends to half of the keys on average; one with a window to all of it once it is full.
    pairs = {"full": tokens * (tokens + 1) // 2, "sliding": window * tokens - window * (window - 1) // 2}
    attention = sum(4 * pairs[kind] * cfg.num_heads * cfg.head_dim for kind in cfg.kinds)
    return Flops(cfg.num_layers * layer + 2 * predictions * cfg.width * cfg.vocabulary, attention)


def vision_flops(cfg: Gemma3Config) -> Flops:
    """Count the forward pass of one image, tower and projector."""
    patches, width = cfg.patches**2, cfg.vision_width
    layer = 2 * patches * width * (4 * width + 2 * cfg.vision_mlp_width)
    ends = 2 * patches * 3 * cfg.patch_size**2 * width + 2 * cfg.image_tokens * width * cfg.width
    return Flops(cfg.vision_layers * layer + ends, cfg.vision_layers * 4 * patches**2 * width)
