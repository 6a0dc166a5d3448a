"""Keys of the Wan 2.1 autoencoder: of the original file (also Cosmos' tokenizer) and of diffusers."""

from conversion.engine import CONV2D, CONV3D, GAMMA2D, GAMMA3D, Layout, Rule, patch_kernel
from jworld.models.autoencoders.wan import WanConfig

_PIXEL2D, _PIXEL3D = patch_kernel((1, 1)), patch_kernel((1, 1, 1))

#: Our names of a residual block's parts -> theirs.
_ORIGINAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_ORIGINAL |= {"shortcut": "shortcut"}
_DIFFUSERS = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"}


def _conv(source: str, target: str, layout: Layout = CONV3D) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")]


def _residual(source: str, target: str, names: dict[str, str]) -> list[Rule]:
    return [
        Rule(f"{source}.{names['norm1']}.gamma", f"{target}/norm1/scale", GAMMA3D),
        *_conv(f"{source}.{names['conv1']}", f"{target}/conv1"),
        Rule(f"{source}.{names['norm2']}.gamma", f"{target}/norm2/scale", GAMMA3D),
        *_conv(f"{source}.{names['conv2']}", f"{target}/conv2"),
        *_conv(f"{source}.{names['shortcut']}", f"{target}/shortcut", _PIXEL3D),
    ]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.norm.gamma", f"{target}/norm/scale", GAMMA2D),
        *_conv(f"{source}.to_qkv", f"{target}/qkv", _PIXEL2D),
        *_conv(f"{source}.proj", f"{target}/out", _PIXEL2D),
    ]


def _sampler(source: str, target: str) -> list[Rule]:
    return [
        *_conv(f"{source}.resample.1", f"{target}/conv", CONV2D),
        *_conv(f"{source}.time_conv", f"{target}/time_conv"),
    ]


def _levels(coder: str, target: str, blocks: int, levels: int, names: dict[str, str], nested: bool) -> list[Rule]:
    """Blocks and samplers are counted through all levels; `nested` are those that count within their level."""
    rules = []
    for level in range(levels):
        for place in range(blocks + 1):
            number = level * (blocks + 1) + place
            ours = f"{target}/levels/{level}"
            if place == blocks:
                source = f"{coder}.{level}.upsamplers.0" if nested else f"{coder}.{number}"
                rules += _sampler(source, f"{ours}/sampler")
            else:
                source = f"{coder}.{level}.resnets.{place}" if nested else f"{coder}.{number}"
                rules += _residual(source, f"{ours}/blocks/{place}", names)
    return rules


def original(cfg: WanConfig) -> tuple[Rule, ...]:
    """The table of the original layout for an autoencoder of these sizes."""
    rules = [*_conv("conv1", "moments", _PIXEL3D), *_conv("conv2", "latents", _PIXEL3D)]
    for coder, levels, blocks in (("encoder", "downsamples", cfg.blocks), ("decoder", "upsamples", cfg.blocks + 1)):
        rules += [
            *_conv(f"{coder}.conv1", f"{coder}/conv_in"),
            *_levels(f"{coder}.{levels}", coder, blocks, len(cfg.multipliers), _ORIGINAL, nested=False),
            *_residual(f"{coder}.middle.0", f"{coder}/middle/0", _ORIGINAL),
            *_attention(f"{coder}.middle.1", f"{coder}/middle/1"),
            *_residual(f"{coder}.middle.2", f"{coder}/middle/2", _ORIGINAL),
            Rule(f"{coder}.head.0.gamma", f"{coder}/head/norm/scale", GAMMA3D),
            *_conv(f"{coder}.head.2", f"{coder}/head/conv"),
        ]
    return tuple(rules)


def diffusers(cfg: WanConfig) -> tuple[Rule, ...]:
    """The table of diffusers' layout for an autoencoder of these sizes."""
    count = len(cfg.multipliers)
    rules = [
        *_conv("quant_conv", "moments", _PIXEL3D),
        *_conv("post_quant_conv", "latents", _PIXEL3D),
        *_levels("encoder.down_blocks", "encoder", cfg.blocks, count, _DIFFUSERS, nested=False),
        *_levels("decoder.up_blocks", "decoder", cfg.blocks + 1, count, _DIFFUSERS, nested=True),
    ]
    for coder in ("encoder", "decoder"):
        rules += [
            *_conv(f"{coder}.conv_in", f"{coder}/conv_in"),
            *_residual(f"{coder}.mid_block.resnets.0", f"{coder}/middle/0", _DIFFUSERS),
            *_attention(f"{coder}.mid_block.attentions.0", f"{coder}/middle/1"),
            *_residual(f"{coder}.mid_block.resnets.1", f"{coder}/middle/2", _DIFFUSERS),
            Rule(f"{coder}.norm_out.gamma", f"{coder}/head/norm/scale", GAMMA3D),
            *_conv(f"{coder}.conv_out", f"{coder}/head/conv"),
        ]
    return tuple(rules)
