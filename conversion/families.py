"""Checkpoint families: which files belong to which system, and what their names, shapes and config.json tell."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from conversion import (
    cogvideox,
    cogvideox_config,
    cogvideox_vae,
    cosmos,
    cosmos_config,
    cosmos_diffusers,
    hunyuan,
    hunyuan_diffusers,
    hunyuan_vae,
    sources,
    theworld,
    wan_vae,
    worldplay,
)
from conversion.engine import Rule, Shape
from jworld.utils import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """One way in which the tensors of a family are named and laid out.

    Attributes:
      name: the word for it on the command line.
      title: whose layout it is.
      marks: names of tensors one of which is in every file of this layout and in none of another.
      rules: model config -> key table.
      from_shapes: tensor shapes by name -> the model config's fields that they tell.
      from_config: content of a downloaded config.json, its path for messages -> the fields that it tells; a `UserError`
        lists the values that the network here does not have.
      to_config: model config -> content of the config.json beside exported weights; a `UserError` says why a model
        cannot be written in this layout.
      limits: model config -> why the other program cannot load, or say, all of it; empty if it can.
      prefixes: how names of the key table begin, and those of averaged weights; files may also have neither.
      ignored: names of tensors that are no weights.
      adapter_prefix: how names begin in a file of adapters alone (peft); None where the other program has no such file.
      from_base: names of tensors of a checkpoint that another was trained from -> their names in this layout, in the
        order of its answer {name here: name there}; None where checkpoints hold everything.
      embedding: the tensor that may have more rows than the model; None without one.
      rows: content of a config.json -> how many rows of it the model has, None where it does not say.
      weights_name: of the file in an exported folder.
      carried: files beside the weights, such as those of a tokenizer, that go with them in and out.
      trained_config: paths of the parameters that a run trained -> more of its config.json, where nothing else is
        written; None where the other program wants everything.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    rules: Callable[[Any], Sequence[Rule]]
    from_shapes: Callable[[Mapping[str, Shape]], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    to_config: Callable[[Any], dict[str, Any]]
    limits: Callable[[Any], list[str]] = lambda model: []
    prefixes: tuple[str, ...] = ()
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    adapter_prefix: str | None = None
    from_base: Callable[[Iterable[str]], dict[str, str]] | None = None
    embedding: str | None = None
    rows: Callable[[Mapping[str, Any] | None], int | None] = lambda config: None
    weights_name: str = sources.WEIGHTS_NAME
    carried: tuple[str, ...] = ()
    trained_config: Callable[[Iterable[str]], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """How the weights of a system's network become a run.

    Attributes:
      system: `config.system`.
      recipe: file in configs/, and its variant, whose values stand wherever nothing else is said.
      variants: published model -> its `config.sample.rollout`, as far as it is not the recipe's.
      guess_variant: path of a checkpoint, fields that its shapes tell -> the key of the published model it may be.
      recipes: of published models whose recipe is another.
      fit: sets what else of a config follows from its model.
    """

    system: str
    recipe: str
    variants: Mapping[str, Mapping[str, Any]]
    guess_variant: Callable[[pathlib.Path, Mapping[str, Any]], str]
    recipes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fit: Callable[[ml_collections.ConfigDict], None] = lambda config: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one network, in one or more layouts: of a system (`runs`) or an autoencoder (`autoencoder`).

    Attributes:
      name: the word for it on the command line.
      layouts: by name.
      describe: fields of the model config, as far as known -> which network this is, in words.
      runs: what the weights become; None for autoencoders.
      autoencoder: key of `jworld.models.autoencoders.files.NETWORKS`; None for the networks of systems.
      beside: path of a checkpoint -> sentences on what else lies in its folder.
    """

    name: str
    layouts: Mapping[str, KeyLayout]
    describe: Callable[[Mapping[str, Any]], str]
    runs: Runs | None = None
    autoencoder: str | None = None
    beside: Callable[[pathlib.Path], list[str]] = lambda path: []


def detect(names: Iterable[str], where: str, *, family: str | None = None) -> tuple[Family, KeyLayout]:
    """The family and layout of a file with tensors of these names.

    Args:
      names: all tensors.
      where: the file, for messages.
      family: look only for this one.

    Raises:
      UserError: no layout, or more than one, fits.
    """
    names = list(names)
    present = set(names)
    families = [find(family)] if family is not None else list(FAMILIES.values())
    choices = [(each, layout) for each in families for layout in each.layouts.values()]
    found = [choice for choice in choices if not present.isdisjoint(choice[1].marks)]
    if len(found) == 1:
        return found[0]
    if found:
        titles = " and ".join(f"{layout.title} ({layout.name})" for _, layout in found)
        raise errors.UserError(f"{where}: has tensors of {titles} at once; expected one layout in one file")
    looked_for = "; ".join(f"{' or '.join(layout.marks)} ({each.name}, {layout.name})" for each, layout in choices)
    first = ", ".join(repr(name)[:80] for name in names[:4])
    raise errors.UserError(
        f"{where}: not weights of a known network: looked for {looked_for}; "
        f"found {len(names)} tensors" + (f", first {first}" if names else "")
    )


def find(name: str) -> Family:
    if name not in FAMILIES:
        raise errors.UserError(f"--family is {name!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


_WORLDPLAY = (
    KeyLayout(
        name="original",
        title="HunyuanVideo-1.5 and HY-WorldPlay",
        marks=("double_blocks.0.img_attn_q.weight", "cond_type_embedding.weight"),
        rules=hunyuan.rules,
        from_shapes=hunyuan.from_shapes,
        from_config=hunyuan.from_config,
        to_config=hunyuan.to_config,
        limits=hunyuan.limits,
    ),
    KeyLayout(
        name="diffusers",
        title=f"diffusers' {hunyuan_diffusers.CLASS_NAME}",
        marks=("cond_type_embed.weight", "image_embedder.linear_1.weight"),
        rules=hunyuan_diffusers.rules,
        from_shapes=hunyuan_diffusers.from_shapes,
        from_config=hunyuan_diffusers.from_config,
        to_config=hunyuan_diffusers.to_config,
        limits=hunyuan_diffusers.limits,
    ),
)

_COSMOS = (
    KeyLayout(
        name="original",
        title="Cosmos-Predict2",
        marks=tuple(prefix + "x_embedder.proj.1.weight" for prefix in (cosmos.WEIGHTS, cosmos.AVERAGE, "")),
        rules=cosmos.rules,
        from_shapes=cosmos.from_shapes,
        from_config=cosmos_config.from_config,
        to_config=cosmos_config.to_config,
        limits=cosmos_config.limits,
        prefixes=(cosmos.WEIGHTS, cosmos.AVERAGE),
        ignored=cosmos.IGNORED,
    ),
    KeyLayout(
        name="diffusers",
        title=f"diffusers' {cosmos_diffusers.CLASS_NAME}",
        marks=("time_embed.t_embedder.linear_1.weight",),
        rules=cosmos_diffusers.rules,
        from_shapes=cosmos_diffusers.from_shapes,
        from_config=cosmos_diffusers.from_config,
        to_config=cosmos_diffusers.to_config,
    ),
)

_WAN = (
    KeyLayout(
        name="original",
        title="Wan 2.1 and Cosmos-Predict2",
        marks=("decoder.middle.0.residual.0.gamma",),
        rules=wan_vae.original,
        from_shapes=wan_vae.original_from_shapes,
        from_config=wan_vae.original_from_config,
        to_config=wan_vae.original_to_config,
    ),
    KeyLayout(
        name="diffusers",
        title=f"diffusers' {wan_vae.CLASS_NAME}",
        marks=("decoder.mid_block.attentions.0.to_qkv.weight",),
        rules=wan_vae.diffusers,
        from_shapes=wan_vae.diffusers_from_shapes,
        from_config=wan_vae.diffusers_from_config,
        to_config=wan_vae.diffusers_to_config,
    ),
)

_HUNYUAN15 = (
    KeyLayout(
        name="original",
        title="HunyuanVideo-1.5 and HY-WorldPlay",
        marks=("decoder.mid.attn_1.norm.gamma",),
        rules=hunyuan_vae.original,
        from_shapes=hunyuan_vae.original_from_shapes,
        from_config=hunyuan_vae.original_from_config,
        to_config=hunyuan_vae.original_to_config,
        limits=hunyuan_vae.limits,
    ),
    KeyLayout(
        name="diffusers",
        title=f"diffusers' {hunyuan_vae.CLASS_NAME}",
        marks=("decoder.mid_block.attentions.0.proj_out.weight",),
        rules=hunyuan_vae.diffusers,
        from_shapes=hunyuan_vae.diffusers_from_shapes,
        from_config=hunyuan_vae.diffusers_from_config,
        to_config=hunyuan_vae.diffusers_to_config,
        limits=hunyuan_vae.limits,
    ),
)

_MATRIX = (
    KeyLayout(
        name="diffusers",
        title=f"The Matrix and diffusers' {cogvideox_config.CLASS_NAME}",
        marks=("patch_embed.text_proj.weight",),
        rules=cogvideox.rules,
        from_shapes=cogvideox.from_shapes,
        from_config=cogvideox_config.from_config,
        to_config=cogvideox_config.to_config,
        limits=cogvideox_config.limits,
        adapter_prefix=cogvideox.ADAPTER_PREFIX,
    ),
)

_COGVIDEOX = (
    KeyLayout(
        name="diffusers",
        title=f"The Matrix and diffusers' {cogvideox_vae.CLASS_NAME}",
        marks=("decoder.mid_block.resnets.0.norm1.norm_layer.weight",),
        rules=cogvideox_vae.rules,
        from_shapes=cogvideox_vae.from_shapes,
        from_config=cogvideox_vae.from_config,
        to_config=cogvideox_vae.to_config,
        limits=cogvideox_vae.limits,
    ),
)


def _theworld(style: str, title: str) -> KeyLayout:
    return KeyLayout(
        name=style,
        title=title,
        marks=theworld.marks(style),
        rules=functools.partial(theworld.rules, style=style),
        from_shapes=functools.partial(theworld.from_shapes, style=style),
        from_config=theworld.from_config,
        to_config=theworld.to_config,
        limits=theworld.limits,
        ignored=theworld.IGNORED,
        from_base=functools.partial(theworld.from_base, style=style),
        embedding=theworld.embedding(style),
        rows=theworld.rows,
        weights_name="model.safetensors",
        carried=theworld.CARRIED,
        trained_config=theworld.trained_config if style == theworld.STYLE else None,
    )


_THEWORLD = (
    _theworld("hub", "the published Gemma-3"),
    _theworld("transformers4", "TheWorld and Gemma-3 of transformers 4"),
    _theworld("transformers5", "Gemma-3 of transformers 5"),
    _theworld("transformers5-saved", "Gemma-3 as transformers 5 saves it"),
)


def _by_name(*layouts: KeyLayout) -> dict[str, KeyLayout]:
    return {layout.name: layout for layout in layouts}


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="worldplay",
            layouts=_by_name(*_WORLDPLAY),
            describe=worldplay.describe,
            runs=Runs(
                system="worldplay",
                recipe=worldplay.RECIPE,
                variants=worldplay.VARIANTS,
                guess_variant=worldplay.guess_variant,
            ),
        ),
        Family(
            name="cosmos",
            layouts=_by_name(*_COSMOS),
            describe=cosmos_config.describe,
            runs=Runs(
                system="cosmos",
                recipe=cosmos_config.RECIPES["2b"],
                variants={name: {} for name in cosmos_config.RECIPES},
                guess_variant=cosmos_config.guess_variant,
                recipes=cosmos_config.RECIPES,
            ),
        ),
        Family(
            name="cogvideox",
            layouts=_by_name(*_MATRIX),
            describe=cogvideox_config.describe,
            runs=Runs(
                system="matrix",
                recipe=cogvideox_config.RECIPES["stage1"],
                variants=cogvideox_config.SAMPLING,
                guess_variant=cogvideox_config.guess_variant,
                recipes=cogvideox_config.RECIPES,
            ),
            beside=cogvideox_config.beside,
        ),
        Family(
            name="theworld",
            layouts=_by_name(*_THEWORLD),
            describe=theworld.describe,
            runs=Runs(
                system="theworld",
                recipe=theworld.RECIPE,
                variants={theworld.VARIANT: {}},
                guess_variant=theworld.guess_variant,
                fit=theworld.fit,
            ),
        ),
        Family(
            name="wan-vae",
            layouts=_by_name(*_WAN),
            describe=lambda facts: "Wan 2.1 video autoencoder",
            autoencoder="wan",
        ),
        Family(
            name="hunyuan15-vae",
            layouts=_by_name(*_HUNYUAN15),
            describe=lambda facts: "HunyuanVideo-1.5 video autoencoder",
            autoencoder="hunyuan15",
        ),
        Family(
            name="cogvideox-vae",
            layouts=_by_name(*_COGVIDEOX),
            describe=lambda facts: "CogVideoX video autoencoder",
            autoencoder="cogvideox",
        ),
    )
}
#: What --variant may say.
VARIANTS = sorted({name for family in FAMILIES.values() if family.runs for name in family.runs.variants})


def of_system(system: str, where: str) -> Family:
    """The family of the runs of a system; `where` names one of them in the message of the error."""
    found = [family for family in FAMILIES.values() if family.runs and family.runs.system == system]
    if not found:
        raise errors.UserError(f"{where}: the system {system} has no checkpoint family to export to")
    return found[0]


def of_autoencoder(network: str) -> Family:
    """The family of a key of `jworld.models.autoencoders.files.NETWORKS`."""
    return next(family for family in FAMILIES.values() if family.autoencoder == network)
