"""Keys of the CogVideoX autoencoder: The Matrix and diffusers use the same."""

from conversion.engine import CONV2D, CONV3D, Layout, Rule, patch_kernel
from jworld.models.autoencoders.cogvideox import CogVideoXConfig

_PIXEL = patch_kernel((1, 1, 1))


def _conv(source: str, target: str, layout: Layout = CONV3D) -> list[Rule]:
    return [Rule(f"{source}.weight", f"{target}/kernel", layout), Rule(f"{source}.bias", f"{target}/bias")]


def _norm(coder: str, source: str, target: str) -> list[Rule]:
    """The decoder's norms hold, beside the group norm, what the latents do to it."""
    if coder == "encoder":
        return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]
    return [
        Rule(f"{source}.norm_layer.weight", f"{target}/norm/scale"),
        Rule(f"{source}.norm_layer.bias", f"{target}/norm/bias"),
        *_conv(f"{source}.conv_y.conv", f"{target}/scale", _PIXEL),
        *_conv(f"{source}.conv_b.conv", f"{target}/shift", _PIXEL),
    ]


def _residual(coder: str, source: str, target: str) -> list[Rule]:
    return [
        *_norm(coder, f"{source}.norm1", f"{target}/norm1"),
        *_conv(f"{source}.conv1.conv", f"{target}/conv1"),
        *_norm(coder, f"{source}.norm2", f"{target}/norm2"),
        *_conv(f"{source}.conv2.conv", f"{target}/conv2"),
        *_conv(f"{source}.conv_shortcut", f"{target}/shortcut", _PIXEL),
    ]


def rules(cfg: CogVideoXConfig) -> tuple[Rule, ...]:
    """The table."""
    table = []
    for coder, levels, sampler in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        level, ours = f"{coder}.{levels}.{{level}}", f"{coder}/levels/{{level}}"
        table += [
            *_conv(f"{coder}.conv_in.conv", f"{coder}/conv_in"),
            *_residual(coder, f"{level}.resnets.{{block}}", f"{ours}/blocks/{{block}}"),
            *_conv(f"{level}.{sampler}.0.conv", f"{ours}/sampler/conv", CONV2D),
            *_residual(coder, f"{coder}.mid_block.resnets.{{block}}", f"{coder}/middle/{{block}}"),
            *_norm(coder, f"{coder}.norm_out", f"{coder}/head/norm"),
            *_conv(f"{coder}.conv_out.conv", f"{coder}/head/conv"),
        ]
    return tuple(table)
