"""Training examples of rollouts, for a model of a few thousand parameters: parts of one recorded clip."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from jworld.cameras import pose_strings
from jworld.data import pipeline
from jworld.utils import config as run_config

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
#: Latents of the clip, and of its chunks.
FRAMES, SIZE = 36, 4


class Store:
    """A text store with one prompt."""

    def prompt(self, row: int) -> dict[str, np.ndarray]:
        return {"text_states": np.full((3, 8), 0.1 + row, np.float32)}


class Start:
    """A generator that draws the first chunk of a rollout."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    def random(self) -> float:
        return 0.5

    def integers(self, *_: Any, **__: Any) -> int:
        return self.chunk


def small(recipe: str, **changes: Any) -> ml_collections.ConfigDict:
    """Load a recipe, such as "ar_distill.py:forcing", with a small model."""
    config = run_config.load_recipe(str(CONFIGS / recipe))
    with config.unlocked():
        config.model.update({"channels": 4, "patch_size": (1, 1, 1), "width": 32, "num_layers": 1, "text_dim": 8})
        config.model.update({"rope_dims": (4, 2, 2), "vision_dim": 5})
        config.data.clip.update({"latent_size": (2, 2), "text_tokens": 5, "vision_tokens": 3, "text_dropout": 0.0})
        config.data.clip.update({"memory_points": 200, "curriculum": ((0, FRAMES),)})
        config.update_from_flattened_dict(changes)
    return config


def path() -> pose_strings.CameraPath:
    """Go ahead, turn around and come back, so that frames are retrieved."""
    return pose_strings.path(f"w-11, right-12, w-{FRAMES - 24}", pose_strings.Units(turn=15))


@functools.cache
def record() -> dict[str, Any]:
    """Return the clip, whose latents are random."""
    rng, cameras = np.random.default_rng(0), path()
    return {
        "latent": rng.normal(size=(FRAMES, 2, 2, 4)).astype(np.float32),
        "image_cond": rng.normal(size=(1, 2, 2, 4)).astype(np.float32),
        "w2c": cameras.w2c,
        "intrinsics": cameras.intrinsics,
        "action": cameras.action,
        "prompt": np.int32(1),
        "vision_states": rng.normal(size=(3, 5)).astype(np.float32),
        "index": np.int64(0),
    }


def batch(system: Any, starts: Sequence[int], clip: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make a batch of rollouts of `clip`, by default `record`, that start at these chunks."""
    transform = system.transform(Store(), 1)
    element = {"record": record() if clip is None else clip, "position": 0}
    rows = [transform.random_map(element, Start(start)) for start in starts]
    return {name: jnp.asarray(array) for name, array in pipeline.stack(rows).items() if name != "index"}


@functools.cache
def weights(system: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """Return a model with its parts, none of whose weights are zero."""
    with nnx.use_eager_sharding(False):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: system.init_training(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)
