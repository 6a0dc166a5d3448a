"""Start of the process that makes a plan."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import ml_collections

from jworld.planning import topologies
from jworld.planning.generation_plans import GenerationPlan
from jworld.planning.plans import Plan
from jworld.utils import errors


def run(config: ml_collections.ConfigDict, topology: topologies.Topology) -> Plan:
    """Make the plan of a config's train step on a topology.

    Raises:
      UserError: the compiler is not installed, or the config is inconsistent or does not fit the topology.
    """
    return Plan.from_json(_answer(config, topology, {}))


def run_generation(
    config: ml_collections.ConfigDict,
    topology: topologies.Topology,
    mesh: Mapping[str, int],
    quantize: str | None = None,
) -> GenerationPlan:
    """Make the plan of generation with a config's model, on a mesh of the first chips of a topology.

    `quantize` is the type of quantized weights, or None.

    Raises:
      UserError: as `run`, or the mesh has more chips than the topology.
    """
    return GenerationPlan.from_json(_answer(config, topology, {"generation": dict(mesh), "quantize": quantize}))


def _answer(
    config: ml_collections.ConfigDict, topology: topologies.Topology, request: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON form of a plan."""
    topologies.check_tools(topology)
    gpu = topology.platform == "gpu" and os.path.exists("/dev/nvidiactl")
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "plan.json"
        result = subprocess.run(
            [sys.executable, "-m", "jworld.planning.worker", str(output)],
            input=json.dumps({"config": config.to_dict(), "topology": topology.name, **request}),
            env=os.environ | topologies.environment(topology, hardware_needed=gpu),
            capture_output=True,
            text=True,
            check=False,
        )
        if not output.is_file():
            # Not a user error: the output of the process has the reason.
            sys.stderr.write(result.stderr[-4000:])
            raise RuntimeError(f"the compiler's process ended with code {result.returncode}")
        answer = json.loads(output.read_text())
    if "error" in answer:
        raise errors.UserError(answer["error"])
    plan: dict[str, Any] = answer["plan"]
    return plan
