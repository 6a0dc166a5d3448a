"""WorldPlay's published models: their tensors are named and shaped alike, but they are sampled differently."""

import pathlib
from collections.abc import Mapping
from typing import Any

#: Whose values stand wherever nothing else is said.
RECIPE = "ar_mem.py:8b"
_PUBLISHED = {"num_steps": 50, "shift": 5.0, "guidance": 6.0}
#: `config.sample.rollout` of each.
VARIANTS: dict[str, dict[str, Any]] = {
    "ar": {"mode": "autoregressive", **_PUBLISHED},
    "rl": {"mode": "autoregressive", **_PUBLISHED},
    "distilled": {"mode": "autoregressive", **_PUBLISHED, "num_steps": 4, "guidance": 1.0},
    "bidirectional": {"mode": "bidirectional", **_PUBLISHED},
    "base": {"mode": "bidirectional", **_PUBLISHED},
}
_FOLDERS = {"ar_distilled_action_model": "distilled", "ar_rl_model": "rl", "bidirectional_model": "bidirectional"}


def guess_variant(path: pathlib.Path, facts: Mapping[str, Any]) -> str:
    """The published model that a path is, by the names of the download; the tensors tell only the base apart."""
    if facts.get("actions") is False:
        return "base"
    return next((variant for name, variant in _FOLDERS.items() if name in str(path.absolute())), "ar")


def describe(facts: Mapping[str, Any]) -> str:
    """Fields of the model config, as far as known -> which network this is, in words."""
    name = "WorldPlay (HunyuanVideo-1.5 with actions and cameras)" if facts.get("actions") else "HunyuanVideo-1.5"
    return name + ("" if facts.get("glyph_dim", 0) is not None else ", without glyph input")
