"""Keys of the HunyuanVideo-1.5 autoencoder: of the original (also HY-WorldPlay's) and of diffusers."""

from conversion.engine import CONV3D, GAMMA3D, Layout, Rule, patch_kernel
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Config

_PIXEL = patch_kernel((1, 1, 1))


def _conv(source: str, target: str, layout: Layout = CONV3D) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")]


def _residual(source: str, target: str) -> list[Rule]:
    return [
        *(Rule(f"{source}.{norm}.gamma", f"{target}/{norm}/scale", GAMMA3D) for norm in ("norm1", "norm2")),
        *_conv(f"{source}.conv1.conv", f"{target}/conv1"),
        *_conv(f"{source}.conv2.conv", f"{target}/conv2"),
    ]


def _attention(source: str, target: str, names: tuple[str, str, str]) -> list[Rule]:
    rules = [
        Rule(f"{source}.norm.gamma", f"{target}/norm/scale", GAMMA3D),
        *_conv(f"{source}.proj_out", f"{target}/out", _PIXEL),
    ]
    for i, name in enumerate(names):
        rules += [
            Rule(f"{source}.{name}.weight", f"{target}/qkv/kernel", _PIXEL, (i, 3)),
            Rule(f"{source}.{name}.bias", f"{target}/qkv/bias", part=(i, 3)),
        ]
    return rules


def _ends(coder: str) -> list[Rule]:
    return [
        *_conv(f"{coder}.conv_in.conv", f"{coder}/conv_in"),
        Rule(f"{coder}.norm_out.gamma", f"{coder}/head/norm/scale", GAMMA3D),
        *_conv(f"{coder}.conv_out.conv", f"{coder}/head/conv"),
    ]


def original(cfg: Hunyuan15Config) -> tuple[Rule, ...]:
    """The table of the original layout."""
    rules = []
    for coder, levels, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        level, ours = f"{coder}.{levels}.{{level}}", f"{coder}/levels/{{level}}"
        rules += [
            *_ends(coder),
            *_residual(f"{level}.block.{{block}}", f"{ours}/blocks/{{block}}"),
            *_conv(f"{level}.{sampler}.conv.conv", f"{ours}/sampler/conv"),
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
            *_conv(f"{level}.{sampler}.0.conv.conv", f"{ours}/sampler/conv"),
            *_residual(f"{middle}.resnets.0", f"{coder}/middle/0"),
            *_attention(f"{middle}.attentions.0", f"{coder}/middle/1", ("to_q", "to_k", "to_v")),
            *_residual(f"{middle}.resnets.1", f"{coder}/middle/2"),
        ]
    return tuple(rules)
