"""Videos with poses through tiny copies of WorldPlay's own encoders, into training, and out as a generated video."""

import json
import pathlib

import commands
import numpy as np
import PIL.Image
import pytest
import tiny_autoencoders
import tiny_videos

from jworld import generate
from jworld.data import records
from jworld.data.recording import episodes
from jworld.data.records import text_store
from jworld.precompute import __main__ as precompute
from jworld.systems import runs

pytest.importorskip("transformers")
import tiny_encoders

pytestmark = pytest.mark.e2e

FRAMES, WIDTH, HEIGHT = 49, 16, 12
CLIPS = "abcdef"
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
#: The published recipe with a small model, latents of 3x4, windows of 12 and the widths of the tiny encoders.
MODEL = (
    *("--config.model.width=32", "--config.model.num_heads=2", "--config.model.num_layers=1"),
    *("--config.model.rope_dims=(4,6,6)", "--config.model.refiner_layers=1", "--config.model.channels=4"),
    *("--config.model.text_dim=16", "--config.model.glyph_dim=8", "--config.model.vision_dim=12"),
    *("--config.model.glyph_hidden=8", "--config.model.glyph_out=8", "--config.model.dtype=float32"),
    *("--config.data.clip.latent_size=(3,4)", "--config.data.clip.vision_tokens=4", "--config.mesh.sequence=1"),
    *("--config.data.clip.text_tokens=64", "--config.data.clip.glyph_tokens=32", "--config.data.clip.window_frames=12"),
    *("--config.data.clip.memory_frames=8", "--config.data.clip.temporal_context=4"),
    *("--config.data.clip.memory_points=50", "--config.sample.rollout.num_steps=1", "--config.steps=2"),
    *("--config.global_batch=2", "--config.sample.actions=forward*7", "--config.log.interval=1"),
)


def write_videos(folder: pathlib.Path) -> None:
    """Walks straight on past a pattern, with poses; every third video is held out."""
    index = []
    pose = {}
    for t in range(FRAMES):
        w2c = np.eye(4)
        w2c[2, 3] = -0.05 * t
        pose[str(t)] = {"w2c": w2c.tolist(), "intrinsic": [[16, 0, 16], [0, 16, 12], [0, 0, 1]]}
    for i, name in enumerate(CLIPS):
        pattern = np.random.default_rng(i).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        pattern = pattern.repeat(4, axis=0).repeat(4, axis=1)
        frames = np.stack([np.roll(pattern, t, axis=1) for t in range(FRAMES)])
        tiny_videos.write(folder / f"{name}.mp4", frames, fps=24)
        (folder / f"{name}.json").write_text(json.dumps(pose))
        entry = {"video_path": f"{name}.mp4", "pose_path": f"{name}.json", "caption": f'a sign "{i % 2}" in a hall'}
        index.append({**entry, "split": "val" if i % 3 == 2 else "train"})
    (folder / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("worldplay")
    (folder / "videos").mkdir()
    write_videos(folder / "videos")
    tiny_autoencoders.save(folder / "vae", "hunyuan15")
    return folder


@pytest.fixture(scope="module")
def encoders(folder: pathlib.Path) -> list[str]:
    """Options that name all encoders."""
    given = {"--autoencoder": str(folder / "vae"), **tiny_encoders.save(folder / "weights")}
    return [f"{flag}={value}" for flag, value in given.items()] + ["--encoder-dtype=float32"]


@pytest.fixture(scope="module")
def trained(folder: pathlib.Path, encoders: list[str]) -> pathlib.Path:
    """The folder of a run on records of those encoders."""
    size = (f"--width={WIDTH}", f"--height={HEIGHT}", "--fps=24", f"--frames={FRAMES}")
    command = (f"--input={folder / 'videos'}", "--format=worldplay", f"--output={folder / 'records'}", *size, *encoders)
    precompute.main(command)
    run = folder / "run"
    recipe = ("--config=configs/ar_mem.py:8b", f"--workdir={run}", f"--config.data.records={folder / 'records'}")
    result = commands.run("jworld.train", *recipe, *MODEL, **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "rollout, frames 0-12 (forward)" in result.stdout
    return run


@pytest.mark.slow
def test_records_of_published_encoders_train_and_roll_out(folder: pathlib.Path, trained: pathlib.Path) -> None:
    manifest = records.read_manifest(folder / "records")
    assert manifest["prompts"] == ["", 'a sign "0" in a hall', 'a sign "1" in a hall']
    families = [manifest[key]["family"] for key in ("text_encoder", "glyph_encoder", "vision_encoder")]
    assert families == ["qwen2.5-vl", "byt5-glyph", "siglip"]
    store = text_store.TextStore(folder / "records", manifest)
    # The glyph encoder sees what is quoted, and the empty prompt quotes nothing.
    assert [len(store.prompt(row)["glyph_states"]) for row in range(3)] == [0, 11, 11]
    assert not (trained / runs.ENCODERS / records.AUTOENCODER_FILE).exists()
    assert (trained / "samples" / "rollout.mp4").stat().st_size > 0


@pytest.mark.slow
def test_a_model_without_records_generates_with_named_encoders(
    folder: pathlib.Path, trained: pathlib.Path, encoders: list[str], tmp_path: pathlib.Path
) -> None:
    image = folder / "first.png"
    PIL.Image.fromarray(episodes.read_video(folder / "videos" / "c.mp4")[0]).save(image)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", runs.CHECKPOINTS):
        (bare / name).symlink_to(trained / name)

    def arguments(checkpoint: pathlib.Path, out: str, *extra: str) -> list[str]:
        told = ["--image", str(image), "--prompt", 'a sign "0" in a hall', "--pose", "w-7"]
        return ["--checkpoint", str(checkpoint), *told, "--out", str(tmp_path / out), *extra]

    generate.main(arguments(trained, "run.mp4"))
    generate.main(arguments(bare, "bare.mp4", *encoders))
    videos = [episodes.read_video(tmp_path / name) for name in ("run.mp4", "bare.mp4")]
    assert videos[0].shape == (29, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(videos[0], videos[1])
    assert videos[0].std() > 1
    with pytest.raises(SystemExit) as stopped:
        generate.main(arguments(bare, "none.mp4", *encoders[:2]))
    assert stopped.value.code == 2
