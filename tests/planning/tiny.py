"""Config whose step compiles in seconds: two layers, two chunks of frames, AdamW."""

from typing import Any

import ml_collections

from jworld.planning import recommendations
from jworld.utils import config as run_config

CHANGES: dict[str, Any] = {
    "init_from": "",
    "model.width": 32,
    "model.num_heads": 2,
    "model.num_layers": 2,
    "model.rope_dims": (4, 6, 6),
    "model.channels": 8,
    "data.encoding.autoencoder": "",
    "data.clip.window_frames": 8,
    "data.clip.memory_frames": 4,
    "data.clip.temporal_context": 0,
    "optimizer.name": "adamw",
    "global_batch": 8,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.sequence": 2,
}
FLAGS = [f"--config.{key}={value}" for key, value in CHANGES.items()]


def config(**changes: Any) -> ml_collections.ConfigDict:
    """Make the config; `changes` have dotted keys with two underscores for each dot."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return recommendations.changed(run_config.load_recipe("configs/ar_mem.py"), CHANGES | dotted)
