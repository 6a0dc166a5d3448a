"""Benchmark of The Matrix' endless stream: windows and frames per second, and delay of a key.

    python benchmarks/stream.py
    python benchmarks/stream.py --windows 100 --window-frames 1 2 --json stream.json

The model is that of configs/matrix_swin_dpm.py with random weights. There is one row per sampler: stage 3 with guidance
in 20 and 4 steps, stage 4 without guidance in 8 and 4 steps.

A step makes one window: steps / groups passes of the network over all frames of the window, twice with guidance, and
the pixels of the frames that leave the window. A key controls the frames that enter the window. It therefore becomes
visible after as many windows as there are groups.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from flax import nnx

from jworld import systems
from jworld.encoders import choices
from jworld.parallel import mesh
from jworld.systems.matrix.sampling import SampleConfig
from jworld.systems.matrix.streaming import StreamSession
from jworld.systems.matrix.system import Matrix
from jworld.utils import arguments as command_line
from jworld.utils import config as run_config

ROOT = pathlib.Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "matrix_swin_dpm.py"
STARTER = ROOT / "assets" / "starter" / "encoders"
SAMPLERS = {
    "stage 3, 20 steps": {"solver": "dpm", "num_steps": 20},
    "stage 3, 4 steps": {"solver": "dpm", "num_steps": 4},
    "stage 4, 8 steps": {"solver": "consistency", "num_steps": 8, "guidance": 1.0},
    "stage 4, 4 steps": {"solver": "consistency", "num_steps": 4, "guidance": 1.0},
}
#: Windows before the clock starts: the first ones compile.
WARM = 3


def random_model(system: Matrix) -> Any:
    """Make a model without zero weights."""
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), x.dtype), params)
    return nnx.merge(graphdef, drawn)


def measure(session: StreamSession, sample: SampleConfig, windows: int, fps: float) -> dict[str, Any]:
    """Measure one sampler."""
    image = np.random.default_rng(1).integers(0, 256, (*session.encoders.image_size[::-1], 3), dtype=np.uint8)
    session.reset(image, "rooms")
    seconds = []
    for i in range(WARM + windows):
        began = time.perf_counter()
        frames = session.step("DL" if i % 2 else "DR")
        seconds.append(time.perf_counter() - began)
    timed = seconds[WARM:]
    rate = len(timed) / sum(timed)
    return {
        "window_frames": sample.window_frames,
        "passes": sample.num_steps // sample.groups * (1 if sample.guidance == 1 else 2),
        "p50_seconds": float(np.percentile(timed, 50)),
        "p95_seconds": float(np.percentile(timed, 95)),
        "windows_per_second": rate,
        "frames_per_second": rate * len(frames),
        "delay_windows": session.delay,
        "delay_seconds": session.delay / rate,
        "delay_video_seconds": session.delay * len(frames) / fps,
    }


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    columns = ("", "passes", "window, p50 / p95", "windows/s", "frames/s", "key to first frame")
    table = rich.table.Table(*columns, title=f"endless stream on {jax.devices()[0].device_kind}")
    for name, row in rows.items():
        table.add_row(
            name,
            str(row["passes"]),
            f"{1e3 * row['p50_seconds']:.1f} / {1e3 * row['p95_seconds']:.1f} ms",
            f"{row['windows_per_second']:.1f}",
            f"{row['frames_per_second']:.0f}",
            f"{row['delay_windows']} windows, {row['delay_seconds']:.2f} s",
        )
    rich.console.Console(highlight=False).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Formatter)
    parser.add_argument("--windows", type=int, default=50, help="windows to time")
    parser.add_argument(
        "--window-frames", type=int, nargs="+", default=[2], help="latent frames of a group (default: 2)"
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    rows = {}
    for size in arguments.window_frames:
        for name, changes in SAMPLERS.items():
            config = run_config.load_recipe(str(RECIPE))
            with config.unlocked():
                config.sample.rollout.update({"window_frames": size, **changes})
            system: Matrix = systems.create(config)
            devices = mesh.make_mesh(devices=jax.devices()[:1])
            encoders = system.data.encoders(STARTER, given=choices.EncoderOverrides(), mesh=devices)
            session = system.session(random_model(system), encoders)
            assert isinstance(session, StreamSession)
            rows[f"{name}, {size} latents"] = measure(session, system.sample, arguments.windows, encoders.fps)
    print_table(rows)
    if arguments.json:
        settings = {"device": jax.devices()[0].device_kind, "model": dataclasses.asdict(system.model_config)}
        settings["model"] = {key: str(value) for key, value in settings["model"].items()}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
