"""Memory over long work: 500 saves, 1,000 chunks of a session, 300 clips of a data set, each in its own process."""

import json
import os
import pathlib
import subprocess
import sys

import commands
import pytest
import xla_flags

pytestmark = [pytest.mark.e2e, pytest.mark.long]

TESTS = commands.ROOT / "tests"
#: Begins every program: `note(n)` remembers the resident memory in kB after n units of work.
HEAD = """
import gc, json, pathlib, sys
import conftest
sys.path.append(str(conftest.TESTS / "training"))
folder, noted = pathlib.Path(sys.argv[1]), {}

def note(count):
    gc.collect()
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    noted[count] = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
"""
SAVES = """
import toy
from jworld.training import checkpoints

run = toy.Run()
with checkpoints.Checkpoints(folder / "checkpoints", max_to_keep=3) as manager:
    for count in range(1, 501):
        run.step()
        manager.save(run.state, {"next_batch": count})
        if count % 100 == 0:
            note(count)
print(json.dumps(noted))
"""
CHUNKS = """
import jax
import numpy as np
import tiny_run
from jworld.parallel import mesh
from jworld.systems import runs

run = runs.load(tiny_run.make_run(folder))
session = run.system.session(run.model, run.encoders)
image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
with jax.set_mesh(mesh.make_mesh(devices=jax.devices()[:1])):
    session.reset(image, "rooms", seed=0)
    keys = ("w", "w+right", "none", "a", "left")
    for count in range(1, 1001):
        frames = session.step(keys[count % len(keys)])
        assert frames.shape[1:] == (24, 32, 3)
        if count % 200 == 0:
            note(count)
print(json.dumps(noted))
"""
CLIPS = """
import tiny_run
from jworld.data.recording import recorder
from jworld.encoders import choices
from jworld.encoders import model_encoders
from jworld.models.autoencoders import linear
from jworld.precompute import job, writer
from jworld.precompute.settings import Settings

recorder.record(folder / "episodes", source="rooms", episodes=300, frames=17, width=32, height=24, workers=2)
settings = Settings(
    input=folder / "episodes",
    width=32,
    height=24,
    linear=linear.LinearConfig(channels=8, spatial_ratio=8),
    given=choices.EncoderOverrides(text_encoder="hashed-words:16"),
)
count, make = 0, writer.Maker._record

def counted(self, *arguments, **named):
    global count
    count += 1
    if count % 50 == 0:
        note(count)
    return make(self, *arguments, **named)

writer.Maker._record = counted
job.precompute(settings, folder / "records")
assert count == 300, count
print(json.dumps(noted))
"""


def measure(program: str, folder: pathlib.Path) -> dict[int, int]:
    """Run a program in a process of its own; return its memory in kB after so many units of work."""
    flags = xla_flags.fast_compilation(1)
    result = subprocess.run(
        [sys.executable, "-c", HEAD + program, str(folder)],
        cwd=TESTS,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    noted = {int(count): size for count, size in json.loads(result.stdout.splitlines()[-1]).items()}
    print({count: f"{size / 1000:.1f} MB" for count, size in noted.items()})
    return noted


def growth(noted: dict[int, int], first: int) -> float:
    """Return the growth in kB per unit of work from `first` to the end."""
    last = max(noted)
    return (noted[last] - noted[first]) / (last - first)


def test_500_saves(tmp_path: pathlib.Path) -> None:
    """TensorStore never frees the strings of the descriptions that it returns: about 10 kB per save remain."""
    assert growth(measure(SAVES, tmp_path), 200) < 45


def test_1000_chunks_of_a_session(tmp_path: pathlib.Path) -> None:
    assert growth(measure(CHUNKS, tmp_path), 200) < 4


def test_300_clips_of_a_data_set(tmp_path: pathlib.Path) -> None:
    assert growth(measure(CLIPS, tmp_path), 100) < 50
