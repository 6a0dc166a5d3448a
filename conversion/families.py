"""The registry of checkpoint families and their key layouts, and lookups in it."""

from collections.abc import Iterable

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
    theworld,
    wan_vae,
    worldplay,
)
from conversion.base import Family, KeyLayout, Runs
from jworld.utils import errors

__all__ = ["FAMILIES", "Family", "KeyLayout", "Runs", "detect", "find", "of_autoencoder", "of_system", "variants"]

#: Families by name, each with its layouts.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        worldplay.FAMILY.with_layouts(hunyuan.LAYOUT, hunyuan_diffusers.LAYOUT),
        cosmos_config.FAMILY.with_layouts(cosmos.LAYOUT, cosmos_diffusers.LAYOUT),
        cogvideox_config.FAMILY.with_layouts(cogvideox.LAYOUT),
        theworld.FAMILY.with_layouts(*theworld.LAYOUTS),
        wan_vae.FAMILY.with_layouts(wan_vae.ORIGINAL, wan_vae.DIFFUSERS),
        hunyuan_vae.FAMILY.with_layouts(hunyuan_vae.ORIGINAL, hunyuan_vae.DIFFUSERS),
        cogvideox_vae.FAMILY.with_layouts(cogvideox_vae.LAYOUT),
    )
}


def detect(names: Iterable[str], where: str, *, family: str | None = None) -> tuple[Family, KeyLayout]:
    """Return the family and layout of a file with tensors of these names.

    Args:
      names: all tensors.
      where: the file, for messages.
      family: name of the only family to consider.

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
    """Return the family of this name; an unknown name is a `UserError`."""
    if name not in FAMILIES:
        raise errors.UserError(f"--family is {name!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def variants() -> list[str]:
    """Return the values of `--variant`: the published models of all systems."""
    return sorted({name for family in FAMILIES.values() if family.runs for name in family.runs.variants})


def of_system(system: str, where: str) -> Family:
    """Return the family of a system's runs; `where` names the run in the error if there is none."""
    found = [family for family in FAMILIES.values() if family.runs and family.runs.system == system]
    if not found:
        raise errors.UserError(f"{where}: the system {system} has no checkpoint family to export to")
    return found[0]


def of_autoencoder(network: str) -> Family:
    """Return the family of a key of `jworld.models.autoencoders.files.NETWORKS`.

    Raises:
      UserError: the network has no published weights.
    """
    for family in FAMILIES.values():
        if family.autoencoder == network:
            return family
    raise errors.UserError(f"an autoencoder of the family {network!r} has no published key names to convert to or from")
