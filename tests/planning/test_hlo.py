"""The text of compiled programs: loops, collectives and memory traffic, compared with known figures."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import known_traffic
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jworld.parallel import mesh as meshes
from jworld.planning import collectives, hlo, topologies

LAYERS, WIDTH, ROWS = 5, 64, 16
MESH = meshes.make_mesh(data=2, fsdp=2, sequence=2)
SIZES = dict(MESH.shape)


def compiled(function: Any, *arrays: tuple[tuple[int, ...], P]) -> Any:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, spec)) for shape, spec in arrays]
    with jax.set_mesh(MESH):
        return jax.jit(function).lower(*arguments).compile()


def test_collectives_in_a_loop_count_once_per_iteration() -> None:
    """Kernels are sharded by columns over fsdp, so each layer gathers its output; the result is summed over data."""

    def layers(weights: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), P("data", None)), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    program = compiled(layers, ((LAYERS, WIDTH, WIDTH), P(None, None, "fsdp")), ((ROWS, WIDTH), P("data", None)))
    rows = collectives.find(hlo.Module(program.as_text()), SIZES)
    # Half of the columns of this replica's half of the rows come from the neighbor.
    assert set(rows) == {
        ("all-gather", "fsdp", LAYERS, LAYERS * (ROWS // 2) * (WIDTH // 2) * 4, 0),
        ("all-reduce", "data", 1, 4, 0),
    }


def test_a_group_over_two_axes_is_named_by_both() -> None:
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(x)

    program = compiled(total, ((ROWS, WIDTH), P(("data", "sequence"), None)))
    (row,) = collectives.find(hlo.Module(program.as_text()), SIZES)
    assert (row.kind, row.axes, row.sent) == ("all-reduce", "data x sequence", 2 * 4 * 3 // 4)


LINE = "%c = f32[8,16]{{1,0}} {opcode}(%p), channel_id=1, {groups}, use_global_device_ids=true, dimensions={{0}}"


@pytest.mark.parametrize(
    ("groups", "axes", "members"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "sequence", 2),
        ("replica_groups=[2,4]<=[8]", "fsdp x sequence", 4),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", "fsdp", 2),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", "data x sequence", 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'a'}", "data x sequence", 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,2,2]T(0,2,1)) {'b'}", "fsdp", 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", "data", 2),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}", "fsdp x sequence", 4),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'b'}", "fsdp x sequence", 4),
        ("replica_groups={}", "data x fsdp x sequence", 8),
    ],
)
def test_every_notation_of_groups(groups: str, axes: str, members: int) -> None:
    text = "\n".join(
        [
            "ENTRY %main (p: f32[8,16]) -> f32[8,16] {",
            "  %p = f32[8,16]{1,0} parameter(0)",
            "  ROOT " + LINE.format(opcode="all-gather", groups=groups),
            "}",
        ]
    )
    (row,) = collectives.find(hlo.Module(text), SIZES)
    assert row == ("all-gather", axes, 1, 8 * 16 * 4 * (members - 1) // members, 0)


def test_halves_of_an_asynchronous_collective_count_once() -> None:
    """The text is that of a TPU: fusions that share a channel, a loop without annotation, a fused reduce-scatter."""
    groups = "replica_groups=[4,2]<=[8]"
    text = f"""
%start (p.1: f32[4,16]) -> f32[8,16] {{
  %p.1 = f32[4,16]{{1,0}} parameter(0)
  ROOT %g.1 = f32[8,16]{{1,0:T(8,128)S(1)}} all-gather(%p.1), channel_id=7, {groups}, dimensions={{0}}
}}
%done (p.2: f32[4,16]) -> f32[8,16] {{
  %p.2 = f32[4,16]{{1,0}} parameter(0)
  ROOT %g.2 = f32[8,16]{{1,0}} all-gather(%p.2), channel_id=7, {groups}, dimensions={{0}}
}}
%all-reduce-scatter.3 (p.3: f32[8,16]) -> f32[4,16] {{
  %p.3 = f32[8,16]{{1,0}} parameter(0)
  %r.3 = f32[8,16]{{1,0}} all-reduce(%p.3), channel_id=8, {groups}, to_apply=%add
  ROOT %d.3 = f32[4,16]{{1,0}} dynamic-slice(%r.3), dynamic_slice_sizes={{4,16}}
}}
%body (t: (s32[], f32[4,16])) -> (s32[], f32[4,16]) {{
  %t = (s32[], f32[4,16]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[4,16]{{1,0}} get-tuple-element(%t), index=1
  %f.1 = f32[8,16]{{1,0}} fusion(%x), kind=kCustom, calls=%start
  %f.2 = f32[8,16]{{1,0}} fusion(%x), kind=kCustom, calls=%done
  %f.3 = f32[4,16]{{1,0}} fusion(%f.2), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %n = (s32[], f32[4,16]{{1,0}}) tuple(%i, %f.3)
}}
%condition (t: (s32[], f32[4,16])) -> pred[] {{
  %t = (s32[], f32[4,16]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %limit = s32[]{{:T(128)}} constant(54)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}
ENTRY %main (p: (s32[], f32[4,16])) -> (s32[], f32[4,16]) {{
  %p = (s32[], f32[4,16]{{1,0}}) parameter(0)
  ROOT %w = (s32[], f32[4,16]{{1,0}}) while(%p), condition=%condition, body=%body
}}"""
    rows = collectives.find(hlo.Module(text), SIZES)
    half = 8 * 16 * 4 // 2
    assert set(rows) == {
        ("all-gather", "sequence", 54, 54 * half, 0),
        ("reduce-scatter", "sequence", 54, 54 * half, 0),
    }


@pytest.mark.parametrize("linked", [4, 8])
def test_traffic_computed_by_hand(linked: int) -> None:
    assert known_traffic.found(MESH, linked) == known_traffic.expected(SIZES, linked)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_traffic_computed_by_hand_on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in topologies.environment(topologies.parse("v5p-32"), hardware_needed=False).items():
        monkeypatch.setenv(name, value)
    mesh = meshes.make_mesh(data=2, fsdp=4, sequence=2, devices=topologies.devices(topologies.parse("v5p-32")))
    with jax.default_matmul_precision("default"):
        assert known_traffic.found(mesh, 16) == known_traffic.expected(dict(mesh.shape), 16)


def test_results_of_asynchronous_collectives() -> None:
    """The text is that of a GPU: operands and results in one tuple, only results for an all-reduce."""
    groups = "channel_id=1, replica_groups=[4,2]<=[8]"
    text = f"""
ENTRY %main (p: f32[8,16]) -> f32[8,16] {{
  %p = f32[8,16]{{1,0}} parameter(0)
  %a = ((f32[8,16]{{1,0}}), f32[4,16]{{1,0}}) reduce-scatter-start(%p), {groups}, dimensions={{0}}, to_apply=%add
  %b = f32[4,16]{{1,0}} reduce-scatter-done(%a)
  %c = (f32[4,16]{{1,0}}, f32[8,16]{{1,0}}) all-gather-start(%b), {groups}, dimensions={{0}}
  %d = f32[8,16]{{1,0}} all-gather-done(%c)
  %e = ((f32[8,16]{{1,0}}), f32[8,16]{{1,0}}) all-to-all-start(%d), {groups}, dimensions={{1}}
  %f = f32[8,16]{{1,0}} all-to-all-done(%e)
  %g = (f32[8,16]{{1,0}}, f32[2]{{0}}) all-reduce-start(%f, %f), {groups}, to_apply=%add
  ROOT %h = (f32[8,16]{{1,0}}, f32[2]{{0}}) all-reduce-done(%g)
}}"""
    half = 8 * 16 * 4 // 2
    assert set(collectives.find(hlo.Module(text), SIZES)) == {
        ("reduce-scatter", "sequence", 1, half, 0),
        ("all-gather", "sequence", 1, half, 0),
        ("all-to-all", "sequence", 1, half, 0),
        ("all-reduce", "sequence", 1, 2 * half + 8, 0),
    }


def test_memory_traffic_of_a_product_and_of_slices() -> None:
    size = 512
    product = compiled(jnp.matmul, ((size, size), P()), ((size, size), P()))
    assert hlo.memory_traffic(hlo.Module(product.as_text())) == pytest.approx(3 * size * size * 4, rel=0.01)

    def layers(weights: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, weights)[0]

    stacked = compiled(layers, ((LAYERS, size, size), P()), ((ROWS, size), P()))
    # Each kernel is read in place or sliced first; reading all of them in every iteration would be five times as much.
    whole = LAYERS * size * size * 4
    assert whole < hlo.memory_traffic(hlo.Module(stacked.as_text())) < 3.5 * whole


def test_bytes_of_shapes() -> None:
    assert hlo.array_bytes("(bf16[4,8]{1,0}, pred[3], s32[])") == 64 + 3 + 4
    assert hlo.array_bytes("(f32[4]{0:T(128)S(1)}, f32[4]{0:T(128)})", main_memory=True) == 16
    assert hlo.array_bytes("f8e4m3fn[10]") == 10
    assert hlo.tuple_parts("((f32[2,3]{1,0}, s32[]), f32[4]{0})") == ["(f32[2,3]{1,0}, s32[])", "f32[4]{0}"]
