"""Floating-point operations of the transformer by formula, the reference for measured speeds.

Linear products include those with the 4x4 matrices of the cameras.
"""

from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.layers.flops import Flops

#: Number of sinusoids in `ScalarEmbedding`.
_FREQUENCIES = 256


def forward_flops(
    cfg: HunyuanConfig,
    *,
    frames: int,
    tokens_per_frame: int,
    text_tokens: int,
    glyph_tokens: int = 0,
    vision_tokens: int = 0,
    chunk_frames: int | None,
) -> Flops:
    """Count one forward pass of one sample; a training step of a batch B has 3 B times as much.

    Args:
      cfg: the model.
      frames: latent frames.
      tokens_per_frame: tokens of each.
      text_tokens, glyph_tokens, vision_tokens: of the conditioning, padding included.
      chunk_frames: latent frames per chunk of chunk-causal attention, or None for full attention.
    """
    image, text = frames * tokens_per_frame, text_tokens + glyph_tokens + vision_tokens
    words = text_pass_flops(cfg, text_tokens=text_tokens, glyph_tokens=glyph_tokens, vision_tokens=vision_tokens)
    if chunk_frames is None:
        alone = image_pass_flops(cfg, frames=frames, tokens_per_frame=tokens_per_frame, cached_tokens=text)
        # With full attention, text also attends to the image.
        return words.plus(alone).plus(Flops(0, 4 * cfg.width * cfg.num_layers * text * image))
    linear = cfg.num_layers * _image_weights(cfg, frames, image) + _embedding_weights(cfg, frames, image)
    chunk, branches = chunk_frames * tokens_per_frame, 2 if cfg.actions else 1
    pairs = cfg.num_layers * branches * sum(chunk * (text + end) for end in range(chunk, image + 1, chunk))
    return words.plus(Flops(linear=2 * linear, attention=4 * pairs * cfg.width))


def text_pass_flops(cfg: HunyuanConfig, *, text_tokens: int, glyph_tokens: int = 0, vision_tokens: int = 0) -> Flops:
    """Count `HunyuanTransformer.text_cache` of one sample."""
    text = text_tokens + glyph_tokens + vision_tokens
    linear = cfg.num_layers * (text * _token_weights(cfg) + 6 * cfg.width**2)
    linear += _text_weights(cfg, text_tokens, glyph_tokens, vision_tokens) + (_FREQUENCIES + cfg.width) * cfg.width
    pairs = cfg.num_layers * text**2 + cfg.refiner_layers * text_tokens**2
    return Flops(linear=2 * linear, attention=4 * pairs * cfg.width)


def image_pass_flops(cfg: HunyuanConfig, *, frames: int, tokens_per_frame: int, cached_tokens: int) -> Flops:
    """Count `HunyuanTransformer.with_cache` of one sample.

    Frames attend to `cached_tokens` keys and to each other.
    """
    image = frames * tokens_per_frame
    linear = cfg.num_layers * _image_weights(cfg, frames, image) + _embedding_weights(cfg, frames, image)
    branches = 2 if cfg.actions else 1
    pairs = cfg.num_layers * branches * image * (cached_tokens + image)
    return Flops(linear=2 * linear, attention=4 * pairs * cfg.width)


def _token_weights(cfg: HunyuanConfig) -> int:
    """Count the multiply-adds of one token in one layer: q, k, v, output and MLP."""
    return 4 * cfg.width**2 + 2 * cfg.width * int(cfg.width * cfg.mlp_ratio)


def _image_weights(cfg: HunyuanConfig, frames: int, image: int) -> int:
    """Count the multiply-adds of the image stream in one layer: tokens, modulation per frame, cameras."""
    # Cameras: an output projection, and 4 products per channel for q, k, v and the output.
    camera = cfg.width**2 + 16 * cfg.width if cfg.actions else 0
    return image * (_token_weights(cfg) + camera) + frames * 6 * cfg.width**2


def _embedding_weights(cfg: HunyuanConfig, frames: int, image: int) -> int:
    """Count the multiply-adds of input and output patches, of scalars per frame, and of the last modulation."""
    scalars = frames * (1 + cfg.actions + cfg.step_sizes) * (_FREQUENCIES + cfg.width) * cfg.width
    # In: noisy latents, condition, mask. Out: latents, and the gate of references.
    patch = (3 * cfg.channels + 1 + cfg.channels * cfg.references) * cfg.width
    if cfg.output_kernel > 1:
        patch += (cfg.output_kernel * cfg.channels) ** 2
    patch *= cfg.patch_size[1] * cfg.patch_size[2]
    return image * patch + scalars + frames * 2 * cfg.width**2


def _text_weights(cfg: HunyuanConfig, text: int, glyph: int, vision: int) -> int:
    """Count the multiply-adds of the refiner and of the glyph and vision projections."""
    time = (_FREQUENCIES + cfg.width) * cfg.width
    pooled = (cfg.text_dim + cfg.width) * cfg.width
    blocks = cfg.refiner_layers * (text * _token_weights(cfg) + 2 * cfg.width**2)
    total = time + pooled + text * cfg.text_dim * cfg.width + blocks
    if cfg.glyph_dim is not None:
        glyph_weights = cfg.glyph_dim * cfg.glyph_hidden + cfg.glyph_hidden * cfg.glyph_out + cfg.glyph_out * cfg.width
        total += glyph * glyph_weights
    return total + vision * (cfg.vision_dim**2 + cfg.vision_dim * cfg.width)
