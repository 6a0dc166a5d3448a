"""WorldPlay's checkpoint family and published models, which share names and shapes but are sampled differently."""

import pathlib
from collections.abc import Mapping
from typing import Any

from conversion import naming, schedulers
from conversion.base import Family, Runs

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
    ),
)
