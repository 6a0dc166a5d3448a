"""Cosmos-Predict2's checkpoint family, its published models, and its hyper-parameters as its constructors name them.

The original has no config.json; its sizes are in `configs/base/config_video2world.py`. Exports write one with the
arguments of the class `MinimalV1LVGDiT`, so that an import can read what does not follow from any tensor's shape.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, naming, neighbors, schedulers
from conversion.base import Family, Pipeline, Runs
from conversion.hyperparameters import Field
from jworld.models.cosmos.config import PUBLISHED, CosmosConfig

#: Published model -> recipe. Checkpoints for other sizes and frame rates have the same network.
RECIPES = {
    name: f"cosmos_video2world.py:{name}"
    for name in (
        *(f"{size}{suffix}" for size in ("2b", "14b") for suffix in ("", "_480p", "_10fps", "_480p_10fps")),
        "2b_action",
        "2b_multiview",
    )
}

FIELDS = (
    Field("in_channels", "channels", hyperparameters.integer),
    Field("out_channels", "channels", hyperparameters.integer),
    Field("model_channels", "width", hyperparameters.integer),
    Field("num_heads", "num_heads", hyperparameters.integer),
    Field("num_blocks", "num_layers", hyperparameters.integer),
    Field("mlp_ratio", "mlp_ratio", hyperparameters.number),
    Field("crossattn_proj_in_channels", "text_dim", hyperparameters.integer),
    Field("crossattn_emb_channels", "text_width", hyperparameters.integer),
    Field("rope_enable_fps_modulation", "fps_modulation", hyperparameters.switch),
    Field("extra_per_block_abs_pos_emb", "absolute_positions", hyperparameters.switch),
    Field("concat_padding_mask", "padding_mask", hyperparameters.switch),
    Field("action_dim", "action_dim", hyperparameters.integer),
)
#: Arguments of the class `MultiViewDiT` alone, for several cameras.
VIEW_FIELDS = (
    Field("n_cameras_emb", "views", hyperparameters.integer),
    Field("view_condition_dim", "view_dim", hyperparameters.integer),
    Field("state_t", "view_frames", hyperparameters.integer),
)
FIXED = {"patch_temporal": 1, "patch_spatial": 2, "pos_emb_cls": "rope3d"}
# Keys that give a hyper-parameter only together.
_RATIOS = tuple(f"rope_{axis}_extrapolation_ratio" for axis in "thw")
_SIZES = ("max_frames", "max_img_h", "max_img_w")


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in the config.json next to the weights; `where` names it in messages."""
    ratios = tuple(Field(key, key, hyperparameters.number) for key in _RATIOS)
    sizes = tuple(Field(key, key, hyperparameters.integer) for key in _SIZES)
    fields = (*FIELDS, *(VIEW_FIELDS if "n_cameras_emb" in config else ()))
    parts = hyperparameters.read(config, (*fields, *ratios, *sizes), FIXED, where)
    values = {field.ours: parts[field.ours] for field in fields if field.ours in parts}
    for name, keys in (("rope_scale", _RATIOS), ("max_size", _SIZES)):
        if all(key in parts for key in keys):
            values[name] = tuple(parts[key] for key in keys)
    return values


def to_config(cfg: CosmosConfig) -> dict[str, Any]:
    """Return the config.json next to exported weights."""
    together = {
        "use_adaln_lora": cfg.modulation_rank is not None,
        "adaln_lora_dim": cfg.modulation_rank,
        **dict(zip(_RATIOS, cfg.rope_scale, strict=True)),
        **dict(zip(_SIZES, cfg.max_size, strict=True)),
    }
    fields = (*FIELDS, *(VIEW_FIELDS if cfg.views is not None else ()))
    return hyperparameters.write(cfg, fields, FIXED) | together


def limits(cfg: CosmosConfig) -> list[str]:
    """Return why the original program cannot load a model of these sizes: it has only the published configs."""
    names = (
        *("channels", "width", "num_heads", "num_layers", "mlp_ratio", "text_dim", "modulation_rank", "rope_scale"),
        *("views", "view_dim", "view_frames"),
    )
    several = {"views": 7, "rope_scale": (8 / 24, 3.0, 3.0), "fps_modulation": True}
    published = {name: CosmosConfig(**fields) for name, fields in (PUBLISHED | {"2b_multiview": several}).items()}
    differing = {
        name: [key for key in names if getattr(cfg, key) != getattr(other, key)] for name, other in published.items()
    }
    nearest = min(differing, key=lambda name: len(differing[name]))
    found = [f"{key} is {getattr(cfg, key)}, {getattr(published[nearest], key)} there" for key in differing[nearest]]
    if cfg.fps_modulation and cfg.base_fps != CosmosConfig.base_fps:
        found.append(f"base_fps is {cfg.base_fps:g}, always {CosmosConfig.base_fps:g} there")
    if cfg.time_scale != CosmosConfig.time_scale:
        found.append(f"time_scale is {cfg.time_scale:g}, always {CosmosConfig.time_scale:g} there")
    return found


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Return the published model whose values apply where a checkpoint of these sizes has none.

    The name of a file such as model-480p-10fps.pt has the size and frame rate that it was trained with, and that of
    several cameras is model-720p-10fps-7views-29frames.pt.
    """
    if facts.get("views") is not None or naming.words(path, r"(\d+views)"):
        return "2b_multiview"
    if facts.get("action_dim") is not None:
        return "2b_action"
    size = "14b" if facts.get("width") == PUBLISHED["14b"]["width"] else "2b"
    resolution, rate = naming.words(path, "(480p|720p)"), naming.words(path, "(10fps|16fps)")
    return size + ("_480p" if resolution == ["480p"] else "") + ("_10fps" if rate == ["10fps"] else "")


def describe(facts: Mapping[str, Any]) -> str:
    """Return a description of the network, given the known fields of its config."""
    if facts.get("views") is not None:
        return "Cosmos-Predict2 Video2World of several cameras"
    if facts.get("action_dim") is not None:
        return "Cosmos-Predict2 Video2World with actions"
    return "Cosmos-Predict2 " + ("Text2Image" if facts.get("condition_mask") is False else "Video2World")


PIPELINE = Pipeline(
    title="diffusers (Cosmos2VideoToWorldPipeline)",
    layout="diffusers",
    classes=("Cosmos2VideoToWorldPipeline", "Cosmos2TextToImagePipeline"),
    parts={
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "CosmosTransformer3DModel"),
        "vae": ("diffusers", "AutoencoderKLWan"),
    },
    scheduler=schedulers.COSMOS,
)

FAMILY = Family(
    name="cosmos",
    describe=describe,
    runs=Runs(
        system="cosmos",
        recipe=RECIPES["2b"],
        variants={name: {} for name in RECIPES},
        guess_variant=guess_variant,
        recipes=RECIPES,
        scheduler=schedulers.read_cosmos,
        to_scheduler=schedulers.write_cosmos,
        pipelines=(PIPELINE,),
    ),
    folder_notes=neighbors.notes(
        # Next to the published .pt files.
        neighbors.autoencoder("tokenizer/tokenizer.pth", "weights/wan", mark="tokenizer/tokenizer.pth"),
        neighbors.autoencoder("vae", "weights/wan"),
        neighbors.encoder("text_encoder", "--text-encoder", "t5-cosmos:{folder}"),
    ),
)
