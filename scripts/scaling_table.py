"""Plan every published model of every recipe on several topologies, and write the tables of docs/scaling.md.

    python scripts/scaling_table.py
    python scripts/scaling_table.py --recipe ar_mem:8b --topologies v5p-128 --remat
    python scripts/scaling_table.py --gpus --stored

A recipe lists its published models in `PUBLISHED`. Plans are stored as JSON in the folder --plans, and existing ones
are reused: after an interruption, or for another recipe, the same command makes only the missing plans. Every plan
compiles a train step, which takes minutes. The package libtpu (extra `tpu`) is required; a TPU is not. The GPUs have a
table of their own, --gpus. Without the extra `gpu-compiler` their plans have only what needs no compiler, and are made
again once it is installed. With --stored, plans that are missing are not made.
"""

import json
import pathlib
import re
import runpy
from typing import Any

import rich.console
import rich.progress

from jworld.planning import launch, recommendations, tables, topologies
from jworld.planning.plans import Plan, roofline
from jworld.utils import arguments, errors, files, hardware
from jworld.utils import config as run_config

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"
TOPOLOGIES = ("v5e-64", "v5p-128", "v6e-256")
GPU_TOPOLOGIES = ("h100-8", "h100-64", "h200-8")
REMAT_RECIPE, REMAT_TOPOLOGY = "ar_mem:8b", "v5p-128"
#: (prefix of the recipe's name, topology) -> config changes that the recipe needs on this topology.
CHANGES: dict[tuple[str, str], dict[str, int]] = {
    ("ar_mem:8b", "v5e-64"): {"optimizer.accumulate": 2},
    ("ar_mem:8b", "v6e-256"): {"mesh.sequence": 8},
    # Original: eight GPUs and a batch of 4. On pods, every group of 8 chips processes one sample.
    ("cosmos_video2world:", "v5e-64"): {"mesh.sequence": 8, "global_batch": 8},
    ("cosmos_video2world:", "v5p-128"): {"mesh.sequence": 8, "global_batch": 8},
    ("cosmos_video2world:", "v6e-256"): {"mesh.sequence": 8, "global_batch": 32},
    # Original: eight GPUs with eight clips each. With two chips per clip, the batch is half the number of chips. The
    # width, 1920, is divisible by at most 128 chips.
    ("matrix_", "v6e-256"): {"mesh.data": 2, "mesh.sequence": 2, "global_batch": 128},
    # Original: a few GPUs with up to four samples each. The width of the vision tower, 1152, is divisible by at most
    # 128 chips.
    ("theworld:", "v5e-64"): {"global_batch": 64},
    ("theworld:", "v5p-128"): {"global_batch": 64},
    ("theworld:", "v6e-256"): {"mesh.data": 2, "global_batch": 256},
    # The sequence axis splits the four latent frames.
    ("cosmos_video2world:2b_action", "v5e-64"): {"global_batch": 64},
    ("cosmos_video2world:2b_action", "v5p-128"): {"global_batch": 64},
    ("cosmos_video2world:2b_action", "v6e-256"): {"global_batch": 256},
    # Eight GPUs are what the originals trained on, except WorldPlay: there one sample at a time.
    ("ar_mem:8b", "h100-8"): {"optimizer.accumulate": 16},
    ("ar_mem:8b", "h200-8"): {"optimizer.accumulate": 16},
    ("cosmos_video2world:", "h100-64"): {"mesh.sequence": 8, "global_batch": 8},
    ("cosmos_video2world:2b_action", "h100-64"): {"global_batch": 64},
    ("theworld:", "h100-64"): {"global_batch": 64},
}
#: Result of a plan that is not stored.
MISSING = "not measured"
#: Table -> lines of the page before and after it.
MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("models", "gpus", "remat")}


def published(configs: pathlib.Path) -> list[str]:
    """List every published model of every recipe, such as "ar_mem:8b"."""
    found = []
    for path in sorted(configs.glob("*.py")):
        found += [f"{path.stem}:{variant}" for variant in runpy.run_path(str(path)).get("PUBLISHED", ())]
    return found


def changes_of(recipe: str, topology: str) -> dict[str, int]:
    """Return the entry of `CHANGES` with the longest prefix of this recipe's name."""
    matching = [key for key in CHANGES if key[1] == topology and recipe.startswith(key[0])]
    return CHANGES[max(matching, key=lambda key: len(key[0]))] if matching else {}


def one_plan(recipe: str, topology: str, remat: str | None, folder: pathlib.Path, *, stored: bool) -> Plan | str:
    """Load a plan from the folder, or make it and store it there, or return `MISSING` if only stored plans count."""
    name = "_".join([recipe.replace(":", "-"), topology, *([remat] if remat else [])])
    path = folder / f"{name}.json"
    place = topologies.parse(topology)
    if path.is_file():
        result = Plan.from_json(json.loads(path.read_text()))
        if stored or result.compiled or not topologies.can_compile(place):
            return result
    if stored:
        return MISSING
    stem, _, variant = recipe.partition(":")
    config = run_config.load_recipe(f"{ROOT}/configs/{stem}.py:{variant}")
    changes: dict[str, Any] = dict(changes_of(recipe, topology)) | ({"model.remat": remat} if remat else {})
    if changes:
        config = recommendations.changed(config, changes)
    result = launch.run(config, place)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result.to_json())
    return result


def model_row(recipe: str, topology: str, result: Plan | str) -> list[str]:
    changes = ", ".join(f"{key}={value}" for key, value in changes_of(recipe, topology).items())
    recipe = f"{recipe} ({changes})" if changes else recipe
    if isinstance(result, str):
        return [recipe, topology, result, *[""] * 6]
    bounds = roofline(result)
    assert bounds is not None
    assert result.limit is not None
    return [
        recipe,
        f"{topology} ({result.chips} chips)",
        " x ".join(f"{name} {size}" for name, size in result.mesh.items() if size > 1),
        f"{result.global_batch} / {result.accumulate}",
        tables.size_text(result.state + result.gradients),
        f"{peak_text(result)} of {tables.size_text(result.limit)}",
        {True: "yes", False: "no", None: "unknown"}[result.fits],
        " / ".join([f"{bounds.compute:.2f}", seconds(bounds.memory), networks(result)]),
        f"{bounds.tokens_per_second:,.0f}",
    ]


def peak_text(result: Plan) -> str:
    """Return the peak memory of a chip, or a lower bound from the temporaries if the compilation failed."""
    if not result.compiled:
        return "not compiled"
    if result.peak:
        return tables.size_text(result.peak)
    return "unknown" if result.temporaries is None else f"more than {tables.size_text(result.temporaries)}"


def networks(result: Plan) -> str:
    """Return the bound of the links of a chip, and that of the network between hosts where the topology has one."""
    bounds = roofline(result)
    assert bounds is not None
    chip = hardware.CHIPS[result.chip or ""]
    within = seconds(bounds.network)
    if chip.network_bandwidth is None:
        return within
    return f"{within} / {'?' if bounds.network is None else seconds(bounds.outside or 0.0)}"


def seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def remat_row(remat: str, result: Plan | str) -> list[str]:
    if isinstance(result, str):
        return [remat, result, "", ""]
    assert result.useful_flops is not None
    extra = result.flops / result.useful_flops - 1
    temporaries = "" if result.temporaries is None else tables.size_text(result.temporaries - result.gradients)
    return [remat, peak_text(result), temporaries, f"{extra:.0%}"]


def missing(rows: list[tuple[tuple[str, str, str | None], Plan | str]]) -> list[str]:
    """Return a sentence for every topology with plans that were not made."""
    found: dict[str, list[str]] = {}
    for (recipe, topology, _), result in rows:
        if result == MISSING:
            found.setdefault(topology, []).append(recipe)
    return [f"Not measured on {topology}: {', '.join(recipes)}." for topology, recipes in found.items()]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace(text: str, name: str, content: str) -> str:
    begin, end = MARKS[name]
    if begin not in text or end not in text:
        raise errors.UserError(f"{PAGE}: the lines {begin} and {end} are missing: add them where the table belongs")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.S)


MODEL_HEAD = [
    "recipe",
    "topology",
    "mesh",
    "batch / parts",
    "state and gradients",
    "peak of a chip",
    "fits",
    "step at least, s: arithmetic / memory / interconnect",
    "tokens/s at most",
]
GPU_HEAD = [head.replace("interconnect", "NVLink / between hosts") for head in MODEL_HEAD]
REMAT_HEAD = ["remat", "peak of a chip", "activations and other temporaries", "products beyond the useful ones"]


@errors.exit_on_user_error
def main() -> None:
    parser = arguments.Parser("python scripts/scaling_table.py", str(__doc__))
    add = parser.add_argument
    add("--recipe", nargs="*", help="models as recipe:variant (default: all published models)")
    add("--topologies", nargs="*", help="topologies (default: those of the table)")
    add("--gpus", action="store_true", help="write the table of GPUs instead of that of TPUs")
    add("--stored", action="store_true", help="make no plan: write what is stored, and that the others are missing")
    add("--remat", action="store_true", help=f"also plan every remat policy of {REMAT_RECIPE}")
    add(
        "--plans",
        type=pathlib.Path,
        default=ROOT / "runs" / "plans",
        help="folder of the plans as JSON (default: runs/plans of the checkout)",
    )
    options = parser.parse()
    jobs = [
        (recipe, topology, None)
        for recipe in options.recipe or published(ROOT / "configs")
        for topology in options.topologies or (GPU_TOPOLOGIES if options.gpus else TOPOLOGIES)
    ]
    jobs += [("ar_mem:8b", REMAT_TOPOLOGY, remat) for remat in recommendations.REMAT_ORDER] if options.remat else []
    results: list[Plan | str] = []
    console = rich.console.Console(highlight=False, soft_wrap=True)
    for recipe, topology, remat in rich.progress.track(jobs, "planning", console=console):
        try:
            results.append(one_plan(recipe, topology, remat, options.plans, stored=options.stored))
        except errors.UserError as error:
            results.append(str(error))
            console.print(f"{recipe} on {topology}: {error}")
    rows = list(zip(jobs, results, strict=True))
    page = PAGE.read_text()
    head, name = (GPU_HEAD, "gpus") if options.gpus else (MODEL_HEAD, "models")
    made = [model_row(j[0], j[1], r) for j, r in rows if j[2] is None and r != MISSING]
    page = replace(page, name, "\n\n".join([table(head, made), *missing(rows)]))
    if options.remat:
        page = replace(page, "remat", table(REMAT_HEAD, [remat_row(j[2], r) for j, r in rows if j[2] is not None]))
    with files.replacing(PAGE) as temporary:
        temporary.write_text(page)
    console.print(f"wrote the tables to {PAGE}; the plans are in {options.plans}")


if __name__ == "__main__":
    main()
