"""python -m jworld.plan --config=configs/ar_mem.py:8b --topology=v5p-128
python -m jworld.plan generate --config=configs/ar_mem.py:8b --topology=v5e-8 --mesh sequence=4

Estimates what a recipe costs on a topology before it is rented: memory per chip, arithmetic, communication between
chips, and a lower bound on the time of a step. The train step is compiled for real, but no accelerator is needed and
nothing is allocated. For a TPU topology this takes minutes, and the package libtpu (extra `tpu`); for NVIDIA GPUs the
extra `gpu-compiler`.

With `generate` it estimates generation instead: the programs of a chunk, or of an answer.
"""

import argparse
import pathlib
from collections.abc import Sequence

import ml_collections
import rich.console
import rich.progress

from jworld.parallel import mesh
from jworld.planning import generation_tables, launch, recommendations, search, tables, topologies
from jworld.planning.plans import Plan
from jworld.systems import options as generation_options
from jworld.systems import recipes
from jworld.utils import arguments, errors, files, outputs

DESCRIPTION = """Estimate what a recipe costs on a topology: memory per chip, arithmetic, communication between chips,
and a lower bound on the time of a step.

The train step is compiled for real, without an accelerator and without allocating anything. This takes minutes. For a
TPU topology it needs the package libtpu (extra tpu), for NVIDIA GPUs the extra gpu-compiler.

"generate" estimates generation with the recipe's model instead: memory, arithmetic and a lower bound on the time of
every program of a chunk, and frames or tokens per second at most."""

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    config = recipes.from_options(options)
    if options.json is not None:
        outputs.check_file("--json", options.json)
    if options.topology is None:
        raise errors.UserError(f"--topology is missing: name a topology, for example {topologies.KNOWN}")
    topology = topologies.parse(options.topology)
    topologies.check_tools(topology)
    if options.what == "generate":
        plan_generation(config, topology, options)
        return
    if options.mesh:
        raise errors.UserError("--mesh is for generate: the mesh of training is --config.mesh.fsdp=4 and so on")
    if options.quantize:
        raise errors.UserError("--quantize is for generate: training keeps its weights in full: leave it out")
    if options.search:
        found = search_plans(config, topology, tries=options.tries)
        tables.print_search(console, found)
        answer = [{"changes": entry.changes, **entry.plan.to_json()} for entry in found]
        best = found[0]
        console.print(f"next: the same command without --search and with {search.describe(best.changes)}")
    else:
        plan = one_plan(config, topology)
        tables.print_plan(console, plan)
        answer = [plan.to_json() | {"advice": recommendations.advise(config, plan)}]
        tables.print_advice(console, plan, recommendations.advise(config, plan))
    if options.json is not None:
        files.write_json(options.json, answer if options.search else answer[0])
        console.print(f"all numbers are in {options.json}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.Parser("python -m jworld.plan", DESCRIPTION)
    arguments.add_recipe(parser)
    add = parser.add_argument
    kinds = ("train", "generate")
    add("what", nargs="?", choices=kinds, metavar="WHAT", default="train", help="train or generate (default: train)")
    add("--topology", metavar="NAME", help=f"topology to plan for: {topologies.KNOWN} (required)")
    add("--search", action="store_true", help="try other meshes, accumulation and remat policies, and print the best")
    add("--tries", type=arguments.positive, default=8, help="largest number of compilations of a search")
    add("--json", type=pathlib.Path, metavar="FILE", help="also write all numbers to this file (default: none)")
    add(
        "--mesh",
        type=arguments.checked("AXIS=INT,...", f"axis=size with axes {', '.join(mesh.AXIS_NAMES)}", mesh.parse_sizes),
        default=(),
        help="generate: chips that share a video, as for jworld.generate: sequence=2 splits it over two, fsdp=2 only "
        "the weights (default: one chip)",
    )
    generation_options.add_quantize(parser)
    parser.only_with("--tries", "--search")
    return parser.parse(argv)


def plan_generation(
    config: ml_collections.ConfigDict, topology: topologies.Topology, options: argparse.Namespace
) -> None:
    """Plan generation and print the plan."""
    if options.search:
        raise errors.UserError("--search is for training: leave it out, and try other --mesh")
    with _progress() as bar:
        bar.add_task(f"compiling the programs of generation for {topology.name}", total=None)
        plan = launch.run_generation(config, topology, dict(options.mesh), options.quantize)
    generation_tables.print_plan(console, plan)
    generation_tables.print_advice(console, config, plan)
    if options.json is not None:
        files.write_json(options.json, plan.to_json())
        console.print(f"all numbers are in {options.json}")


def one_plan(config: ml_collections.ConfigDict, topology: topologies.Topology) -> Plan:
    with _progress() as bar:
        bar.add_task(f"compiling the train step for {topology.name}", total=None)
        return launch.run(config, topology)


def search_plans(config: ml_collections.ConfigDict, topology: topologies.Topology, *, tries: int) -> list[search.Found]:
    """Search for plans and return them, best first.

    Raises:
      UserError: there is no mesh that the config fits.
    """
    with _progress() as bar:
        task = bar.add_task("searching", total=tries)

        def run(changed: ml_collections.ConfigDict, on: topologies.Topology) -> Plan:
            plan = launch.run(changed, on)
            bar.advance(task)
            return plan

        found = search.search(
            config, topology, run, tries=tries, report=lambda text: bar.update(task, description=text)
        )
    if not found:
        raise errors.UserError(
            f"--search: no mesh of {topology.chips} chips fits this config: config.global_batch "
            f"{config.global_batch} must be a multiple of data x fsdp x accumulate (see docs/train.md, Mesh)"
        )
    return found


def _progress() -> rich.progress.Progress:
    columns = (rich.progress.SpinnerColumn(), *rich.progress.Progress.get_default_columns()[:3])
    return rich.progress.Progress(*columns, rich.progress.TimeElapsedColumn(), console=console, transient=True)


if __name__ == "__main__":
    main()
