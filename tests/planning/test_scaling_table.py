"""Rows of the tables in docs/scaling.md, and plans that are made again once there is a compiler."""

import dataclasses
import pathlib

import pytest

from jworld.planning import launch, topologies
from jworld.planning.plans import Plan
from scripts import scaling_table

RECIPE, TOPOLOGY = "theworld:projection", "h100-64"
PLAN = Plan(
    topology=TOPOLOGY,
    chips=64,
    chip="h100",
    mesh={"data": 1, "fsdp": 64, "sequence": 1},
    global_batch=64,
    remat="none",
    accumulate=1,
    parameters=3 * 2**20,
    optimizer=2**20,
    ema=0,
    batch=0,
    gradients=2**20,
    compiled=False,
    tokens=1000,
    useful_flops=None,
    flops=64 * 989e12,
    loops=1.0,
    limit=80 * 10**9,
)


def test_a_row_without_a_compiler() -> None:
    """Only figures that need no compiler are shown."""
    assert scaling_table.model_row(RECIPE, TOPOLOGY, PLAN) == [
        "theworld:projection (global_batch=64)",
        "h100-64 (64 chips)",
        "fsdp 64",
        "64 / 1",
        "5 MiB",
        "not compiled of 74.51 GiB",
        "unknown",
        "1.00 / ? / ? / ?",
        "1,000",
    ]


def test_plans_are_made_again_with_a_compiler(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*, compiler: bool, stored: bool = False) -> Plan | str:
        result = dataclasses.replace(PLAN, compiled=compiler, peak=2**30 if compiler else None)
        monkeypatch.setattr(topologies, "can_compile", lambda _: compiler)
        monkeypatch.setattr(launch, "run", lambda *_: result)
        return scaling_table.one_plan(RECIPE, TOPOLOGY, None, tmp_path, stored=stored)

    assert made(compiler=False, stored=True) == scaling_table.MISSING
    first = made(compiler=False)
    assert isinstance(first, Plan)
    assert not first.compiled
    assert made(compiler=True, stored=True) == first
    second = made(compiler=True)
    assert isinstance(second, Plan)
    assert second.compiled
    assert made(compiler=False) == second
