"""Folders of runs of every video system with random weights, for tests of generation."""

import pathlib
from typing import Any

import commands
import numpy as np
import PIL.Image
import tiny_run

from jworld import systems
from jworld.utils import config as run_config

ROOT = pathlib.Path(__file__).parent.parent
#: Recipe, values of the config and arguments of `generate`, by name. The convolution that joins tokens would be most of
#: so small a network.
RUNS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "worldplay": (
        "ar_mem.py:rooms",
        {
            "model.width": 32,
            "model.num_heads": 2,
            "model.num_layers": 1,
            "model.rope_dims": (4, 6, 6),
            "data.clip.memory_points": 100,
        },
        ("--image", "IMAGE", "--pose", "w-3"),
    ),
    "cosmos": (
        "cosmos_video2world.py:base",
        {"data.clip.window_frames": 3, "data.encoding.clip_frames": 9, "model.output_kernel": 1},
        ("--image", "IMAGE"),
    ),
    "clip": (
        "matrix_lora.py:base",
        {
            "data.clip.window_frames": 3,
            "data.encoding.clip_frames": 9,
            "model.output_kernel": 1,
            "sample.rollout.num_steps": 4,
        },
        (),
    ),
    "stream": (
        "matrix_swin_dpm.py",
        {
            "sample.rollout.num_steps": 8,
            "model.output_kernel": 1,
            "init_from": "",
            "model.control_layers": (0, 1),
        },
        ("--image", "IMAGE", "--actions", "D*2"),
    ),
}


def make(name: str, directory: pathlib.Path) -> pathlib.Path:
    """Make the folder of a run, once per `directory`, with a first image next to it; -> the folder."""
    run = directory / name
    if run.is_dir():
        return run
    recipe, changes, _ = RUNS[name]
    config = run_config.load_recipe(str(ROOT / "configs" / recipe))
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "data.records": str(directory / f"records-{name}"),
                "data.recording.directory": str(directory / "episodes"),
                "data.recording.episodes": 8,
                "data.recording.frames": 97,
                "data.recording.image_size": (64, 48),
                **({"model.width": 48, "model.num_layers": 1} if name != "worldplay" else {}),
                **changes,
            }
        )
    system = systems.create(config)
    system.data.prepare()
    return tiny_run.write(run, config)


def image(directory: pathlib.Path) -> pathlib.Path:
    """Write an image with edges, once per `directory`; -> the file."""
    directory.mkdir(exist_ok=True)
    path = directory / "first.png"
    if not path.is_file():
        pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        PIL.Image.fromarray(pixels).resize((80, 60), PIL.Image.Resampling.NEAREST).save(path)
    return path


def arguments(name: str, directory: pathlib.Path, out: pathlib.Path, *extra: str) -> list[str]:
    """Return a command line of `generate` for the run; options of `extra` replace the others."""
    words = [str(image(directory)) if word == "IMAGE" else word for word in RUNS[name][2]]
    own = ["--checkpoint", str(make(name, directory)), "--prompt", "a red room", *words, "--out", str(out)]
    return commands.replaced(own, *extra)
