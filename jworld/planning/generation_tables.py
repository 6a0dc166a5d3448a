"""Plans of generation as printed tables."""

import math

import ml_collections
import rich.console
import rich.table

from jworld.planning import gpu_targets
from jworld.planning.generation_plans import GenerationPlan, roofline
from jworld.planning.tables import NOT_IN_GPU_PLANS, flops_text, memory_table, size_text
from jworld.utils import config as run_config
from jworld.utils import hardware


def print_plan(console: rich.console.Console, plan: GenerationPlan) -> None:
    """Print memory, programs and bounds."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    console.print(f"{plan.topology}: one video on a mesh of {mesh}, of {plan.available} chip(s); {plan.chunk}")
    console.print(_memory(plan))
    if plan.programs:
        console.print(_programs(plan))
    if (bounds := roofline(plan)) is not None and plan.chip is not None:
        chip = hardware.CHIPS[plan.chip]
        name = "a chunk" if plan.unit == "frames" else "a token"
        console.print(
            f"{name} takes at least {bounds.chunk:.3g} s: at most {bounds.per_second:,.3g} {plan.unit} per second, at "
            f"{chip.flops / 1e12:.0f} TFLOP/s in bfloat16 and {chip.hbm_bandwidth / 1e9:,.0f} GB/s"
        )
        if bounds.start:
            console.print(f"before the first one at least {bounds.start:.3g} s")
    console.print("not counted: text and image encoders, the first frame, work and copies of the host")
    if plan.chip in gpu_targets.TARGETS:
        console.print(NOT_IN_GPU_PLANS)


def print_advice(console: rich.console.Console, config: ml_collections.ConfigDict, plan: GenerationPlan) -> None:
    """Print whether it fits, and what to change if not."""
    if plan.limit is None:
        console.print("virtual devices have no memory limit")
    elif plan.fits:
        assert plan.peak is not None
        console.print(f"it fits: {plan.peak / plan.limit:.0%} of a chip's memory")
    else:
        console.print(f"it does not fit{': ' + plan.problem if plan.problem else ''}; change, in this order:")
        for line in advise(config, plan):
            console.print(f"  {line}")


def advise(config: ml_collections.ConfigDict, plan: GenerationPlan) -> list[str]:
    """Return what to change, in the order to try it, if generation does not fit."""
    lines = []
    if run_config.value_at(config, "model.param_dtype", "float32") == "float32":
        lines.append("--config.model.param_dtype=bfloat16: half the weights")
    if plan.quantize is None and plan.unit == "frames":
        lines.append("--quantize int8: large weights in 8 bits, a quarter of float32 and half of bfloat16")
    if 2 * math.prod(plan.mesh.values()) <= plan.available:
        lines.append(f"--mesh with fsdp={2 * plan.mesh['fsdp']}: two chips share what one holds of the weights")
    return [*lines, "chips with more memory"]


def _memory(plan: GenerationPlan) -> rich.table.Table:
    parts = {
        f"weights of the network{f' ({plan.quantize})' if plan.quantize else ''}": plan.weights,
        "weights of the autoencoder": plan.autoencoder,
        "KV cache": plan.cache,
        "cache of the decoder": plan.decoder_cache,
        "peak while the weights are read": plan.start,
    }
    return memory_table(parts, {"peak": plan.peak, f"available on a {plan.chip}": plan.limit})


def _programs(plan: GenerationPlan) -> rich.table.Table:
    """Return the table of programs; bytes, operations and seconds are those of all calls of a chunk."""
    chip = hardware.CHIPS[plan.chip] if plan.chip else None
    unit = "chunk" if plan.unit == "frames" else "token"
    several = math.prod(plan.mesh.values()) > 1
    table = rich.table.Table("program", f"per {unit}", "peak", "products", "traffic")
    for head in (*(("a chip", "sends") if several else ()), *(("s at least",) if chip else ())):
        table.add_column(head)
    for cost in plan.programs:
        runs = cost.runs or 1
        row = [
            cost.name,
            str(cost.runs) if cost.runs else "once",
            size_text(cost.peak),
            flops_text(runs * cost.flops),
            "unknown" if cost.memory_traffic is None else size_text(runs * cost.memory_traffic),
        ]
        if several:
            row += [f"{cost.share:.0%}", size_text(runs * cost.sent)]
        if chip is not None:
            row.append(f"{runs * cost.seconds(chip):.3g}")
        table.add_row(*row)
    return table
