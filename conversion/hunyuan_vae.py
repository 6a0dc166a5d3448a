"""Keys of the HunyuanVideo-1.5 autoencoder: of the original (also HY-WorldPlay's) and of diffusers."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.base import Family, KeyLayout
from conversion.engine import GAMMA3D, Rule, Shape
from conversion.hyperparameters import Field
from conversion.vae_keys import PIXEL3D, conv
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Config

CLASS_NAME = "AutoencoderKLHunyuanVideo15"
_FIELDS = (
    Field("latent_channels", "latent_channels", hyperparameters.integer),
    Field("block_out_channels", "widths", vae_keys.sizes),
    Field("layers_per_block", "blocks", hyperparameters.integer),
    Field("in_channels", "image_channels", hyperparameters.integer),
    Field("out_channels", "image_channels", hyperparameters.integer),
)
ORIGINAL_FIELDS = (
    *_FIELDS,
    Field("ffactor_spatial", "spatial_ratio", hyperparameters.integer),
    Field("ffactor_temporal", "temporal_ratio", hyperparameters.integer),
)
DIFFUSERS_FIELDS = (
    *_FIELDS,
    Field("spatial_compression_ratio", "spatial_ratio", hyperparameters.integer),
    Field("temporal_compression_ratio", "temporal_ratio", hyperparameters.integer),
)
FIXED = {"downsample_match_channel": True, "upsample_match_channel": True}
#: Other arguments of the original's class, as published: the size of tiles, and no shift.
OTHERS: dict[str, Any] = {"sample_size": 256, "sample_tsize": 64, "shift_factor": None}


def _residual(source: str, target: str) -> list[Rule]:
    return [
        *(Rule(f"{source}.{norm}.gamma", f"{target}/{norm}/scale", GAMMA3D) for norm in ("norm1", "norm2")),
        *conv(f"{source}.conv1.conv", f"{target}/conv1"),
        *conv(f"{source}.conv2.conv", f"{target}/conv2"),
    ]


def _attention(source: str, target: str, names: tuple[str, str, str]) -> list[Rule]:
    rules = [
        Rule(f"{source}.norm.gamma", f"{target}/norm/scale", GAMMA3D),
        *conv(f"{source}.proj_out", f"{target}/out", PIXEL3D),
    ]
    for i, name in enumerate(names):
        rules += [
            Rule(f"{source}.{name}.weight", f"{target}/qkv/kernel", PIXEL3D, (i, 3)),
            Rule(f"{source}.{name}.bias", f"{target}/qkv/bias", part=(i, 3)),
        ]
    return rules


def _ends(coder: str) -> list[Rule]:
    return [
        *conv(f"{coder}.conv_in.conv", f"{coder}/conv_in"),
        Rule(f"{coder}.norm_out.gamma", f"{coder}/head/norm/scale", GAMMA3D),
        *conv(f"{coder}.conv_out.conv", f"{coder}/head/conv"),
    ]


def original(cfg: Hunyuan15Config) -> tuple[Rule, ...]:
    """Return the key table of the original layout."""
    rules = []
    for coder, levels, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        level, ours = f"{coder}.{levels}.{{level}}", f"{coder}/levels/{{level}}"
        rules += [
            *_ends(coder),
            *_residual(f"{level}.block.{{block}}", f"{ours}/blocks/{{block}}"),
            *conv(f"{level}.{sampler}.conv.conv", f"{ours}/sampler/conv"),
            *_residual(f"{coder}.mid.block_1", f"{coder}/middle/0"),
            *_attention(f"{coder}.mid.attn_1", f"{coder}/middle/1", ("q", "k", "v")),
            *_residual(f"{coder}.mid.block_2", f"{coder}/middle/2"),
        ]
    return tuple(rules)


def diffusers(cfg: Hunyuan15Config) -> tuple[Rule, ...]:
    """Return the key table of diffusers' layout."""
    rules = []
    for coder, levels, sampler in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        level, ours = f"{coder}.{levels}.{{level}}", f"{coder}/levels/{{level}}"
        middle = f"{coder}.mid_block"
        rules += [
            *_ends(coder),
            *_residual(f"{level}.resnets.{{block}}", f"{ours}/blocks/{{block}}"),
            *conv(f"{level}.{sampler}.0.conv.conv", f"{ours}/sampler/conv"),
            *_residual(f"{middle}.resnets.0", f"{coder}/middle/0"),
            *_attention(f"{middle}.attentions.0", f"{coder}/middle/1", ("to_q", "to_k", "to_v")),
            *_residual(f"{middle}.resnets.1", f"{coder}/middle/2"),
        ]
    return tuple(rules)


def original_from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `Hunyuan15Config` that follow from the tensors' shapes."""
    return _from_shapes(shapes, "encoder.down", "block", "downsample.conv.conv")


def diffusers_from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `Hunyuan15Config` that follow from the tensors' shapes."""
    return _from_shapes(shapes, "encoder.down_blocks", "resnets", "downsamplers.0.conv.conv")


def _from_shapes(shapes: Mapping[str, Shape], levels: str, block: str, sampler: str) -> dict[str, Any]:
    numbers = vae_keys.numbered(shapes, f"{levels}.")
    widths = [vae_keys.size(shapes, f"{levels}.{number}.{block}.0.conv1.conv", 0) for number in numbers]
    samplers = [vae_keys.size(shapes, f"{levels}.{number}.{sampler}", 0) for number in numbers]
    halvings = [(width, moved) for width, moved in zip(widths[1:], samplers, strict=False) if width and moved]
    return vae_keys.known(
        image_channels=vae_keys.size(shapes, "encoder.conv_in.conv", 1),
        latent_channels=vae_keys.size(shapes, "decoder.conv_in.conv", 1),
        blocks=len(vae_keys.numbered(shapes, f"{levels}.0.{block}.")),
        widths=tuple(widths) if all(widths) else (),
        spatial_ratio=2 ** len(halvings),
        # A convolution has an eighth of the channels if eight pixels move into them, else a quarter.
        temporal_ratio=2 ** sum(width == 8 * moved for width, moved in halvings),
    )


def original_from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `Hunyuan15Config` in the original's config.json."""
    return hyperparameters.read(config, ORIGINAL_FIELDS, FIXED, where) | vae_keys.scaling(config, where)


def diffusers_from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `Hunyuan15Config` in diffusers' config.json."""
    return hyperparameters.read(config, DIFFUSERS_FIELDS, FIXED, where) | vae_keys.scaling(config, where)


def original_to_config(cfg: Hunyuan15Config) -> dict[str, Any]:
    """Return the content of the original's config.json."""
    values = hyperparameters.write(cfg, ORIGINAL_FIELDS, FIXED)
    return {"_class_name": "AutoencoderKLConv3D"} | OTHERS | values | vae_keys.to_scaling(cfg.normalisation)


def diffusers_to_config(cfg: Hunyuan15Config) -> dict[str, Any]:
    """Return the content of diffusers' config.json."""
    values = hyperparameters.write(cfg, DIFFUSERS_FIELDS, FIXED)
    return {"_class_name": CLASS_NAME} | values | vae_keys.to_scaling(cfg.normalisation)


def limits(cfg: Hunyuan15Config) -> list[str]:
    """Return what config.json cannot express about the latents."""
    return vae_keys.scaling_limits(cfg.normalisation)


FAMILY = Family(
    name="hunyuan15-vae", describe=lambda facts: "HunyuanVideo-1.5 video autoencoder", autoencoder="hunyuan15"
)
ORIGINAL = KeyLayout(
    name="original",
    title="HunyuanVideo-1.5 and HY-WorldPlay",
    one_file=True,
    marks=("decoder.mid.attn_1.norm.gamma",),
    rules=original,
    from_shapes=original_from_shapes,
    from_config=original_from_config,
    to_config=original_to_config,
    limits=limits,
)
DIFFUSERS = KeyLayout(
    name="diffusers",
    title=f"diffusers' {CLASS_NAME}",
    marks=("decoder.mid_block.attentions.0.proj_out.weight",),
    rules=diffusers,
    from_shapes=diffusers_from_shapes,
    from_config=diffusers_from_config,
    to_config=diffusers_to_config,
    limits=limits,
)
