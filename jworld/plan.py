"""python -m jworld.plan --config=configs/ar_mem.py:8b --topology=v5p-128

Tells what a recipe costs on a topology before anyone rents it: memory per chip, arithmetic, what the chips send to
each other, and the time that a step takes at least. The train step is compiled for real, but no accelerator is needed
and nothing is allocated. For a TPU topology this takes minutes, and the package libtpu (extra `tpu`).
"""

import sys

import ml_collections
import rich.console
import rich.progress
from absl import flags

from jworld.planning import launch, recommendations, search, tables, topologies
from jworld.planning.plans import Plan
from jworld.utils import config as run_config
from jworld.utils import errors, files

_CONFIG = run_config.define_flag()
_TOPOLOGY = flags.DEFINE_string("topology", "", f"What to plan for (required): {topologies.KNOWN}.")
_SEARCH = flags.DEFINE_bool("search", False, "Try other meshes, accumulation and remat policies, and print the best.")
_TRIES = flags.DEFINE_integer("tries", 8, "Compilations of a search, at most (default 8).", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "Also write all numbers to this file.")

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    config = run_config.parse_flags(
        sys.argv if argv is None else argv,
        _CONFIG,
        description=str(__doc__),
        names=("config", "topology", "search", "tries", "json"),
    )
    if not _TOPOLOGY.value:
        raise errors.UserError(f"--topology is missing: name what to plan for; examples: {topologies.KNOWN}")
    topology = topologies.parse(_TOPOLOGY.value)
    topologies.check_tools(topology)
    if _SEARCH.value:
        found = search_plans(config, topology)
        tables.print_search(console, found)
        answer = [{"changes": entry.changes, **entry.plan.to_json()} for entry in found]
        best = found[0]
        console.print(f"next: the same command without --search and with {search.describe(best.changes)}")
    else:
        plan = one_plan(config, topology)
        tables.print_plan(console, plan)
        answer = [plan.to_json() | {"advice": recommendations.advise(config, plan)}]
        tables.print_advice(console, plan, recommendations.advise(config, plan))
    if _JSON.value:
        files.write_json(_JSON.value, answer if _SEARCH.value else answer[0])
        console.print(f"all numbers are in {_JSON.value}")


def one_plan(config: ml_collections.ConfigDict, topology: topologies.Topology) -> Plan:
    with _progress() as bar:
        bar.add_task(f"compiling the train step for {topology.name}", total=None)
        return launch.run(config, topology)


def search_plans(config: ml_collections.ConfigDict, topology: topologies.Topology) -> list[search.Found]:
    """The plans of a search, best first.

    Raises:
      UserError: there is no mesh that the config fits.
    """
    with _progress() as bar:
        task = bar.add_task("searching", total=_TRIES.value)

        def run(changed: ml_collections.ConfigDict, on: topologies.Topology) -> Plan:
            plan = launch.run(changed, on)
            bar.advance(task)
            return plan

        found = search.search(
            config, topology, run, tries=_TRIES.value, report=lambda text: bar.update(task, description=text)
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
