"""python -m jworld.planning.worker OUTPUT: one plan, from a request on standard input to a JSON file.

It is a separate process because the number of virtual devices and the platform are fixed when JAX starts, and because
the TPU compiler prints to standard error.
"""

import json
import pathlib
import sys
from typing import Any

import ml_collections

from jworld.planning import compile_step, generation, topologies
from jworld.utils import errors


def main() -> None:
    request = json.load(sys.stdin)
    config = ml_collections.ConfigDict(request["config"]).lock()
    answer: dict[str, Any]
    try:
        topology, mesh = topologies.parse(request["topology"]), request.get("generation")
        plan: Any
        if mesh is None:
            plan = compile_step.make(config, topology)
        else:
            plan = generation.make(config, topology, mesh, request["quantize"])
        answer = {"plan": plan.to_json()}
    except errors.UserError as error:
        answer = {"error": str(error)}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
