"""Plans as printed tables."""

from collections.abc import Mapping

import rich.console
import rich.table

from jworld.planning import gpu_targets, search
from jworld.planning.collectives import Traffic
from jworld.planning.plans import Plan, roofline
from jworld.utils import hardware

NOT_IN_GPU_PLANS = (
    "not counted: workspaces of cuBLAS and cuDNN, buffers of NCCL, the CUDA context, copies to the host; kernels are "
    "not tuned"
)


def print_plan(console: rich.console.Console, plan: Plan) -> None:
    """Print memory, arithmetic, collectives and bounds of one plan."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    console.print(
        f"{plan.topology}: {plan.chips} chips as {mesh}; batch {plan.global_batch} in {plan.accumulate} part(s), "
        f"remat {plan.remat}"
    )
    if not plan.compiled:
        console.print(
            'The GPU compiler is not installed (it needs no GPU): pip install -e ".[gpu-compiler]". The figures below '
            "need no compiler; activations and communication between chips are missing.",
            markup=False,
        )
    elif plan.problem is None and plan.memory_traffic is None:
        console.print("The compiled program cannot be written as text, so its memory and network traffic is missing.")
    console.print(_memory(plan))
    console.print(_arithmetic(plan))
    if plan.collectives:
        console.print(_collectives(plan))
    if plan.needed:
        console.print(_needed(plan))
    if (bounds := _bounds(plan)) is not None:
        console.print(bounds)
    if plan.compiled and plan.chip in gpu_targets.TARGETS:
        console.print(NOT_IN_GPU_PLANS)


def print_advice(console: rich.console.Console, plan: Plan, lines: list[str]) -> None:
    if plan.fits is None:
        console.print("it is unknown whether it fits" if plan.limit else "virtual devices have no memory limit")
    elif plan.fits:
        assert plan.peak is not None
        assert plan.limit is not None
        console.print(f"it fits: {plan.peak / plan.limit:.0%} of a chip's memory")
    else:
        console.print(f"it does not fit{': ' + plan.problem if plan.problem else ''}; change, in this order:")
        for line in lines or ["a smaller config.global_batch, or more chips"]:
            console.print(f"  {line}")


def print_search(console: rich.console.Console, found: list[search.Found], best: int = 5) -> None:
    """Print the best plans of a search."""
    table = rich.table.Table("mesh", "accumulate", "remat", "peak", "fits", "step at least", "examples/s at most")
    for _, plan in found[:best]:
        bounds = roofline(plan)
        table.add_row(
            " x ".join(f"{name} {size}" for name, size in plan.mesh.items()),
            str(plan.accumulate),
            plan.remat,
            "unknown" if plan.peak is None else size_text(plan.peak),
            {True: "yes", False: "no", None: "unknown"}[plan.fits],
            "" if bounds is None else f"{bounds.step:.2f} s",
            "" if bounds is None else f"{bounds.examples_per_second:.2f}",
        )
    console.print(table)
    console.print(f"{len(found)} plans were compiled; {sum(entry.plan.fits is True for entry in found)} fit")


def memory_table(parts: Mapping[str, int], others: Mapping[str, int | None]) -> rich.table.Table:
    """Return the table of a chip's memory in bytes: parts that are not 0, and other sizes that are known."""
    table = rich.table.Table("memory of a chip", "", show_header=True)
    for name, size in parts.items():
        if size:
            table.add_row(name, size_text(size))
    for name, known in others.items():
        if known is not None:
            table.add_row(name, size_text(known))
    return table


def _memory(plan: Plan) -> rich.table.Table:
    parts = {"parameters": plan.parameters, "optimizer": plan.optimizer, "EMA": plan.ema}
    others = {
        "activations and other temporaries": (
            None if plan.temporaries is None else max(plan.temporaries - plan.gradients, 0)
        ),
        "peak": plan.peak,
        "peak before the first step": plan.start,
        f"available on a {plan.chip}": plan.limit,
    }
    return memory_table(parts | {"batch": plan.batch, "gradients": plan.gradients}, others)


def _arithmetic(plan: Plan) -> rich.table.Table:
    table = rich.table.Table("arithmetic of a step", "", show_header=True)
    if plan.useful_flops is not None:
        table.add_row("forward and backward pass, by formula", flops_text(plan.useful_flops))
        table.add_row("recomputation and optimizer", flops_text(max(plan.flops - plan.useful_flops, 0)))
    table.add_row("all products, as traced", flops_text(plan.flops))
    if plan.xla_flops is not None:
        table.add_row("the compiler's count, bodies of loops once", flops_text(plan.xla_flops))
        table.add_row(f"the same, loops unrolled (x {plan.loops:.2f})", flops_text(plan.xla_flops * plan.loops))
    return table


def _collectives(plan: Plan) -> rich.table.Table:
    table = rich.table.Table("collective", "along", "in a step", "a chip sends")
    several = any(row.outside for row in plan.collectives)
    if several:
        table.add_column("of it between hosts")
    total = Traffic(
        "all", "", 0, *(sum(getattr(row, name) for row in plan.collectives) for name in ("sent", "outside"))
    )
    for row in (*plan.collectives, total):
        runs = f"{row.runs:,}" if row.runs else ""
        table.add_row(row.kind, row.axes, runs, size_text(row.sent), *([size_text(row.outside)] if several else []))
    return table


def _needed(plan: Plan) -> rich.table.Table:
    """Return the table of what a chip must send, compared with what the program sends."""
    table = rich.table.Table("needed by formula", "along", "a chip sends")
    for row in plan.needed:
        table.add_row(row.kind, row.axes, size_text(row.sent))
    least = sum(row.sent for row in plan.needed)
    table.add_row("all", "", size_text(least))
    if plan.collectives:
        sent = sum(row.sent for row in plan.collectives)
        table.add_row("the program sends", "", f"{sent / least:.2f} times as much")
    return table


def _bounds(plan: Plan) -> rich.table.Table | None:
    bounds = roofline(plan)
    if bounds is None or plan.chip is None:
        return None
    chip = hardware.CHIPS[plan.chip]
    table = rich.table.Table("a step takes at least", "", "at full use of")
    table.add_row("arithmetic", f"{bounds.compute:.3f} s", f"{chip.flops / 1e12:.0f} TFLOP/s, bfloat16")
    for name, seconds, rate in (
        ("memory (estimate)", bounds.memory, f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s"),
        ("interconnect", bounds.network, f"{chip.ici_bandwidth / 1e9:,.0f} GB/s out of a chip, all links"),
        ("between hosts", bounds.outside, f"{(chip.network_bandwidth or 0) / 1e9:,.0f} GB/s out of a chip"),
    ):
        if seconds is not None:
            table.add_row(name, f"{seconds:.3f} s", rate)
    table.add_row("tokens", f"{bounds.tokens_per_second:,.0f} /s", "at most")
    table.add_row("examples", f"{bounds.examples_per_second:,.2f} /s", "at most")
    if bounds.utilization is not None:
        table.add_row("useful share of the peak", f"{bounds.utilization:.0%}", "at most")
    return table


def size_text(size: float) -> str:
    """Format bytes in the unit of memories, such as "12.3 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 2**10:
            return f"{size:.0f} {unit}"
        size /= 2**10
    return f"{size:,.2f} GiB"


def flops_text(count: float) -> str:
    for unit, scale in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if count >= scale:
            return f"{count / scale:,.2f} {unit}"
    return f"{count / 1e9:,.3f} GFLOP"
