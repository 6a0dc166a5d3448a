"""Recipes with the sizes of the guides."""

import ml_collections

from guides import shrink
from jworld.systems import recipes
from jworld.utils import config as run_config


def recipe(name: str) -> ml_collections.ConfigDict:
    """Return the recipe "file.py:variant" of the current folder with the overrides of `shrink`."""
    changes = dict(key.removeprefix("--config.").split("=", 1) for key in shrink.RECIPES[name])
    return recipes.change(run_config.load_recipe(f"configs/{name}"), changes)
