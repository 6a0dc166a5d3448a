"""Keys of the CogVideoX autoencoder, the same in The Matrix and in diffusers."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.base import Family, KeyLayout
from conversion.engine import CONV2D, Rule, Shape
from conversion.hyperparameters import Field
from conversion.vae_keys import PIXEL3D, conv
from jworld.models.autoencoders.cogvideox import CogVideoXConfig

CLASS_NAME = "AutoencoderKLCogVideoX"
FIELDS = (
    Field("latent_channels", "latent_channels", hyperparameters.integer),
    Field("block_out_channels", "widths", vae_keys.sizes),
    Field("layers_per_block", "blocks", hyperparameters.integer),
    Field("temporal_compression_ratio", "temporal_ratio", hyperparameters.integer),
    Field("norm_num_groups", "groups", hyperparameters.integer),
    Field("norm_eps", "eps", hyperparameters.number),
    Field("in_channels", "image_channels", hyperparameters.integer),
    Field("out_channels", "image_channels", hyperparameters.integer),
)
FIXED = {"act_fn": "silu", "use_quant_conv": False, "use_post_quant_conv": False, "invert_scale_latents": False}


def _norm(coder: str, source: str, target: str) -> list[Rule]:
    """Return the rules of a norm; those of the decoder also scale and shift by the latents."""
    if coder == "encoder":
        return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]
    return [
        Rule(f"{source}.norm_layer.weight", f"{target}/norm/scale"),
        Rule(f"{source}.norm_layer.bias", f"{target}/norm/bias"),
        *conv(f"{source}.conv_y.conv", f"{target}/scale", PIXEL3D),
        *conv(f"{source}.conv_b.conv", f"{target}/shift", PIXEL3D),
    ]


def _residual(coder: str, source: str, target: str) -> list[Rule]:
    return [
        *_norm(coder, f"{source}.norm1", f"{target}/norm1"),
        *conv(f"{source}.conv1.conv", f"{target}/conv1"),
        *_norm(coder, f"{source}.norm2", f"{target}/norm2"),
        *conv(f"{source}.conv2.conv", f"{target}/conv2"),
        *conv(f"{source}.conv_shortcut", f"{target}/shortcut", PIXEL3D),
    ]


def rules(cfg: CogVideoXConfig) -> tuple[Rule, ...]:
    """Return the key table."""
    table = []
    for coder, levels, sampler in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        level, ours = f"{coder}.{levels}.{{level}}", f"{coder}/levels/{{level}}"
        table += [
            *conv(f"{coder}.conv_in.conv", f"{coder}/conv_in"),
            *_residual(coder, f"{level}.resnets.{{block}}", f"{ours}/blocks/{{block}}"),
            *conv(f"{level}.{sampler}.0.conv", f"{ours}/sampler/conv", CONV2D),
            *_residual(coder, f"{coder}.mid_block.resnets.{{block}}", f"{coder}/middle/{{block}}"),
            *_norm(coder, f"{coder}.norm_out", f"{coder}/head/norm"),
            *conv(f"{coder}.conv_out.conv", f"{coder}/head/conv"),
        ]
    return tuple(table)


def from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `CogVideoXConfig` that follow from shapes: neither groups nor temporal ratio do."""
    levels = "encoder.down_blocks."
    names = [f"{levels}{number}.resnets.0.conv1.conv" for number in vae_keys.numbered(shapes, levels)]
    widths = [vae_keys.size(shapes, name, 0) for name in names]
    return vae_keys.known(
        image_channels=vae_keys.size(shapes, "encoder.conv_in.conv", 1),
        latent_channels=vae_keys.size(shapes, "decoder.conv_in.conv", 1),
        blocks=len(vae_keys.numbered(shapes, f"{levels}0.resnets.")),
        widths=tuple(widths) if all(widths) else (),
    )


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `CogVideoXConfig` in a config.json."""
    return hyperparameters.read(config, FIELDS, FIXED, where) | vae_keys.scaling(config, where)


def to_config(cfg: CogVideoXConfig) -> dict[str, Any]:
    """Return the content of config.json."""
    blocks = {f"{way.lower()}_block_types": [f"CogVideoX{way}Block3D"] * len(cfg.widths) for way in ("Down", "Up")}
    values = hyperparameters.write(cfg, FIELDS, FIXED)
    return {"_class_name": CLASS_NAME} | blocks | values | vae_keys.to_scaling(cfg.normalisation)


def limits(cfg: CogVideoXConfig) -> list[str]:
    """Return what config.json cannot express about the latents."""
    return vae_keys.scaling_limits(cfg.normalisation)


FAMILY = Family(name="cogvideox-vae", describe=lambda facts: "CogVideoX video autoencoder", autoencoder="cogvideox")
LAYOUT = KeyLayout(
    name="diffusers",
    title=f"The Matrix and diffusers' {CLASS_NAME}",
    marks=("decoder.mid_block.resnets.0.norm1.norm_layer.weight",),
    rules=rules,
    from_shapes=from_shapes,
    from_config=from_config,
    to_config=to_config,
    limits=limits,
)
