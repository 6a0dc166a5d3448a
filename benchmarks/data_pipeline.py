"""Benchmark of the data pipeline, compared with the same arrays in one .pt file per clip and in parquet.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --records 32 --latent 4 6 8 8 --repeats 1 --json data.json

There are two comparisons. "latents": every format stores only the latents, with the same bytes. "published": a .pt file
and a row of parquet store all arrays of a clip with padded text, as WorldPlay's published files do. jworld's records
store the text once per prompt at its true length. All readers deliver the same batches of numpy arrays in the same
order, which is checked. Every page of every batch is touched once.

Every pass runs in its own process, and the readers alternate. The files are in the page cache ("warm") or not ("cold",
if the system can drop them). The clock starts after some batches. The first batch is reported separately because it
includes the start of the workers. MB/s count the bytes of the batches. CPU time counts all processes of a reader; on a
busy machine it is more reliable than the time.

"threads" is the reader that training uses: threads of the training process (0: no read-ahead). "processes" is the same
graph in Grain's worker processes, which training does not offer. The others run in PyTorch's DataLoader, whose workers
are processes (0: none).
"""

import argparse
import collections
import concurrent.futures
import importlib
import importlib.util
import json
import mmap
import multiprocessing
import os
import pathlib
import platform
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from typing import Any

import data_readers
import grain
import numpy as np
import rich.console
import rich.progress
import rich.table

from jworld.systems.worldplay import data
from jworld.utils import arguments as command_line

READERS, CACHES = ("threads", "processes", "pt", "parquet"), ("warm", "cold")
NEEDS = {"pt": "torch", "parquet": "pyarrow"}
#: Imported once, by the fork server that starts the passes.
PRELOADED = ["grain", "jworld.systems.worldplay.data", "torch.utils.data"]
#: Batches before the clock starts, or half of all batches if these are fewer.
SETTLE = 8
DROP_TRIES = 10
RATIOS = ("records_per_second_over_pt", "cpu_seconds_over_pt")

Passes = dict[tuple[str, int, str], list[dict[str, Any]]]


def read(setup: data_readers.Setup, reader: str, workers: int) -> dict[str, Any]:
    """Make one pass over all batches; -> rates, CPU seconds per record, and a digest and order to compare batches."""
    if reader == "parquet":
        importlib.import_module("pyarrow.parquet")
    began = time.perf_counter()
    batches = data_readers.READ[reader](setup, workers)
    batch = next(batches)
    first = time.perf_counter() - began
    digest = {name: zlib.crc32(batch[name].tobytes()) for name in sorted(batch)}
    order = batch["index"].tolist()
    total = setup.records // setup.batch
    for i in range(1, total):
        if i == min(SETTLE, total // 2):
            skipped, cpu, began = len(order), cpu_seconds(), time.perf_counter()
        batch = next(batches)
        order += batch["index"].tolist()
        touch(batch)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    count = len(order) - skipped
    if isinstance(batches, grain.DatasetIterator):
        batches.close()  # else its processes print errors
    return {
        "records_per_second": count / seconds,
        "cpu_seconds": cpu / count,
        "first_seconds": first,
        "content": (digest, order),
    }


def touch(batch: data_readers.Batch) -> None:
    """Read a byte of every page: zeros and shared memory are mapped only on access."""
    for array in batch.values():
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and, if /proc exists, of its workers."""
    ticks = 0
    for child in multiprocessing.active_children():
        path = pathlib.Path(f"/proc/{child.pid}/stat")
        if path.is_file():
            fields = path.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + (ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0)


def run_alone(setup: data_readers.Setup, reader: str, workers: int) -> dict[str, Any]:
    """Call `read` in a new process: memory allocated by an earlier pass would speed up the next one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(read, setup, reader, workers).result()


def drop_cache(directory: pathlib.Path) -> bool:
    """Drop the files from the page cache; -> whether that succeeded."""
    dropped = [drop_file(path) for path in directory.iterdir()]
    return all(dropped)


def drop_file(path: pathlib.Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        for _ in range(DROP_TRIES):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.preadv(descriptor, [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
            except BlockingIOError:
                return True
            except OSError:
                return False  # in-memory file system
            time.sleep(0.1)  # pages in use by another process remain
        return False
    finally:
        os.close(descriptor)


def warm_cache(directory: pathlib.Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def measure(
    setup: data_readers.Setup, readers: Sequence[str], arguments: argparse.Namespace
) -> tuple[list[dict[str, Any]], bool]:
    """Measure every reader, number of workers and cache state; -> (rows, whether the cache can be dropped)."""
    kinds = [(reader, workers) for reader in readers for workers in arguments.workers]
    kinds = [kind for kind in kinds if kind != ("processes", 0)]
    can_drop = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT") and drop_cache(setup.directory)
    caches = [cache for cache in arguments.caches if cache == "warm" or can_drop]
    passes: Passes = collections.defaultdict(list)
    content = None
    with rich.progress.Progress() as bar:
        task = bar.add_task("reading", total=arguments.repeats * len(caches) * len(kinds))
        for _ in range(arguments.repeats):
            for cache in caches:
                for reader, workers in kinds:
                    (warm_cache if cache == "warm" else drop_cache)(setup.directory)
                    found = run_alone(setup, reader, workers)
                    content = content or found["content"]
                    if found.pop("content") != content:
                        raise SystemExit(f"error: {reader} with {workers} workers delivers different batches")
                    passes[reader, workers, cache].append(found)
                    bar.advance(task)
    return [summary(passes, *kind) for kind in passes], can_drop


def summary(passes: Passes, reader: str, workers: int, cache: str) -> dict[str, Any]:
    """Return the medians of one kind of pass; ratios compare passes of the same round."""
    own = passes[reader, workers, cache]
    row: dict[str, Any] = {"reader": reader, "workers": workers, "cache": cache}
    row |= {name: statistics.median(one[name] for one in own) for name in own[0]}
    others = passes.get(("pt", workers, cache), [])
    for name, better in (("records_per_second", 1), ("cpu_seconds", -1)):
        ratios = [(one[name] / other[name]) ** better for one, other in zip(own, others, strict=False)]
        row[f"{name}_over_pt"] = statistics.median(ratios) if ratios else None
    return row


def print_table(rows: list[dict[str, Any]], layout: str, megabytes: float) -> None:
    console = rich.console.Console(highlight=False)
    for cache in dict.fromkeys(row["cache"] for row in rows):
        table = rich.table.Table("reader", title=f"{layout}, {cache} page cache, {megabytes:.2f} MB per record")
        for column in ("workers", "rec./s", "MB/s", "CPU/rec.", "first", "speed of .pt", "1 / CPU of .pt"):
            table.add_column(column, justify="right")
        for row in (row for row in rows if row["cache"] == cache):
            table.add_row(
                row["reader"],
                str(row["workers"]),
                f"{row['records_per_second']:,.0f}",
                f"{row['records_per_second'] * megabytes:,.0f}",
                f"{row['cpu_seconds'] * 1e3:.1f} ms",
                f"{row['first_seconds']:.2f} s",
                *(f"{row[name]:.2f}x" if row[name] else "-" for name in RATIOS),
            )
        console.print(table)
        for sentence in conclusions([row for row in rows if row["cache"] == cache]):
            console.print(f"{layout}, {cache}: {sentence}", soft_wrap=True)


def conclusions(rows: list[dict[str, Any]]) -> list[str]:
    """Compare the fastest setting of each reader, in sentences."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["reader"] not in best or row["records_per_second"] > best[row["reader"]]["records_per_second"]:
            best[row["reader"]] = row
    sentences = []
    for other in ("processes", "pt", "parquet"):
        if other in best and "threads" in best:
            ratio = best["threads"]["records_per_second"] / best[other]["records_per_second"]
            sentences.append(
                f"{best['threads']['workers']} threads read {ratio:.2f} times as fast as {other} with "
                f"{best[other]['workers']} workers"
            )
    return sentences


def hardware() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    add, default = parser.add_argument, "(default: %(default)s)"
    latent = "latent frames, height, width and channels (default: 24 30 52 32)"
    layouts = data_readers.LAYOUTS
    add("--records", type=int, default=192, help="clips (default: 192, up to 2.4 GB per format)")
    add("--latent", type=int, nargs=4, default=[24, 30, 52, 32], help=latent)
    add("--vision", type=int, nargs=2, default=[729, 1152], help="image tokens and their width (default: 729 1152)")
    add("--text-dim", type=int, default=3584, help=f"width of a text token {default}")
    add("--glyph-dim", type=int, default=1472, help=f"width of a glyph token {default}")
    add("--text-tokens", type=int, default=1000, help=f"text tokens of an example, padded {default}")
    add("--glyph-tokens", type=int, default=256, help=f"glyph tokens of an example, all of them padding {default}")
    add("--prompt-tokens", type=int, default=256, help=f"tokens of the longest prompt; the shortest has 64 {default}")
    add("--clips-per-prompt", type=int, default=4, help=f"clips with the same prompt; records store it once {default}")
    add("--batch", type=int, default=4, help=f"clips of a batch {default}")
    add("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of workers (default: 0 1 2)")
    add("--layouts", nargs="+", choices=layouts, default=layouts, help="comparisons to make (default: both)")
    add("--readers", nargs="+", choices=READERS, default=READERS, help="readers to measure (default: all)")
    add("--caches", nargs="+", choices=CACHES, default=CACHES, help="states of the page cache (default: both)")
    add("--repeats", type=int, default=3, help=f"passes of each reader; the median counts {default}")
    add("--directory", help="folder for the files, on the disk to measure (default: the system's temporary folder)")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    return parser


def window(arguments: argparse.Namespace) -> data.ClipConfig:
    """Return a clip config whose examples contain all frames of a clip."""
    frames, height, width, _ = arguments.latent
    return data.ClipConfig(
        latent_size=(height, width),
        window_frames=frames,
        chunk_frames=frames // 2,
        memory_frames=frames // 2,
        temporal_context=0,
        memory_probability=0.0,
        text_dropout=0.0,
        text_tokens=arguments.text_tokens,
        glyph_tokens=arguments.glyph_tokens,
        curriculum=((0, frames),),
    )


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    # Grain's workers unlink its shared memory, and Python's resource tracker then prints a warning.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    missing = [name for name in arguments.readers if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None]
    readers = [name for name in arguments.readers if name not in missing]
    if arguments.records < 2 * arguments.batch:
        parser.error(f"--records: expected at least two batches of --batch {arguments.batch}, got {arguments.records}")
    rows: list[dict[str, Any]] = []
    for layout in arguments.layouts:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
            clip = window(arguments)
            setup = data_readers.Setup(pathlib.Path(directory), layout, clip, arguments.batch, arguments.records)
            megabytes = data_readers.write_files(arguments, setup, readers) / 1e6
            found, can_drop = measure(setup, readers, arguments)
        print_table(found, layout, megabytes)
        rows += [{"layout": layout, "megabytes": megabytes, **row} for row in found]
    settings = hardware()
    print(", ".join(f"{name}: {value}" for name, value in settings.items()))
    for name in missing:
        print(f"{name} is skipped: {NEEDS[name]} is not installed")
    if "cold" in arguments.caches and not can_drop:
        print("cold reads are skipped: the system cannot drop the page cache")
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name not in ("json", "directory")}
        content = {"settings": {**options, **settings}, "left_out": missing, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
