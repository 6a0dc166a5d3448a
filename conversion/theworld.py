"""Keys of TheWorld: Gemma-3, the projection of the world, and the autoencoder (`cosmos_vae`, names of diffusers).

A checkpoint of the original contains only the trained tensors. Its bases are the published Gemma-3 and the autoencoder
of Cosmos-Predict2; `from_base` maps their tensors to the names of a checkpoint.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from conversion import adapter_scales, gemma3, gemma3_config, hyperparameters, wan_vae
from conversion.base import Family, KeyLayout, Runs
from conversion.engine import TRANSPOSED, Rule, Shape
from jworld.data.conversations import chat, crops, processor
from jworld.data.conversations.dataset import TOKENIZER_FILES
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.utils import errors, pretrained

AUTOENCODER = "cosmos_vae."
PROJECTION = "world_projector.projection"
#: The style of the original's checkpoints.
STYLE = "transformers4"
#: The style of Gemma-3 without a vision tower.
TEXT = "text"
#: Parameters that no file of Gemma-3 alone has.
WORLD = r"(world|autoencoder|predictor)/.*"
#: A second name of the autoencoder in a whole state, and the head, which is the embedding.
IGNORED = re.compile(r"cosmos_vae_encoder\..*|(language_model\.|model\.)?lm_head\.weight")
#: Files of the tokenizer and of the image processor.
CARRIED = TOKENIZER_FILES
GENERATION = "generation_config.json"
RECIPE, VARIANT = "theworld.py:projection", "theworld"


def marks(style: str) -> tuple[str, ...]:
    """Return names of tensors that identify a style."""
    names = gemma3.STYLES[style]
    if names.vision is None:
        # A norm that the models of other families do not have.
        return (names.text + "layers.0.pre_feedforward_layernorm.weight",)
    mark = names.vision + "post_layernorm.weight"
    return (mark, PROJECTION + ".weight", PROJECTION + ".0.weight") if style == STYLE else (mark,)


def rules(cfg: TheWorldConfig, style: str) -> tuple[Rule, ...]:
    """Return the key table for a model of these sizes; `style` is a key of `gemma3.STYLES`."""
    table = gemma3.rules(cfg.gemma, gemma3.STYLES[style])
    return table if cfg.world is None else (*table, *_projection(cfg.world), *_autoencoder(cfg.world))


def _projection(world: WorldConfig) -> list[Rule]:
    layers = {"": "output"} if world.projection == "linear" else {".0": "hidden", ".2": "output"}
    return [
        rule
        for number, name in layers.items()
        for rule in (
            Rule(f"{PROJECTION}{number}.weight", f"world/{name}/kernel", TRANSPOSED),
            Rule(f"{PROJECTION}{number}.bias", f"world/{name}/bias"),
        )
    ]


def _autoencoder(world: WorldConfig) -> list[Rule]:
    table = wan_vae.diffusers(world.autoencoder())
    return [Rule(AUTOENCODER + rule.source, "autoencoder/" + rule.target, rule.layout, rule.part) for rule in table]


def from_base(names: Iterable[str], style: str) -> dict[str, str]:
    """Return {name in a checkpoint of a style: name in a base}, which is Gemma-3 in any style or the autoencoder."""
    found: dict[str, str] = {}
    for name in names:
        own = gemma3.restyle(name, style) or (name if name.startswith((AUTOENCODER, PROJECTION)) else None)
        if own is None and name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            own = AUTOENCODER + name
        if own is not None:
            found[own] = name
    return found


def embedding(style: str) -> str:
    """Return the name of the embedding, which the original cuts to the length of its tokenizer."""
    return gemma3.STYLES[style].text + "embed_tokens.weight"


def from_shapes(shapes: Mapping[str, Shape], style: str) -> dict[str, Any]:
    """Return the hyper-parameters that follow from shapes; those of the world begin with "world."."""
    facts = gemma3_config.from_shapes(shapes, gemma3.STYLES[style])
    own = {name.removeprefix(AUTOENCODER): shape for name, shape in shapes.items() if name.startswith(AUTOENCODER)}
    matrix = shapes.get(PROJECTION + ".weight") or shapes.get(PROJECTION + ".0.weight")
    if not own and matrix is None:
        return facts | {"world": None}
    sizes = wan_vae.diffusers_from_shapes(own)
    renamed = {
        "latent_channels": "latent_channels",
        "channels": "autoencoder_width",
        "multipliers": "autoencoder_multipliers",
        "blocks": "autoencoder_blocks",
        "time_levels": "autoencoder_time_levels",
    }
    facts |= {f"world.{ours}": sizes[theirs] for theirs, ours in renamed.items() if theirs in sizes}
    if matrix is not None and "latent_channels" in sizes:
        facts["world.layout"] = "spatial" if matrix[1] == sizes["latent_channels"] else "channel"
    if PROJECTION + ".weight" in shapes:
        facts["world.architecture"] = "linear"
    return facts


def from_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in a config.json of Gemma-3 or of TheWorld."""
    facts = gemma3_config.from_config(config, where)
    if config.get("model_type") != "the_world" or not config.get("enable_world", True):
        return facts
    # The original's tokenizer has the brackets after all other tokens, and the embedding has its length.
    count = rows(config)
    brackets = {} if count is None else {"world.start_token": count - 2, "world.end_token": count - 1}
    compat = config.get("jworld_compat", "original")
    return facts | {
        "world.compat": compat,
        "world.layout": config.get("world_projection_mode", "spatial"),
        "world.architecture": config.get("projection_architecture", "mlp"),
        **brackets,
    }


def rows(config: Mapping[str, Any] | None) -> int | None:
    """Return the rows of the embedding according to a checkpoint's config.json, None if it does not say."""
    config = config or {}
    found = (config.get("text_config") or config).get("vocab_size")
    return found if isinstance(found, int) else None


def to_config(cfg: TheWorldConfig, style: str) -> dict[str, Any]:
    """Return the config.json next to exported weights; all styles but that of TheWorld describe Gemma-3 alone."""
    for_text = gemma3.STYLES[style].vision is None
    if for_text and cfg.gemma.vision_layers:
        raise errors.UserError(f"--layout {style} has no vision tower, which this model has: give --layout hub")
    if not for_text and not cfg.gemma.vision_layers:
        raise errors.UserError(f"--layout {style} has a vision tower, which this model lacks: give --layout {TEXT}")
    values = gemma3_config.to_config(cfg.gemma)
    world = cfg.world
    if world is None or style != STYLE:
        return values
    unknown = ""
    if autoencoder := world.autoencoder_file:
        unknown = f"the model encodes its world with the autoencoder {autoencoder}"
    elif world.steps:
        unknown = f"the model receives {world.steps} predicted frames of the world (model.world.steps)"
    if unknown:
        raise errors.UserError(
            f"{unknown}, which the original does not support: config.json cannot describe it; --layout hub writes "
            "Gemma-3 alone, without the world"
        )
    return values | {
        "architectures": ["TheWorld"],
        "model_type": "the_world",
        "enable_world": True,
        "gemma_model_name": "google/gemma-3-4b-it",
        "cosmos_model_name": "nvidia/Cosmos-Predict2-2B-Video2World",
        "world_projection_mode": world.layout,
        "projection_architecture": world.projection,
        "freeze_gemma_vision": True,
        "freeze_gemma_language": True,
        "freeze_cosmos_vae": True,
        # Unknown to the original, which would feed the autoencoder other pixels.
        "jworld_compat": world.compat,
    }


def default_layout(cfg: TheWorldConfig, imported: str | None) -> str:
    """Return the layout of an export: names that both version 4 and version 5 of transformers read."""
    if not cfg.gemma.vision_layers:
        return TEXT
    return STYLE if cfg.world is not None or imported == STYLE else "hub"


def library_layout(cfg: TheWorldConfig) -> str:
    """Return the layout that transformers loads, of Gemma-3 alone."""
    return "hub" if cfg.gemma.vision_layers else TEXT


def trained_config(paths: Iterable[str]) -> dict[str, Any]:
    """Return which parts were frozen, given the paths of the trained parameters."""
    trained = {path.split("/", 1)[0] for path in paths}
    return {
        "freeze_gemma_vision": "vision" not in trained,
        "freeze_gemma_language": "language" not in trained,
        "freeze_cosmos_vae": "autoencoder" not in trained,
    }


def limits(cfg: TheWorldConfig) -> list[str]:
    """Return why the original would compute something else with these weights."""
    if cfg.world is None or cfg.world.original:
        return []
    return ["compat is '', there the autoencoder gets pixels in 0..255, and images are read causally"]


def companions(cfg: TheWorldConfig, folder: pathlib.Path) -> dict[str, str]:
    """Return the files of Gemma's processor and of generation that the tokenizer's folder lacks."""
    found = _generation(folder, cfg.gemma.image_tokens)
    if not cfg.gemma.vision_layers:
        return found
    return found | processor.files(folder, image_size=cfg.gemma.image_size, image_tokens=cfg.gemma.image_tokens)


def _generation(folder: pathlib.Path, image_tokens: int) -> dict[str, str]:
    """Return the file with which other programs stop at the end of an answer, unless the folder has it."""
    if (folder / GENERATION).is_file():
        return {}
    try:
        ids = chat.load(folder, image_tokens=image_tokens).ids
    except errors.UserError:  # another tokenizer is exported as it is
        return {}
    values = {"bos_token_id": ids[chat.BOS], "eos_token_id": [ids[chat.EOS], ids[chat.END_OF_TURN]]}
    return {GENERATION: json.dumps({**values, "pad_token_id": ids[chat.PAD]}, indent=2) + "\n"}


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Return the only published model."""
    return VARIANT


def processor_settings(values: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
    """Return the settings of pan and scan in a preprocessor_config.json, by key of the config; {} if it is off."""
    fields = [
        hyperparameters.Field("pan_and_scan_min_crop_size", "min_crop_size", hyperparameters.integer),
        hyperparameters.Field("pan_and_scan_max_num_crops", "max_num_crops", hyperparameters.integer),
        hyperparameters.Field("pan_and_scan_min_ratio_to_activate", "min_ratio_to_activate", hyperparameters.number),
    ]
    if not values.get("do_pan_and_scan"):
        return {}
    pan = crops.PanAndScan(**hyperparameters.read(values, fields, {}, where))
    found = {f"pan_and_scan_{name}": value for name, value in dataclasses.asdict(pan).items()}
    return {f"data.clip.{key}": value for key, value in {"pan_and_scan": True, **found}.items()}


def fit(config: ml_collections.ConfigDict) -> None:
    """Set the image sizes of the data to those of the model."""
    if config.model.get("vision_layers") == 0:
        config.data.clip.images = 0
    config.data.clip.image_size = config.model.get("image_size", Gemma3Config.image_size)
    world = config.model.get("world")
    config.data.clip.world_size = 0 if world is None else world.image_size


def describe(facts: Mapping[str, Any]) -> str:
    """Return a description of the network, given the known fields of its config."""
    if facts.get("world", "") is not None:
        return "TheWorld (Gemma-3 with a world)"
    return "Gemma-3 for text alone" if facts.get("vision_layers") == 0 else "Gemma-3"


def _layout(style: str, title: str, adapters: str | None = None) -> KeyLayout:
    return KeyLayout(
        name=style,
        title=title,
        marks=marks(style),
        rules=functools.partial(rules, style=style),
        from_shapes=functools.partial(from_shapes, style=style),
        from_config=from_config,
        to_config=functools.partial(to_config, style=style),
        limits=limits if style == STYLE else lambda model: [],
        omits="" if style == STYLE else WORLD,
        ignored=IGNORED,
        adapter_prefix=adapter_scales.PEFT_PREFIX,
        adapter_layout=adapters,
        from_base=functools.partial(from_base, style=style),
        embedding=embedding(style),
        heads=gemma3.HEADS,
        rows=rows,
        weights_name="model.safetensors",
        # TheWorld reads model.safetensors and no index.
        one_file=style == STYLE,
        carried=CARRIED,
        companions=companions,
        trained_config=trained_config if style == STYLE else None,
    )


FAMILY = Family(
    name="theworld",
    describe=describe,
    runs=Runs(
        system="theworld",
        recipe=RECIPE,
        variants={VARIANT: {}},
        guess_variant=guess_variant,
        fit=fit,
        scheduler_name=pretrained.PREPROCESSOR,
        scheduler=processor_settings,
    ),
    default_layout=default_layout,
    library_layout=library_layout,
)
# The names of files are not those of modules, which adapters have.
LAYOUTS = (
    _layout("hub", "the published Gemma-3", adapters="transformers5"),
    _layout("transformers4", "TheWorld and Gemma-3 of transformers 4"),
    _layout("transformers5", "Gemma-3 of transformers 5"),
    _layout("transformers5-saved", "Gemma-3 as transformers 5 saves it", adapters="transformers5"),
    _layout(TEXT, "Gemma-3 for text alone"),
)
