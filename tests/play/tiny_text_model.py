"""A tiny TheWorld with random weights, which answers questions of players."""

import functools
import pathlib

import jax
import tiny_systems

from jworld import systems
from jworld.data.conversations import chat, dataset
from jworld.parallel import mesh
from jworld.play import answers
from jworld.systems import runs
from jworld.utils import config as run_config

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = 24


@functools.cache
def answerer() -> answers.Answerer:
    """Return a model with random weights, whose tokens are drawn with a fixed seed."""
    config = run_config.load_recipe(str(ROOT / "configs" / "theworld.py"))
    with config.unlocked():
        config.model.update({"num_layers": 1, "vision_layers": 1})
        config.sample.rollout.update({"max_tokens": TOKENS, "temperature": 1.0})
    system = systems.create(config)
    tokenizer = chat.load(ROOT / "assets" / "tokenizer", image_tokens=config.model.image_tokens)
    model, one = tiny_systems.make_model(system, scale=0.04), mesh.make_mesh(devices=jax.devices()[:1])
    return answers.Answerer(runs.Run(config, system, model, dataset.RunEncoders(tokenizer), None, one))
