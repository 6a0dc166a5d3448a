"""The search for a mesh and the advice, on invented plans instead of compiled ones."""

from typing import Any

import tiny

from jworld.planning import recommendations, search, topologies
from jworld.planning.plans import Plan

GIB = 2**30
V5E = topologies.parse("v5e-8")


def make(config: Any, *, rows_bytes: int = 10 * GIB, parameters: int = GIB) -> Plan:
    """Make a plan whose temporaries grow with the samples that a group of chips processes at a time."""
    mesh = dict(config.mesh)
    rows = config.global_batch // mesh["data"] // mesh["fsdp"] // config.optimizer.accumulate
    temporaries = rows * rows_bytes // mesh["sequence"] + parameters
    return Plan(
        **{"topology": "v5e-8", "chips": 8, "chip": "v5e", "mesh": mesh, "global_batch": config.global_batch},
        **{"remat": config.model.remat, "accumulate": config.optimizer.accumulate, "compiled": True},
        **{"parameters": parameters, "optimizer": parameters, "ema": 0, "batch": 0, "gradients": parameters},
        **{"tokens": 1, "useful_flops": 1e12, "flops": 1e12, "loops": 1.0, "limit": 16 * GIB},
        temporaries=temporaries,
        peak=temporaries + 2 * parameters,
    )


def test_a_mesh_that_does_not_fit_is_tried_with_fewer_samples_at_a_time() -> None:
    config = tiny.config(global_batch=16)
    found = search.search(config, V5E, lambda c, _: make(c), tries=6, report=lambda _: None)
    fits = [bool(entry.plan.fits) for entry in found]
    assert fits == sorted(fits, reverse=True)
    assert set(fits) == {True, False}
    assert "optimizer.accumulate" in next(e.changes for e in found if e.plan.fits and e.plan.mesh["sequence"] == 1)


def test_the_number_of_compilations_is_bounded() -> None:
    configs: list[Any] = []

    def run(config: Any, _: Any) -> Plan:
        configs.append(config)
        return make(config)

    assert len(search.search(tiny.config(), V5E, run, tries=2, report=lambda _: None)) == len(configs) == 2


def test_advice_names_values_of_the_config_that_are_valid() -> None:
    config = tiny.config(global_batch=16, mesh__data=1, mesh__fsdp=8, mesh__sequence=1)
    lines = recommendations.advise(config, make(config, rows_bytes=10 * GIB))
    assert lines[0].startswith("--config.optimizer.accumulate=2:")
    assert any(line.startswith("--config.model.remat=attention") for line in lines)
    assert any("mesh.sequence=2" in line for line in lines)
    assert not recommendations.advise(config, make(config, rows_bytes=GIB))
    state = recommendations.advise(config, make(config, rows_bytes=0, parameters=8 * GIB))
    assert state[0].startswith("more chips, or chips with more memory")
