"""Records per second of the data pipeline against the same arrays in one .pt file per clip and in parquet.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --records 32 --latent 4 6 8 8 --repeats 1 --json data.json

Two comparisons. "latents": every format holds the latents alone, byte for byte the same. "published": a .pt file and a
row of parquet hold all of a clip with its padded text, as WorldPlay's published files do; the records are jworld's own,
with the text stored once per prompt at its true length. All readers deliver the same batches of numpy arrays in the
same order, which is checked, and every page of every batch is touched once.

Every pass runs in a process of its own, the readers by turns, with the files in the page cache ("warm") and without
("cold", where the system lets go of them). Times begin after some batches; the first is told apart because it pays for
starting workers. MB/s count the bytes of the batches. CPU counts all processes of a reader: on a busy machine it says
more than the time.

"threads" is what training uses: threads of the trainer's own process (0: no reading ahead). "processes" is the same
graph in Grain's worker processes, which the trainer does not offer. The others run in PyTorch's DataLoader, whose
workers are processes (0: none).
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

READERS, CACHES = ("threads", "processes", "pt", "parquet"), ("warm", "cold")
NEEDS = {"pt": "torch", "parquet": "pyarrow"}
#: Imported once, by the process whose copies make the passes.
PRELOADED = ["grain", "jworld.systems.worldplay.data", "torch.utils.data"]
#: Batches before the clock starts, or half of all.
SETTLE = 8
DROP_TRIES = 10
RATIOS = ("records_per_second_over_pt", "cpu_seconds_over_pt")

Passes = dict[tuple[str, int, str], list[dict[str, Any]]]


def read(setup: data_readers.Setup, reader: str, workers: int) -> dict[str, Any]:
    """One pass over all batches: seconds, CPU seconds, and what tells that the batches are the right ones."""
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
        batches.close()  # or its processes complain
    return {
        "records_per_second": count / seconds,
        "cpu_seconds": cpu / count,
        "first_seconds": first,
        "content": (digest, order),
    }


def touch(batch: data_readers.Batch) -> None:
    """Read a byte of every page: zeros and shared memory cost nothing until somebody looks."""
    for array in batch.values():
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max()


def cpu_seconds() -> float:
    """Of this process and, where the system tells, of its workers."""
    ticks = 0
    for child in multiprocessing.active_children():
        path = pathlib.Path(f"/proc/{child.pid}/stat")
        if path.is_file():
            fields = path.read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + (ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0)


def run_alone(setup: data_readers.Setup, reader: str, workers: int) -> dict[str, Any]:
    """`read` in a fresh process: memory that an earlier pass made ready would flatter the next."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(read, setup, reader, workers).result()


def drop_cache(directory: pathlib.Path) -> bool:
    """Ask the system to forget the files; -> whether it did."""
    forgotten = [forget(path) for path in directory.iterdir()]
    return all(forgotten)


def forget(path: pathlib.Path) -> bool:
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
                return False  # a file system in memory
            time.sleep(0.1)  # pages that another process is busy with stay
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
    """Medians of every reader, number of workers and state of the cache; whether the cache could be dropped."""
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
                        raise SystemExit(f"error: {reader} with {workers} workers gives other batches")
                    passes[reader, workers, cache].append(found)
                    bar.advance(task)
    return [summary(passes, *kind) for kind in passes], can_drop


def summary(passes: Passes, reader: str, workers: int, cache: str) -> dict[str, Any]:
    """Medians of one kind of pass; ratios are those of passes next to each other."""
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
        table = rich.table.Table("reader", title=f"{layout}, {cache} page cache, {megabytes:.2f} MB a record")
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
    """Best against best."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--records", type=int, default=192, help="clips; the default makes up to 2.4 GB per format")
    add("--latent", type=int, nargs=4, default=[24, 30, 52, 32], help="frames, height, width, channels")
    add("--vision", type=int, nargs=2, default=[729, 1152], help="image tokens and their width")
    add("--text-dim", type=int, default=3584)
    add("--glyph-dim", type=int, default=1472)
    add("--text-tokens", type=int, default=1000, help="text tokens of an example, padded")
    add("--glyph-tokens", type=int, default=256, help="glyph tokens of an example; no clip has any")
    add("--prompt-tokens", type=int, default=256, help="longest prompt; the shortest has 64 or as many")
    add("--clips-per-prompt", type=int, default=4, help="the records store their text once, the other files every time")
    add("--batch", type=int, default=4)
    add("--workers", type=int, nargs="+", default=[0, 1, 2])
    add("--layouts", nargs="+", choices=data_readers.LAYOUTS, default=data_readers.LAYOUTS)
    add("--readers", nargs="+", choices=READERS, default=READERS)
    add("--caches", nargs="+", choices=CACHES, default=CACHES)
    add("--repeats", type=int, default=3)
    add("--directory", help="a folder for the files, on the disk to measure (default: the system's for temporary ones)")
    add("--json", type=pathlib.Path, help="also write the numbers to this file")
    return parser


def window(arguments: argparse.Namespace) -> data.ClipConfig:
    """Examples that show all of a clip."""
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
    # Grain's shared memory is unlinked by its workers, and Python complains that it has no leak to clean up.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    missing = [name for name in arguments.readers if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None]
    readers = [name for name in arguments.readers if name not in missing]
    if arguments.records < 2 * arguments.batch:
        parser.error("--records is too small: at least two batches are read")
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
        print(f"{name} is left out: {NEEDS[name]} is not installed")
    if "cold" in arguments.caches and not can_drop:
        print("cold reads are left out: the system does not let go of the page cache")
    if arguments.json:
        options = {name: value for name, value in vars(arguments).items() if name not in ("json", "directory")}
        content = {"settings": {**options, **settings}, "left_out": missing, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
