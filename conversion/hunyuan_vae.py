"""Keys of the HunyuanVideo-1.5 autoencoder: of the original (also HY-WorldPlay's) and of diffusers."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.engine import GAMMA3D, Rule
from conversion.hyperparameters import Field
from conversion.vae_keys import PIXEL3D, conv
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Config

FIELDS = (
    Field("latent_channels", "latent_channels", hyperparameters.integer),
    Field("block_out_channels", "widths", vae_keys.sizes),
    Field("layers_per_block", "blocks", hyperparameters.integer),
    Field("in_channels", "image_channels", hyperparameters.integer),
    Field("out_channels", "image_channels", hyperparameters.integer),
    # The original's words and diffusers'.
    Field("ffactor_spatial", "spatial_ratio", hyperparameters.integer),
    Field("spatial_compression_ratio", "spatial_ratio", hyperparameters.integer),
    Field("ffactor_temporal", "temporal_ratio", hyperparameters.integer),
    Field("temporal_compression_ratio", "temporal_ratio", hyperparameters.integer),
)
FIXED = {"downsample_match_channel": True, "upsample_match_channel": True}


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
    """The table of the original layout."""
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
    """The table of diffusers' layout."""
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


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The original's or diffusers' config.json -> fields of `Hunyuan15Config`."""
    return hyperparameters.read(config, FIELDS, FIXED, where) | vae_keys.scaling(config, where)
