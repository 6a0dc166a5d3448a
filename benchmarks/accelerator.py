"""All measurements that an accelerator is needed for, as one prepared run of some minutes.

    python benchmarks/accelerator.py --output out/accelerator
    python benchmarks/accelerator.py --toy --stages attention train-small

Stages run one after another, each in its own process and with a limit of time. One that fails or runs out of time does
not stop the others. DIRECTORY receives the numbers of every stage as JSON, all of them in `accelerator.json`, and a
table in `accelerator.md`. Nothing is downloaded. --toy has the smallest sizes, to try the run on a CPU.

Measured are: attention of 8k to 32k tokens per mask, forward and backward, as a share of the matrix products of this
device, compared with PyTorch if torch is installed; training steps of a small model and of published widths with few
layers, with the share of the peak, and the memory that the device allocated next to that of the plan; a rollout.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from jworld.utils import arguments as command_line
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parent.parent
#: Characters of what a failed stage printed that are kept.
KEPT = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A program that is run.

    Attributes:
      program: script of this folder, or "pytest".
      arguments: its arguments.
      toy: those of --toy.
      seconds: limit of time.
      shown: makes the lines of the table from the numbers.
    """

    program: str
    arguments: Sequence[str]
    toy: Sequence[str]
    seconds: int
    shown: Callable[[Any], list[str]]

    def command(self, numbers: pathlib.Path, *, toy: bool) -> list[str]:
        """Return the command, which writes its numbers as JSON."""
        chosen = list(self.toy if toy else self.arguments)
        if self.program == "pytest":
            return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
        return [sys.executable, str(ROOT / "benchmarks" / f"{self.program}.py"), "--json", str(numbers), *chosen]


def _attention(numbers: Any) -> list[str]:
    peak = numbers["settings"]["matmul_flops"]
    return [
        f"{row['mask']}, {row['tokens']:,} tokens, {row['version']}: forward {row['forward_flops'] / 1e12:.3g} TFLOP/s "
        f"({row['forward_flops'] / peak:.0%} of the peak), with backward {row['flops'] / 1e12:.3g}"
        for row in numbers["rows"]
    ]


def _step(numbers: Any) -> list[str]:
    allocated = numbers["device_peak_bytes"]
    memory = f"plan {numbers['program_bytes'] / 2**30:.2f} GiB"
    if allocated:
        memory += f", allocated {allocated / 2**30:.2f} ({allocated / numbers['program_bytes']:.2f} times)"
    return [
        f"{numbers['seconds_per_step']:.3g} s per step of {numbers['batch']}, {numbers['model_share_of_peak']:.1%} of "
        f"the peak, compiled in {numbers['compile_seconds']:.0f} s; {memory}"
    ]


def _rollout(numbers: Any) -> list[str]:
    return [
        f"{row['steps']} steps: chunk {row['chunk_p50_seconds']:.3g} s (p95 {row['chunk_p95_seconds']:.3g}), first "
        f"chunk {row['first_chunk_seconds']:.3g} s"
        for row in numbers["rows"]
    ]


_TOY_ATTENTION = ("--chunks", "2", "--chunk-tokens", "8", "--heads", "2", "--head-dim", "8", "--repeats", "1")
_TOY_STEP = ("--size", "tiny", "--steps", "1", "--batch", "1")
STAGES = {
    "tests": Stage(
        program="pytest",
        arguments=("tests/models/test_attention.py", "tests/test_parity.py", "-k", "attention or worldplay or cosmos"),
        toy=("tests/models/test_attention.py", "-k", "chunk_causal", "-x"),
        seconds=150,
        shown=lambda _: [],
    ),
    "attention": Stage(
        program="attention",
        arguments=(
            # Few heads: XLA's own attention stores all logits.
            *("--dtype", "bfloat16", "--heads", "4", "--head-dim", "128"),
            *("--masks", "full", "chunk_causal", "window", "--chunks", "6", "--chunk-tokens", "1365", "2730", "5461"),
        ),
        toy=(*_TOY_ATTENTION, "--masks", "chunk_causal", "--no-torch"),
        seconds=150,
        shown=_attention,
    ),
    "train-small": Stage(
        program="train_step", arguments=("--config", "configs/ar_mem.py:small"), toy=_TOY_STEP, seconds=90, shown=_step
    ),
    "train-8b": Stage(
        program="train_step",
        arguments=("--config", "configs/ar_mem.py:8b", "--layers", "4", "--batch", "1"),
        toy=_TOY_STEP,
        seconds=150,
        shown=_step,
    ),
    "train-2b": Stage(
        program="train_step",
        arguments=("--config", "configs/cosmos_video2world.py:2b", "--layers", "8", "--batch", "1"),
        toy=_TOY_STEP,
        seconds=120,
        shown=_step,
    ),
    "rollout": Stage(
        program="rollout",
        arguments=("--size", "middle", "--steps", "4"),
        toy=("--chunks", "2", "--steps", "1"),
        seconds=60,
        shown=_rollout,
    ),
}


def run(name: str, stage: Stage, folder: pathlib.Path, *, toy: bool, seconds: float) -> dict[str, Any]:
    """Run a stage; return its command, result ("done", "failed" or "out of time"), seconds, and numbers or output."""
    file = folder / f"{name}.json"
    command = stage.command(file, toy=toy)
    began = time.monotonic()
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=min(stage.seconds, seconds),
            check=False,
        )
        output, state = result.stdout, "failed" if result.returncode else "done"
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        output, state = printed.decode(errors="replace") if isinstance(printed, bytes) else printed, "out of time"
    row: dict[str, Any] = {"stage": name, "command": command[1:], "result": state, "seconds": time.monotonic() - began}
    if state != "done":
        return row | {"output": output[-KEPT:]}
    return row | {"numbers": json.loads(file.read_text()) if file.is_file() else None}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return all results as a table of Markdown."""
    lines = ["| stage | result | measured |", "| --- | --- | --- |"]
    for row in rows:
        numbers = row.get("numbers")
        shown = STAGES[row["stage"]].shown(numbers) if numbers else [row.get("output", "").strip()[-200:]]
        cell = "<br>".join(text.replace("\n", " ").replace("|", "\\|") for text in shown)
        lines.append(f"| {row['stage']} | {row['result']}, {row['seconds']:.0f} s | {cell} |")
    return "\n".join(lines) + "\n"


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    add("--output", type=pathlib.Path, default=pathlib.Path("out/accelerator"), metavar="DIRECTORY", help=default)
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to run (default: all)")
    add("--minutes", type=float, default=12.0, help=f"limit of time for everything {default}")
    add("--toy", action="store_true", help=f"smallest sizes {default}")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    folder, began, rows = options.output.resolve(), time.monotonic(), []
    for name in options.stages:
        left = 60 * options.minutes - (time.monotonic() - began)
        if left <= 0:
            rows.append({"stage": name, "result": "not begun", "seconds": 0.0})
            continue
        print(f"{name} ...", flush=True)
        rows.append(run(name, STAGES[name], folder, toy=options.toy, seconds=left))
        # After every stage, so that what was measured is kept if the machine goes away.
        (folder / "accelerator.json").write_text(json.dumps({"toy": options.toy, "stages": rows}, indent=2) + "\n")
        (folder / "accelerator.md").write_text(table(rows))
    print(table(rows), end="")
    print(f"wrote {options.output / 'accelerator.json'} and {options.output / 'accelerator.md'}")


if __name__ == "__main__":
    main()
