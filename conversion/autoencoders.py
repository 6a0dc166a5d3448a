"""Published video autoencoders: found by their tensors' names, read, and written back, in every key layout."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from conversion import cogvideox_vae, engine, hunyuan_vae, sources, wan_vae
from conversion.engine import Rule
from jworld import errors
from jworld.models.autoencoders import files
from jworld.models.autoencoders.network import VideoAutoencoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyLayout:
    """One way in which the tensors of a family are named.

    Attributes:
      family: key of `files.NETWORKS`.
      name: "original" or "diffusers".
      mark: a tensor that every file of this layout has, and none of another.
      rules: config -> key table.
      from_config: content of a config.json, its path for messages -> fields of the config.
    """

    family: str
    name: str
    mark: str
    rules: Callable[[Any], Sequence[Rule]]
    from_config: Callable[[Mapping[str, Any], str], dict[str, Any]]


LAYOUTS = (
    KeyLayout(
        family="wan",
        name="original",
        mark="decoder.middle.0.residual.0.gamma",
        rules=wan_vae.original,
        from_config=wan_vae.original_from_config,
    ),
    KeyLayout(
        family="wan",
        name="diffusers",
        mark="post_quant_conv.weight",
        rules=wan_vae.diffusers,
        from_config=wan_vae.diffusers_from_config,
    ),
    KeyLayout(
        family="hunyuan15",
        name="original",
        mark="decoder.mid.attn_1.norm.gamma",
        rules=hunyuan_vae.original,
        from_config=hunyuan_vae.from_config,
    ),
    KeyLayout(
        family="hunyuan15",
        name="diffusers",
        mark="decoder.mid_block.attentions.0.to_q.weight",
        rules=hunyuan_vae.diffusers,
        from_config=hunyuan_vae.from_config,
    ),
    KeyLayout(
        family="cogvideox",
        name="diffusers",
        mark="decoder.mid_block.resnets.0.norm1.norm_layer.weight",
        rules=cogvideox_vae.rules,
        from_config=cogvideox_vae.from_config,
    ),
)


def load(path: str | pathlib.Path, **settings: Any) -> VideoAutoencoder:
    """A published autoencoder from its file or folder; sizes from the config.json beside it, else the published ones.

    Args:
      path: what `sources.open_source` reads.
      settings: fields of the family's config that no checkpoint tells, such as dtype, chunk or attention.

    Raises:
      UserError: no such file, no such autoencoder, or tensors that are not exactly its own.
    """
    with sources.open_source(path) as source:
        layout = find_layout(source.tensors, str(path))
        told = {} if source.config is None else layout.from_config(source.config, str(path))
        tensors = {name: source.read(name) for name in source.tensors}
        return build(tensors, layout, **(told | settings))


def find_layout(names: Mapping[str, Any], where: str) -> KeyLayout:
    found = [layout for layout in LAYOUTS if layout.mark in names]
    if len(found) != 1:
        looked_for = "; ".join(f"{layout.mark} ({layout.family}, {layout.name})" for layout in LAYOUTS)
        raise errors.UserError(f"{where}: not one known autoencoder: expected one of {looked_for} among its tensors")
    return found[0]


def build(tensors: Mapping[str, np.ndarray], layout: KeyLayout, **fields: Any) -> VideoAutoencoder:
    """An autoencoder with these tensors, each of which must have its place; `fields` are of the family's config."""
    autoencoder, config_type = files.NETWORKS[layout.family]
    config = config_type(**fields)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: autoencoder(config, rngs=nnx.Rngs(0))))
    arrays = engine.import_tensors(tensors, abstract, layout.rules(config))
    return nnx.merge(graphdef, engine.to_state(abstract, arrays))


def export(model: VideoAutoencoder, layout: KeyLayout) -> dict[str, np.ndarray]:
    """The tensors of a model under the names of a layout of its family."""
    state = nnx.state(model, nnx.Param)
    arrays = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}
    places = engine.plan(engine.parameter_shapes(state), layout.rules(model.config))
    return {name: place.take(arrays[place.path]) for name, place in places.items()}
