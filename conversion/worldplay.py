"""WorldPlay's checkpoint family and published models, which share names and shapes but are sampled differently."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from conversion import naming, neighbors, schedulers
from conversion.base import Family, Pipeline, Runs

#: Recipe with the published values.
RECIPE = "ar_mem.py:8b"
_PUBLISHED = {"num_steps": 50, "shift": 5.0, "guidance": 6.0}
#: Values of `config.sample.rollout` by published model.
VARIANTS: dict[str, dict[str, Any]] = {
    "ar": {"mode": "autoregressive", **_PUBLISHED},
    "rl": {"mode": "autoregressive", **_PUBLISHED},
    "distilled": {"mode": "autoregressive", **_PUBLISHED, "num_steps": 4, "guidance": 1.0},
    "bidirectional": {"mode": "bidirectional", **_PUBLISHED},
    "base": {"mode": "bidirectional", **_PUBLISHED},
}
#: Sub-folder of the transformer that the action models began with.
_BASE = "transformer/480p_i2v"
_FOLDERS = {
    "ar_distilled_action_model": "distilled",
    "ar_rl_model": "rl",
    "bidirectional_model": "bidirectional",
    "ar_model": "ar",
}


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Return the published model of a checkpoint by its own name; only the base differs in tensors."""
    if facts.get("actions") is False:
        return "base"
    named = (variant for own in naming.own_names(path) for name, variant in _FOLDERS.items() if name in own)
    return next(named, "ar")


def describe(facts: Mapping[str, Any]) -> str:
    """Return a description of the network, given the known fields of its config."""
    name = "WorldPlay (HunyuanVideo-1.5 with actions and cameras)" if facts.get("actions") else "HunyuanVideo-1.5"
    return name + ("" if facts.get("glyph_dim", 0) is not None else ", without glyph input")


def network_folder(variant: str | None, config: ml_collections.ConfigDict) -> str:
    """Return the sub-folder of a network in the published folders of HunyuanVideo-1.5 and HY-WorldPlay."""
    if not config.model.get("actions", True):
        return _BASE
    sample = config.sample.rollout
    if variant not in _FOLDERS.values():
        few = sample.get("num_steps", 50) <= VARIANTS["distilled"]["num_steps"]
        variant = "bidirectional" if sample.get("mode") == "bidirectional" else "distilled" if few else "ar"
    return next(folder for folder, name in _FOLDERS.items() if name == variant)


DIFFUSERS = Pipeline(
    title="diffusers (HunyuanVideo15ImageToVideoPipeline)",
    layout="diffusers",
    classes=("HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15Pipeline"),
    parts={
        "feature_extractor": ("transformers", "SiglipImageProcessor"),
        "guider": ("diffusers", "ClassifierFreeGuidance"),
        "image_encoder": ("transformers", "SiglipVisionModel"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen2_5_VLTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "tokenizer_2": ("transformers", "ByT5Tokenizer"),
        "transformer": ("diffusers", "HunyuanVideo15Transformer3DModel"),
        "vae": ("diffusers", "AutoencoderKLHunyuanVideo15"),
    },
    scheduler=schedulers.HUNYUAN,
)
ORIGINAL = Pipeline(
    title="HunyuanVideo-1.5 and HY-WorldPlay",
    layout="original",
    network=network_folder,
    base_network=_BASE,
    parts=dict.fromkeys(("scheduler", "vae"), ("", "")),
)

FAMILY = Family(
    name="worldplay",
    describe=describe,
    runs=Runs(
        system="worldplay",
        recipe=RECIPE,
        variants=VARIANTS,
        guess_variant=guess_variant,
        scheduler=schedulers.read_hunyuan,
        to_scheduler=schedulers.write_hunyuan,
        pipelines=(DIFFUSERS, ORIGINAL),
    ),
    folder_notes=neighbors.notes(
        neighbors.autoencoder("vae", "weights/hunyuan15-vae", mark="transformer"),
        neighbors.encoder("text_encoder/llm", "--text-encoder", "qwen2.5-vl:{path}", mark="transformer"),
        neighbors.encoder(
            "text_encoder/Glyph-SDXL-v2", "--glyph-encoder", "byt5-glyph:{folder}/text_encoder", mark="transformer"
        ),
        neighbors.encoder("vision_encoder/siglip", "--image-encoder", "siglip:{path}", mark="transformer"),
    ),
)
