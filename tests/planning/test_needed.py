"""Bytes that a step must send, against numbers made by hand; test_plan.py compares them with a compiled program."""

import types
from typing import Any

import jax
import numpy as np
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from jworld.parallel import mesh as mesh_lib
from jworld.planning import needed
from jworld.planning.program import Program


def test_weights_and_gradients_by_hand() -> None:
    mesh = mesh_lib.make_mesh(data=2, fsdp=4, sequence=1)

    def array(shape: tuple[int, ...], *axes: str | None, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    params = {"kernel": array((64, 100), "fsdp", None), "bias": array((100,))}
    frozen = {"table": array((40, 100), None, "fsdp", dtype=np.int8)}
    program: Any = types.SimpleNamespace(
        state=types.SimpleNamespace(params=params, others=frozen, critic=None),
        system=types.SimpleNamespace(parts=()),
        optimizer=types.SimpleNamespace(config=types.SimpleNamespace(accumulate=3)),
        mesh=mesh,
        config=types.SimpleNamespace(model={"dtype": "bfloat16"}),
    )
    found = {(row.kind, row.axes): row.sent for row in needed.of(program)}
    kernel, bias, table = 2 * 64 * 100, 2 * 100, 40 * 100
    assert found == {
        # Forward and backward pass of three parts of the batch; a device sends three quarters.
        ("weights, in every pass", "fsdp"): 6 * 3 * (kernel + table) // 4,
        ("gradients, scattered", "fsdp"): 3 * kernel // 4,
        # A ring over two replicas sends every byte of a shard once; one over eight seven eighths of it twice.
        ("gradients, between replicas", "data"): kernel // 4,
        ("gradients, between replicas", "data x fsdp"): 2 * 7 * bias // 8,
    }
    program.system.parts = ("teacher",)
    assert needed.of(program) == ()


def test_heads_of_self_attention_by_hand() -> None:
    """The tiny model: 32 tokens of text, 12 of the image, and 8 latents of 12 tokens, in two heads of 16 numbers."""
    program = Program(tiny.config(loss__own_errors=0.0), jax.devices("cpu")[:8])
    # The refiner of text; in both layers text and image attend to each other, and the video with and without cameras.
    rows = 2 * 32 + 2 * (2 * (32 + 12) + 2 * 2 * 8 * 12)
    assert needed.exchanged(program) == 8 * 16 * rows * 4
    # Float32, there and back in the forward and in the backward pass; half of it stays on a device.
    (found,) = [row for row in needed.of(program) if row.kind.startswith("heads")]
    assert found.sent == 2 * 4 * 8 * 16 * rows * 4 // 8 // 2
