"""The checkpoint family of The Matrix: its published stages, and CogVideoX's hyper-parameters in config.json."""

import pathlib
from collections.abc import Mapping
from typing import Any

from conversion import hyperparameters, naming, neighbors, schedulers
from conversion.base import Family, Pipeline, Runs
from conversion.hyperparameters import Field
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.utils import errors

CLASS_NAME = "CogVideoXTransformer3DModel"
#: Recipe by the stage that trained the weights. CogVideoX-2B itself is the base of stage 1.
RECIPES = {
    "stage1": "matrix_lora.py:2b",
    "stage2": "matrix_control.py:2b",
    "stage3": "matrix_swin_dpm.py:2b",
    # The recipe of stage 4 needs a teacher. Its weights are those of stage 3's network, sampled in fewer steps.
    "stage4": "matrix_swin_dpm.py:2b",
    "stage4_live": "matrix_swin_dpm.py:2b",
}
_CONSISTENCY = {"solver": "consistency", "num_steps": 4, "solver_steps": 40, "guidance": 1.0}
#: Values of `config.sample.rollout` by stage that differ from the recipe's.
SAMPLING: dict[str, dict[str, Any]] = {
    **{stage: {} for stage in ("stage1", "stage2", "stage3")},
    # Offline the published program plays windows of two latents, live of one: a key is visible after 1 s.
    "stage4": {**_CONSISTENCY, "window_frames": 2},
    "stage4_live": {**_CONSISTENCY, "window_frames": 1},
}
FIELDS = (
    Field("num_attention_heads", "num_heads", hyperparameters.integer),
    Field("in_channels", "channels", hyperparameters.integer),
    Field("out_channels", "channels", hyperparameters.integer),
    Field("num_layers", "num_layers", hyperparameters.integer),
    Field("time_embed_dim", "time_dim", hyperparameters.integer),
    Field("text_embed_dim", "text_dim", hyperparameters.integer),
    Field("max_text_seq_length", "text_tokens", hyperparameters.integer),
    Field("patch_size", "patch_size", hyperparameters.integer),
    Field("spatial_interpolation_scale", "spatial_scale", hyperparameters.number),
    Field("temporal_interpolation_scale", "temporal_scale", hyperparameters.number),
    Field("norm_eps", "norm_eps", hyperparameters.number),
)
CONTROL = (Field("control_dim", "control_dim", hyperparameters.integer),)
GUIDANCE = (Field("cond_proj_dim", "guidance_dim", hyperparameters.integer),)
# Keys that give a hyper-parameter only together; the first layer may be layer 0.
_HEAD, _CONTROL_LAYERS = "attention_head_dim", ("control_start_layer", "control_end_layer")
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
    "use_rotary_positional_embeddings": False,
}
#: Other keys that the class reads, which do not change its weights: sizes of the published training's videos.
OTHERS = {
    "_class_name": CLASS_NAME,
    "dropout": 0.0,
    "sample_frames": 49,
    "sample_height": 60,
    "sample_width": 90,
    "temporal_compression_ratio": 4,
}


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of `CogVideoXConfig` in the config.json next to the weights; `where` is for messages."""
    values = hyperparameters.read(config, (*FIELDS, *CONTROL, *GUIDANCE), FIXED, where)
    head = hyperparameters.read(config, (Field(_HEAD, "head_dim", hyperparameters.integer),), {}, where)
    if head and "num_heads" in values:
        values["width"] = head["head_dim"] * values["num_heads"]
    layers = [config.get(key) for key in _CONTROL_LAYERS]
    if "control_dim" in values and None not in layers:
        if any(type(layer) is not int or layer < 0 for layer in layers):
            raise errors.UserError(f"{where}: {' and '.join(_CONTROL_LAYERS)} are {layers}, expected numbers of layers")
        values["control_layers"] = tuple(layers)
    return values


def to_config(cfg: CogVideoXConfig) -> dict[str, Any]:
    """Return the config.json next to exported weights."""
    values = OTHERS | hyperparameters.write(cfg, FIELDS, FIXED) | {_HEAD: cfg.head_dim}
    if cfg.control_dim is not None:
        values |= hyperparameters.write(cfg, CONTROL, {})
        values |= dict(zip(_CONTROL_LAYERS, cfg.control_layers, strict=True))
    if cfg.guidance_dim is not None:
        values |= hyperparameters.write(cfg, GUIDANCE, {})
    return dict(sorted(values.items()))


def limits(cfg: CogVideoXConfig) -> list[str]:
    """Return why the class of the other program cannot hold a model of these sizes."""
    return [f"mlp_ratio is {cfg.mlp_ratio:g}, there always 4"] if cfg.mlp_ratio != 4 else []


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Return the stage of a checkpoint by its own name; its tensors show only whether there is control.

    Raises:
      UserError: the name has several stages that fit.
    """
    named = [f"stage{number}" for number in naming.words(path, r"stage[ _-]?([1-4])")]
    has_control = facts.get("control_dim") is not None
    fitting = [stage for stage in named if (stage != "stage1") == has_control]
    if len(fitting) > 1:
        raise errors.UserError(
            f"{path}: its name has {' and '.join(fitting)}, expected one stage: choose one with --variant"
        )
    return fitting[0] if fitting else "stage2" if has_control else "stage1"


def describe(facts: Mapping[str, Any]) -> str:
    """Return a description of the network, given the known fields of its config."""
    if facts.get("control_dim") is not None:
        return "The Matrix (CogVideoX-2B with control blocks)"
    return "CogVideoX-2B, or stage 1 of The Matrix"


PIPELINE = Pipeline(
    title="diffusers (CogVideoXPipeline) and the inference.py of The Matrix",
    layout="diffusers",
    classes=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"),
    parts={
        "scheduler": ("diffusers", "CogVideoXDDIMScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "T5Tokenizer"),
        "transformer": ("diffusers", CLASS_NAME),
        "vae": ("diffusers", "AutoencoderKLCogVideoX"),
    },
    scheduler=schedulers.COGVIDEOX,
)

FAMILY = Family(
    name="cogvideox",
    describe=describe,
    runs=Runs(
        system="matrix",
        recipe=RECIPES["stage1"],
        variants=SAMPLING,
        guess_variant=guess_variant,
        recipes=RECIPES,
        scheduler=schedulers.read_cogvideox,
        to_scheduler=schedulers.write_cogvideox,
        pipelines=(PIPELINE,),
    ),
    folder_notes=neighbors.notes(
        neighbors.autoencoder("vae", "weights/cogvideox-vae"),
        neighbors.encoder("text_encoder", "--text-encoder", "t5-matrix:{folder}"),
    ),
)
