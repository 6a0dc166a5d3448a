"""Plan every published model of every recipe on some topologies and write the tables of docs/scaling.md.

    python scripts/scaling_table.py
    python scripts/scaling_table.py --recipe ar_mem:8b --topologies v5p-128 --remat

A recipe names its published models in `PUBLISHED`, beside `VARIANTS`. Plans are kept as JSON in the folder of --plans
and made once: after an interruption, or for another recipe, the same command does only what is missing. Every plan
compiles a train step, which takes minutes; the package libtpu (extra `tpu`) is needed, a TPU is not.
"""

import argparse
import json
import pathlib
import re
import runpy
from typing import Any

import rich.console
import rich.progress

from jworld.planning import launch, recommendations, tables, topologies
from jworld.planning.plans import Plan, roofline
from jworld.utils import config as run_config
from jworld.utils import errors, files

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"
TOPOLOGIES = ("v5e-64", "v5p-128", "v6e-256")
REMAT_RECIPE, REMAT_TOPOLOGY = "ar_mem:8b", "v5p-128"
#: What a recipe needs on a topology other than the one that its own values are for, by prefix of its name.
CHANGES: dict[tuple[str, str], dict[str, int]] = {
    ("ar_mem:8b", "v5e-64"): {"optimizer.accumulate": 2},
    ("ar_mem:8b", "v6e-256"): {"mesh.sequence": 8},
    # Eight GPUs and a batch of 4 in the original: on pods a sample has 8 chips, and every group of them one sample.
    ("cosmos_video2world:", "v5e-64"): {"mesh.sequence": 8, "global_batch": 8},
    ("cosmos_video2world:", "v5p-128"): {"mesh.sequence": 8, "global_batch": 8},
    ("cosmos_video2world:", "v6e-256"): {"mesh.sequence": 8, "global_batch": 32},
    # Eight GPUs with eight clips each in the original; two chips to a clip need a batch of half as many clips as chips,
    # and the width, 1920, divides by no more than 128 chips.
    ("matrix_", "v6e-256"): {"mesh.data": 2, "mesh.sequence": 2, "global_batch": 128},
    # The original has a few GPUs with up to four samples each. The width of the vision tower, 1152, divides by no more
    # than 128 chips.
    ("theworld:", "v5e-64"): {"global_batch": 64},
    ("theworld:", "v5p-128"): {"global_batch": 64},
    ("theworld:", "v6e-256"): {"mesh.data": 2, "global_batch": 256},
    # Four latent frames, which the sequence axis splits.
    ("cosmos_video2world:2b_action", "v5e-64"): {"global_batch": 64},
    ("cosmos_video2world:2b_action", "v5p-128"): {"global_batch": 64},
    ("cosmos_video2world:2b_action", "v6e-256"): {"global_batch": 256},
}
#: Lines of the page between which a table stands.
MARKS = {name: (f"<!-- {name}: begin -->", f"<!-- {name}: end -->") for name in ("models", "remat")}


def published(configs: pathlib.Path) -> list[str]:
    """ "ar_mem:8b" and so on: every published model of every recipe."""
    found = []
    for path in sorted(configs.glob("*.py")):
        found += [f"{path.stem}:{variant}" for variant in runpy.run_path(str(path)).get("PUBLISHED", ())]
    return found


def changes_of(recipe: str, topology: str) -> dict[str, int]:
    """The entry of `CHANGES` whose recipe is the longest beginning of this one's name."""
    matching = [key for key in CHANGES if key[1] == topology and recipe.startswith(key[0])]
    return CHANGES[max(matching, key=lambda key: len(key[0]))] if matching else {}


def one_plan(recipe: str, topology: str, remat: str | None, folder: pathlib.Path) -> Plan:
    """From the folder, or made and put there."""
    name = "_".join([recipe.replace(":", "-"), topology, *([remat] if remat else [])])
    path = folder / f"{name}.json"
    if path.is_file():
        return Plan.from_json(json.loads(path.read_text()))
    stem, _, variant = recipe.partition(":")
    config = run_config.load_recipe(f"{ROOT}/configs/{stem}.py:{variant}")
    changes: dict[str, Any] = dict(changes_of(recipe, topology)) | ({"model.remat": remat} if remat else {})
    if changes:
        config = recommendations.changed(config, changes)
    result = launch.run(config, topologies.parse(topology))
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
        f"{bounds.compute:.2f} / {seconds(bounds.memory)} / {seconds(bounds.network)}",
        f"{bounds.tokens_per_second:,.0f}",
    ]


def peak_text(result: Plan) -> str:
    """The peak of a chip, or, of a program that the compiler refused, what it needs besides the state."""
    if result.peak:
        return tables.size_text(result.peak)
    return "unknown" if result.temporaries is None else f"more than {tables.size_text(result.temporaries)}"


def seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def remat_row(remat: str, result: Plan | str) -> list[str]:
    if isinstance(result, str):
        return [remat, result, "", ""]
    assert result.useful_flops is not None
    extra = result.flops / result.useful_flops - 1
    temporaries = "" if result.temporaries is None else tables.size_text(result.temporaries - result.gradients)
    return [remat, peak_text(result), temporaries, f"{extra:.0%}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def replace(text: str, name: str, content: str) -> str:
    begin, end = MARKS[name]
    if begin not in text or end not in text:
        raise errors.UserError(f"{PAGE} has no lines {begin} and {end}: put them where the table belongs")
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
REMAT_HEAD = ["remat", "peak of a chip", "activations and other temporaries", "products beyond the useful ones"]


@errors.exit_on_user_error
def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="*", help="recipe:variant; all published models by default")
    parser.add_argument("--topologies", nargs="*", default=TOPOLOGIES, help="(default: %(default)s)")
    parser.add_argument("--remat", action="store_true", help=f"also every remat policy of {REMAT_RECIPE}")
    parser.add_argument("--plans", type=pathlib.Path, default=ROOT / "runs" / "plans", help="(default: %(default)s)")
    arguments = parser.parse_args()
    jobs = [
        (recipe, topology, None)
        for recipe in arguments.recipe or published(ROOT / "configs")
        for topology in arguments.topologies
    ]
    jobs += [("ar_mem:8b", REMAT_TOPOLOGY, remat) for remat in recommendations.REMAT_ORDER] if arguments.remat else []
    results: list[Plan | str] = []
    console = rich.console.Console(highlight=False, soft_wrap=True)
    for recipe, topology, remat in rich.progress.track(jobs, "planning", console=console):
        try:
            results.append(one_plan(recipe, topology, remat, arguments.plans))
        except errors.UserError as error:
            results.append(str(error))
            console.print(f"{recipe} on {topology}: {error}")
    rows = list(zip(jobs, results, strict=True))
    page = PAGE.read_text()
    page = replace(page, "models", table(MODEL_HEAD, [model_row(j[0], j[1], r) for j, r in rows if j[2] is None]))
    if arguments.remat:
        page = replace(page, "remat", table(REMAT_HEAD, [remat_row(j[2], r) for j, r in rows if j[2] is not None]))
    with files.replacing(PAGE) as temporary:
        temporary.write_text(page)
    console.print(f"wrote the tables into {PAGE}; plans are in {arguments.plans}")


if __name__ == "__main__":
    main()
