"""Checkpoint families: which files belong to which system, and what their names, shapes and config.json tell."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from conversion import hunyuan, hunyuan_diffusers
from conversion.engine import Rule, Shape
from jworld import errors


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
      limits: model config -> why the other program cannot load weights of these sizes all the same; empty if it can.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    rules: Callable[[Any], Sequence[Rule]]
    from_shapes: Callable[[Mapping[str, Shape]], dict[str, Any]]
    from_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    to_config: Callable[[Any], dict[str, Any]]
    limits: Callable[[Any], list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints of one network, in one or more layouts.

    Attributes:
      name: the word for it on the command line.
      system: `config.system` of the runs that use it.
      layouts: by name.
      variant: fields of the model config, as far as known -> which published model this is, in words.
    """

    name: str
    system: str
    layouts: Mapping[str, KeyLayout]
    variant: Callable[[Mapping[str, Any]], str]


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


def _worldplay_variant(fields: Mapping[str, Any]) -> str:
    """Bidirectional, autoregressive, RL and distilled models have the same tensors: nothing tells them apart."""
    name = "WorldPlay (HunyuanVideo-1.5 with actions and cameras)" if fields.get("actions") else "HunyuanVideo-1.5"
    return name + ("" if fields.get("glyph_dim", 0) is not None else ", without glyph input")


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

FAMILIES: dict[str, Family] = {
    "worldplay": Family(
        name="worldplay",
        system="worldplay",
        layouts={layout.name: layout for layout in _WORLDPLAY},
        variant=_worldplay_variant,
    ),
}
