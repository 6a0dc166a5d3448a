"""Benchmark of restoring imported weights: rate, the rate of plain reading of the same files, and peak memory.

    python benchmarks/restore.py --checkpoint checkpoints/cosmos-predict2-2b
    python benchmarks/restore.py --checkpoint checkpoints/cosmos-predict2-2b --dtype float32 --json restore.json

Every chunk is compared with its checksum and cast to --dtype, as for training and generation. Plain reading and
restoring take turns, and the fastest of --repeats counts. After the first turn the files are in the system's cache if
it has room for them. The peak is that of the process above its memory before the restore, mapped files not counted.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import peak_memory
from flax import nnx

from jworld import systems
from jworld.parallel import axes
from jworld.systems import runs
from jworld.utils import arguments as command_line
from jworld.utils import config as run_config
from jworld.utils import errors, files

_BLOCK = 16 << 20


def read_files(folder: pathlib.Path) -> tuple[int, float]:
    """Read all files of a folder with one thread; return bytes and seconds."""
    began, count = time.perf_counter(), 0
    buffer = bytearray(_BLOCK)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while size := file.readinto(buffer):
                    count += size
    return count, time.perf_counter() - began


def main(argv: list[str] | None = None) -> None:
    parser = command_line.Parser("python benchmarks/restore.py", (__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--checkpoint", type=pathlib.Path, required=True, help="folder of imported weights (required)")
    add("--dtype", default="", help="dtype of the parameters (default: that of the checkpoint's config)")
    add("--repeats", type=int, default=3, help="turns of reading and restoring (default: 3)")
    add("--json", type=pathlib.Path, help="also write the numbers to this file (default: none)")
    options = parser.parse(argv)

    config = run_config.load(options.checkpoint)
    if options.dtype:
        with config.unlocked():
            config.model.param_dtype = options.dtype
    system = systems.create(config)
    with nnx.use_eager_sharding(False), nnx.logical_axis_rules(axes.RULES):
        shapes = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    weights = options.checkpoint / runs.IMPORTED
    reading, restoring, peaks, stored, parameters = [], [], [], 0, 0
    for _ in range(options.repeats):
        stored, seconds = read_files(weights)
        reading.append(seconds)
        with peak_memory.Peak() as peak:
            began = time.perf_counter()
            params, _ = runs.load_params(options.checkpoint, shapes)
            jax.block_until_ready(params)
            restoring.append(time.perf_counter() - began)
        peaks.append(peak.bytes)
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        del params
    result = {
        "stored_bytes": stored,
        "parameter_bytes": parameters,
        "dtypes": sorted({jnp.dtype(leaf.dtype).name for leaf in jax.tree.leaves(shapes)}),
        "read_seconds": min(reading),
        "restore_seconds": min(restoring),
        "stored_bytes_per_second": stored / min(restoring),
        "share_of_reading": min(reading) / min(restoring),
        "peak_over_parameters": max(peaks) / parameters,
    }
    print(f"{stored / 1e9:.2f} GB in files, {parameters / 1e9:.2f} GB of parameters ({', '.join(result['dtypes'])})")
    print(f"plain reading: {min(reading):.2f} s, {stored / min(reading) / 1e9:.2f} GB/s")
    print(
        f"restore: {min(restoring):.2f} s, {stored / min(restoring) / 1e9:.2f} GB/s of files, "
        f"{parameters / min(restoring) / 1e9:.2f} GB/s of parameters; peak {max(peaks) / parameters:.2f} times these"
    )
    if options.json is not None:
        files.write_json(options.json, result)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
