"""Planned memory from launch to the second step, compared with that of a process."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import tiny

from jworld.planning import launch, topologies

#: 371 million parameters, with AdamW 5.5 GiB of state and EMA; a batch of one short clip.
SIZES: dict[str, Any] = {
    "model__width": 1024,
    "model__num_heads": 8,
    "model__rope_dims": (32, 48, 48),
    "model__num_layers": 9,
    "model__dtype": "float32",
    "model__remat": "full",
    "data__clip__window_frames": 8,
    "global_batch": 1,
    "mesh__data": 1,
    "mesh__fsdp": 1,
    "mesh__sequence": 1,
}


def run(*arguments: str) -> str:
    script = pathlib.Path(__file__).parent / "measured_run.py"
    environment = os.environ | topologies.environment(topologies.parse("cpu:1"), hardware_needed=False)
    return subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
def test_the_plan_holds_from_launch_to_the_second_step(tmp_path: pathlib.Path) -> None:
    """The peak of a run from given weights is that of the larger of start and step."""
    config = tiny.config(**SIZES)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    given = str(tmp_path / "weights")
    arguments = str(tmp_path / "config.json"), given
    run(*arguments)
    config.init_from = given
    plan = launch.run(config, topologies.parse("cpu:1"))
    assert plan.parameters > 300_000_000 * 4
    assert plan.peak is not None
    assert plan.start is not None
    measured = int(run(*arguments).splitlines()[-1])
    assert measured == pytest.approx(max(plan.start, plan.peak), rel=0.1)
