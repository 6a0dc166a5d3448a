"""Keys of the Wan 2.1 autoencoder: of the original file (also Cosmos's tokenizer) and of diffusers."""

from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, vae_keys
from conversion.base import Family, KeyLayout
from conversion.engine import CONV2D, GAMMA2D, GAMMA3D, Rule, Shape
from conversion.hyperparameters import Field
from conversion.vae_keys import PIXEL2D, PIXEL3D, conv
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.wan import WanConfig
from jworld.utils import errors

# The original's settings are arguments of its class; its file of weights has no config.json.
ORIGINAL_FIELDS = (
    Field("dim", "channels", hyperparameters.integer),
    Field("z_dim", "latent_channels", hyperparameters.integer),
    Field("dim_mult", "multipliers", vae_keys.sizes),
    Field("num_res_blocks", "blocks", hyperparameters.integer),
    Field("temperal_downsample", "time_levels", vae_keys.flags),
)
CLASS_NAME = "AutoencoderKLWan"
DIFFUSERS_FIELDS = (
    Field("base_dim", "channels", hyperparameters.integer),
    Field("decoder_base_dim", "channels", hyperparameters.integer),
    *ORIGINAL_FIELDS[1:],
    Field("in_channels", "image_channels", hyperparameters.integer),
    Field("out_channels", "image_channels", hyperparameters.integer),
)
STATISTICS = (
    Field("latents_mean", "mean", vae_keys.numbers),
    Field("latents_std", "std", vae_keys.numbers),
)
ORIGINAL_FIXED: dict[str, Any] = {"attn_scales": []}
# Other values belong to Wan 2.2.
DIFFUSERS_FIXED = {"attn_scales": [], "is_residual": False, "patch_size": None}

#: Our names of the parts of a residual block -> names of the other program.
_ORIGINAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
_ORIGINAL |= {"shortcut": "shortcut"}
_DIFFUSERS = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"}


def _residual(source: str, target: str, names: dict[str, str]) -> list[Rule]:
    return [
        Rule(f"{source}.{names['norm1']}.gamma", f"{target}/norm1/scale", GAMMA3D),
        *conv(f"{source}.{names['conv1']}", f"{target}/conv1"),
        Rule(f"{source}.{names['norm2']}.gamma", f"{target}/norm2/scale", GAMMA3D),
        *conv(f"{source}.{names['conv2']}", f"{target}/conv2"),
        *conv(f"{source}.{names['shortcut']}", f"{target}/shortcut", PIXEL3D),
    ]


def _attention(source: str, target: str) -> list[Rule]:
    return [
        Rule(f"{source}.norm.gamma", f"{target}/norm/scale", GAMMA2D),
        *conv(f"{source}.to_qkv", f"{target}/qkv", PIXEL2D),
        *conv(f"{source}.proj", f"{target}/out", PIXEL2D),
    ]


def _sampler(source: str, target: str) -> list[Rule]:
    return [
        *conv(f"{source}.resample.1", f"{target}/conv", CONV2D),
        *conv(f"{source}.time_conv", f"{target}/time_conv"),
    ]


def _levels(coder: str, target: str, blocks: int, levels: int, names: dict[str, str], nested: bool) -> list[Rule]:
    """Return the rules of all levels; blocks and samplers are numbered across levels, or per level with `nested`."""
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
    """Return the key table of the original layout for an autoencoder of these sizes."""
    rules = [*conv("conv1", "moments", PIXEL3D), *conv("conv2", "latents", PIXEL3D)]
    for coder, levels, blocks in (("encoder", "downsamples", cfg.blocks), ("decoder", "upsamples", cfg.blocks + 1)):
        rules += [
            *conv(f"{coder}.conv1", f"{coder}/conv_in"),
            *_levels(f"{coder}.{levels}", coder, blocks, len(cfg.multipliers), _ORIGINAL, nested=False),
            *_residual(f"{coder}.middle.0", f"{coder}/middle/0", _ORIGINAL),
            *_attention(f"{coder}.middle.1", f"{coder}/middle/1"),
            *_residual(f"{coder}.middle.2", f"{coder}/middle/2", _ORIGINAL),
            Rule(f"{coder}.head.0.gamma", f"{coder}/head/norm/scale", GAMMA3D),
            *conv(f"{coder}.head.2", f"{coder}/head/conv"),
        ]
    return tuple(rules)


def diffusers(cfg: WanConfig) -> tuple[Rule, ...]:
    """Return the key table of diffusers' layout for an autoencoder of these sizes."""
    count = len(cfg.multipliers)
    rules = [
        *conv("quant_conv", "moments", PIXEL3D),
        *conv("post_quant_conv", "latents", PIXEL3D),
        *_levels("encoder.down_blocks", "encoder", cfg.blocks, count, _DIFFUSERS, nested=False),
        *_levels("decoder.up_blocks", "decoder", cfg.blocks + 1, count, _DIFFUSERS, nested=True),
    ]
    for coder in ("encoder", "decoder"):
        rules += [
            *conv(f"{coder}.conv_in", f"{coder}/conv_in"),
            *_residual(f"{coder}.mid_block.resnets.0", f"{coder}/middle/0", _DIFFUSERS),
            *_attention(f"{coder}.mid_block.attentions.0", f"{coder}/middle/1"),
            *_residual(f"{coder}.mid_block.resnets.1", f"{coder}/middle/2", _DIFFUSERS),
            Rule(f"{coder}.norm_out.gamma", f"{coder}/head/norm/scale", GAMMA3D),
            *conv(f"{coder}.conv_out", f"{coder}/head/conv"),
        ]
    return tuple(rules)


def original_from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `WanConfig` that follow from the tensors' shapes."""
    return _from_shapes(shapes, "encoder.conv1", "conv2", "encoder.downsamples", "residual.6")


def diffusers_from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the fields of `WanConfig` that follow from the tensors' shapes."""
    return _from_shapes(shapes, "encoder.conv_in", "post_quant_conv", "encoder.down_blocks", "conv2")


def _from_shapes(shapes: Mapping[str, Shape], first: str, latents: str, levels: str, residual: str) -> dict[str, Any]:
    channels = vae_keys.size(shapes, first, 0)
    widths: list[int] = []
    times: list[bool] = []
    blocks = 0
    for number in vae_keys.numbered(shapes, f"{levels}."):
        if f"{levels}.{number}.resample.1.weight" in shapes:
            times.append(f"{levels}.{number}.time_conv.weight" in shapes)
        elif width := vae_keys.size(shapes, f"{levels}.{number}.{residual}", 0):
            blocks += not times
            widths[len(times) :] = [width]
    return vae_keys.known(
        channels=channels,
        image_channels=vae_keys.size(shapes, first, 1),
        latent_channels=vae_keys.size(shapes, latents, 0),
        blocks=blocks,
        multipliers=tuple(width // channels for width in widths) if channels else (),
        time_levels=tuple(times),
    )


def original_from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `WanConfig` in the settings of the original class.

    The published file has no settings. If there is a config.json with a class name next to it, that is the
    transformer's.
    """
    if "_class_name" in config:
        return {}
    return _from_config(config, ORIGINAL_FIELDS, ORIGINAL_FIXED, where)


def diffusers_from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `WanConfig` in diffusers' config.json."""
    return _from_config(config, DIFFUSERS_FIELDS, DIFFUSERS_FIXED, where)


def _from_config(
    config: Mapping[str, Any], fields: tuple[Field, ...], fixed: Mapping[str, Any], where: str
) -> dict[str, Any]:
    values = hyperparameters.read(config, fields, fixed, where)
    if statistics := hyperparameters.read(config, STATISTICS, {}, where):
        if statistics.keys() != {"mean", "std"}:
            raise errors.UserError(f"{where}: has only one of latents_mean and latents_std, expected both or none")
        values["normalisation"] = Normalization.from_statistics(**statistics)
    return values


def original_to_config(cfg: WanConfig) -> dict[str, Any]:
    """Return the arguments of the original class, and the statistics in its programs."""
    return hyperparameters.write(cfg, ORIGINAL_FIELDS, ORIGINAL_FIXED) | _statistics(cfg)


def diffusers_to_config(cfg: WanConfig) -> dict[str, Any]:
    """Return the content of diffusers' config.json."""
    ratios = {"scale_factor_temporal": cfg.temporal_ratio, "scale_factor_spatial": cfg.spatial_ratio}
    values = hyperparameters.write(cfg, DIFFUSERS_FIELDS, DIFFUSERS_FIXED)
    return {"_class_name": CLASS_NAME} | values | ratios | _statistics(cfg)


def _statistics(cfg: WanConfig) -> dict[str, list[float]]:
    shift, scale = (
        values * (cfg.latent_channels // len(values)) for values in (cfg.normalisation.shift, cfg.normalisation.scale)
    )
    # Deviations are published with few digits, but the reciprocal of a reciprocal may have more.
    return {"latents_mean": list(shift), "latents_std": [float(f"{1 / value:.14g}") for value in scale]}


FAMILY = Family(name="wan-vae", describe=lambda facts: "Wan 2.1 video autoencoder", autoencoder="wan")
ORIGINAL = KeyLayout(
    name="original",
    title="Wan 2.1 and Cosmos-Predict2",
    one_file=True,
    marks=("decoder.middle.0.residual.0.gamma",),
    rules=original,
    from_shapes=original_from_shapes,
    from_config=original_from_config,
    to_config=original_to_config,
)
DIFFUSERS = KeyLayout(
    name="diffusers",
    title=f"diffusers' {CLASS_NAME}",
    marks=("decoder.mid_block.attentions.0.to_qkv.weight",),
    rules=diffusers,
    from_shapes=diffusers_from_shapes,
    from_config=diffusers_from_config,
    to_config=diffusers_to_config,
)
