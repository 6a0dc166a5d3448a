"""Keys of TheWorld: Gemma-3, the projection of the world, and the autoencoder (`cosmos_vae`, names of diffusers).

A checkpoint of the original contains only the trained tensors. Its bases are the published Gemma-3 and the autoencoder
of Cosmos-Predict2; `from_base` maps their tensors to the names of a checkpoint.
"""

import functools
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from conversion import adapter_scales, gemma3, gemma3_config, wan_vae
from conversion.base import Family, KeyLayout, Runs
from conversion.engine import TRANSPOSED, Rule, Shape
from jworld.data.conversations import processor
from jworld.data.conversations.dataset import TOKENIZER_FILES
from jworld.models.gemma3.config import Gemma3Config
from jworld.models.theworld.config import TheWorldConfig, WorldConfig
from jworld.utils import errors

AUTOENCODER = "cosmos_vae."
PROJECTION = "world_projector.projection"
#: The style of the original's checkpoints.
STYLE = "transformers4"
#: A second name of the autoencoder in a whole state, and the head, which is the embedding.
IGNORED = re.compile(r"cosmos_vae_encoder\..*|(language_model\.|model\.)?lm_head\.weight")
#: Files of the tokenizer and of the image processor.
CARRIED = TOKENIZER_FILES
RECIPE, VARIANT = "theworld.py:projection", "theworld"


def marks(style: str) -> tuple[str, ...]:
    """Return names of tensors that identify a style."""
    vision = (gemma3.STYLES[style].vision + "post_layernorm.weight",)
    return (*vision, PROJECTION + ".weight", PROJECTION + ".0.weight") if style == STYLE else vision


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
    rows = config.get("text_config", {}).get("vocab_size")
    brackets = {"world.start_token": rows - 2, "world.end_token": rows - 1} if isinstance(rows, int) else {}
    compat = config.get("jworld_compat", "original")
    return facts | {
        "world.compat": compat,
        "world.layout": config.get("world_projection_mode", "spatial"),
        "world.architecture": config.get("projection_architecture", "mlp"),
        **brackets,
    }


def rows(config: Mapping[str, Any] | None) -> int | None:
    """Return the rows of the embedding according to a checkpoint's config.json, None if it does not say."""
    found = ((config or {}).get("text_config") or {}).get("vocab_size")
    return found if isinstance(found, int) else None


def to_config(cfg: TheWorldConfig) -> dict[str, Any]:
    """Return the config.json next to exported weights."""
    values = gemma3_config.to_config(cfg.gemma)
    world = cfg.world
    if world is None:
        return values
    if autoencoder := world.autoencoder_file:
        raise errors.UserError(
            f"the model encodes its world with the autoencoder {autoencoder}, which the original does not support: "
            "config.json cannot describe it"
        )
    if world.steps:
        raise errors.UserError(
            f"the model receives {world.steps} predicted frames of the world (model.world.steps), which the original "
            "does not support: config.json cannot describe it"
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
    """Return the files of Gemma's processor that the tokenizer's folder lacks."""
    return processor.files(folder, image_size=cfg.gemma.image_size, image_tokens=cfg.gemma.image_tokens)


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """Return the only published model."""
    return VARIANT


def fit(config: ml_collections.ConfigDict) -> None:
    """Set the image sizes of the data to those of the model."""
    config.data.clip.image_size = config.model.get("image_size", Gemma3Config.image_size)
    world = config.model.get("world")
    config.data.clip.world_size = 0 if world is None else world.image_size


def describe(facts: Mapping[str, Any]) -> str:
    """Return a description of the network, given the known fields of its config."""
    return "Gemma-3" if facts.get("world", "") is None else "TheWorld (Gemma-3 with a world)"


def _layout(style: str, title: str) -> KeyLayout:
    return KeyLayout(
        name=style,
        title=title,
        marks=marks(style),
        rules=functools.partial(rules, style=style),
        from_shapes=functools.partial(from_shapes, style=style),
        from_config=from_config,
        to_config=to_config,
        limits=limits,
        ignored=IGNORED,
        adapter_prefix=adapter_scales.PEFT_PREFIX,
        from_base=functools.partial(from_base, style=style),
        embedding=embedding(style),
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
    runs=Runs(system="theworld", recipe=RECIPE, variants={VARIANT: {}}, guess_variant=guess_variant, fit=fit),
)
LAYOUTS = (
    _layout("hub", "the published Gemma-3"),
    _layout("transformers4", "TheWorld and Gemma-3 of transformers 4"),
    _layout("transformers5", "Gemma-3 of transformers 5"),
    _layout("transformers5-saved", "Gemma-3 as transformers 5 saves it"),
)
