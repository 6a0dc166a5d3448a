"""Run folder of a tiny random model on ray-cast rooms, for tests of the commands that open one."""

import importlib.util
import pathlib

import jax
import ml_collections
import numpy as np
from flax import nnx

from jworld import systems
from jworld.data.recording import recorder
from jworld.encoders import choices, model_encoders
from jworld.models.autoencoders import linear
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.systems import runs
from jworld.training import weights
from jworld.utils import config as run_config

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "ar_mem.py"
RECORDED_SIZE, SIZE = (64, 48), (32, 24)
FRAMES, CHANNELS, TEXT_DIM = 61, 8, 16


def make_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """Load `configs/ar_mem.py:rooms` with a model of a few thousand parameters and data in `directory`."""
    spec = importlib.util.spec_from_file_location("ar_mem", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config("rooms")
    with config.unlocked():
        config.global_batch = 2
        config.model.update(
            {"channels": CHANNELS, "width": 32, "num_heads": 2, "num_layers": 2, "rope_dims": (4, 6, 6)}
        )
        config.model.text_dim = TEXT_DIM
        config.data.records = str(directory / "records")
        config.data.recording.update(
            {"directory": str(directory / "episodes"), "episodes": 8, "frames": FRAMES, "image_size": RECORDED_SIZE}
        )
        config.data.encoding.update({"image_size": SIZE, "spatial_ratio": 8})
        config.data.clip.update({"window_frames": 12, "memory_frames": 8, "temporal_context": 4, "memory_points": 200})
        config.data.clip.curriculum = ((0, 16),)
        config.sample.rollout.num_steps = 2
        config.sample.actions = "forward*3,yaw_right*4"
    return config


def make_run(directory: pathlib.Path) -> pathlib.Path:
    """Make episodes, records and the folder of a run with random weights, once per `directory`; -> the folder."""
    run = directory / "run"
    if run.is_dir():
        return run
    config = make_config(directory)
    recording, (width, height) = config.data.recording, RECORDED_SIZE
    recorder.record(
        recording.directory, source="rooms", episodes=8, frames=FRAMES, width=width, height=height, workers=1
    )
    settings = Settings(
        input=pathlib.Path(recording.directory),
        width=SIZE[0],
        height=SIZE[1],
        linear=linear.LinearConfig(channels=CHANNELS, spatial_ratio=8),
        given=choices.EncoderOverrides(text_encoder=f"hashed-words:{TEXT_DIM}"),
    )
    job.precompute(settings, config.data.records)
    return write(run, config)


def write(run: pathlib.Path, config: ml_collections.ConfigDict) -> pathlib.Path:
    """Write the folder of a run on the records of its config, with random weights; -> the folder.

    All weights are noise: gates are initialized to zero, which would hide controls and text.
    """
    run.mkdir()
    run_config.save(config, run)
    model_encoders.copy(pathlib.Path(config.data.records), run / runs.ENCODERS)
    with nnx.use_eager_sharding(False):
        abstract = nnx.state(nnx.eval_shape(lambda: systems.create(config).init(nnx.Rngs(0))), nnx.Param)
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.2 * noise.standard_normal(x.shape, np.float32), abstract)
    weights.save(params, run / runs.WEIGHTS, np.float32)
    return run
