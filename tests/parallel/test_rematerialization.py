"""No tensor of a training step is copied whole to every device because its sharding is not stated."""

import os
import subprocess
import sys

import commands
import pytest
import xla_flags

PROGRAM = """
import sys
import jax
from jworld.planning import program
from jworld.systems import recipes
from jworld.utils import config
recipe, *changes = sys.argv[1:]
changed = recipes.change(config.load_recipe(recipe), dict(change.split("=", 1) for change in changes))
program.Program(changed, jax.devices()).lower().compile()
print("compiled")
"""
COSMOS = (
    "configs/cosmos_video2world.py:base",
    "data.clip.window_frames=4",
    "model.width=48",
    "model.num_layers=2",
    "model.num_heads=4",
)
MATRIX = ("configs/matrix_control.py", "model.width=48")
WORLDPLAY = ("configs/ar_mem.py:rooms", *(word.removeprefix("--config.") for word in commands.MODEL))


@pytest.mark.slow
@pytest.mark.parametrize(
    "run, mesh",
    [
        (WORLDPLAY, ("mesh.sequence=4",)),
        (WORLDPLAY, ("mesh.data=2", "mesh.fsdp=2", "mesh.sequence=2")),
        (COSMOS, ("mesh.sequence=4",)),
        (MATRIX, ("mesh.sequence=4",)),
    ],
)
def test_no_involuntary_rematerialization(run: tuple[str, ...], mesh: tuple[str, ...]) -> None:
    environment = {
        "XLA_FLAGS": xla_flags.fast_compilation(8),
        "JAX_ENABLE_COMPILATION_CACHE": "0",  # a program that is read back gives no warnings
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *run, "global_batch=8", *mesh],
        cwd=commands.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.stdout == "compiled\n", result.stderr
    assert "full rematerialization" not in result.stderr, result.stderr
