"""Config of small sets of conversations."""

import pathlib
from typing import Any

import ml_collections

SHIPPED = pathlib.Path(__file__).parents[1] / "assets" / "tokenizer"


def make_config(folder: pathlib.Path, **conversations: Any) -> ml_collections.ConfigDict:
    """Return the sections of a config that `Conversations` reads, with data in `folder`."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "global_batch": 4,
            "mesh": {"data": 1, "fsdp": -1, "sequence": 1},
            "data": {
                "records": str(folder / "conversations"),
                "threads": 1,
                "prefetch": 1,
                "tokenizer": str(SHIPPED),
                "recording": {
                    "source": "rooms",
                    "directory": str(folder / "episodes"),
                    "episodes": 2,
                    "frames": 121,
                    "image_size": (32, 24),
                },
                "conversations": {"format": "questions", **conversations},
                "questions": {"per_answer": 3, "view_size": (16, 12)},
                "clip": {"lengths": (48, 96), "image_size": 8, "world_size": 16},
            },
        }
    )
