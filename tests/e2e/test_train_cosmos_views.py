"""Videos of three synchronized cameras through Cosmos-Predict2's commands, from records to an evaluation."""

import json
import pathlib
import shlex

import commands
import numpy as np
import PIL.Image
import pytest
import tiny_videos

from jworld import evaluate, generate
from jworld.data import camera_grids
from jworld.data.recording import episodes
from jworld.precompute import __main__ as precompute
from jworld.systems import video_files

pytestmark = pytest.mark.e2e

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
#: The order of the records and the ids of the model's cameras; the front camera is neither first nor last.
CAMERAS = {"left": 2, "front": 0, "right": 1}
SMALL = (
    *("--config.model.width=48", "--config.model.num_heads=2", "--config.model.num_layers=1", "--config.steps=2"),
    *("--config.global_batch=2", "--config.log.interval=1", "--config.sample.rollout.num_steps=1"),
    *("--config.sample.windows=1", "--config.evaluation.interval=2"),
)


def frames(camera: str, number: int, count: int = 13) -> np.ndarray:
    """Return a moving pattern in the color of a camera, uint8 [T, 48, 64, 3]."""
    pattern = np.random.default_rng(number).integers(0, 60, (6, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    video = np.stack([np.roll(pattern, 2 * t, axis=1) for t in range(count)])
    video[..., list(CAMERAS).index(camera)] += 180
    return video.astype(np.uint8)


@pytest.mark.slow
def test_videos_of_cameras_become_videos_of_cameras(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate("abcd"):
        for camera in CAMERAS:
            tiny_videos.write(tmp_path / "drives" / "videos" / camera / f"{name}.mp4", frames(camera, number))
        meta = tmp_path / "drives" / "metas" / "front" / f"{name}.txt"
        meta.parent.mkdir(parents=True, exist_ok=True)
        meta.write_text("a car on a road")
    cameras = ",".join(f"{name}={number}" for name, number in CAMERAS.items())
    paths = (f"--input={tmp_path / 'drives'}", f"--output={tmp_path / 'records'}", f"--camera={cameras}")
    size = ("--fps=10", "--frames=13", "--val-share=0.5", "--image-encoder=none")
    precompute.main(["--format=cosmos", *paths, *size])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    recipe = shlex.split(line.removeprefix("next: python -m jworld.train "))
    assert recipe[0] == "--config=configs/cosmos_video2world.py:tiny_multiview"
    assert "--config.data.clip.views=('left','front','right')" in recipe
    assert "--config.data.clip.view_ids=(2,0,1)" in recipe

    run = tmp_path / "run"
    trained = commands.run("jworld.train", *recipe, f"--workdir={run}", *SMALL, **ONE_DEVICE)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "step 2/2" in trained.stdout
    # The record's latents are decoded camera by camera.
    assert '_psnr"' in (run / "metrics.jsonl").read_text()
    assert (run / "samples" / "continuation.mp4").is_file()

    images = []
    for camera in CAMERAS:
        PIL.Image.fromarray(frames(camera, 9)[0]).save(tmp_path / f"{camera}.png")
        images += ["--image", str(tmp_path / f"{camera}.png")]
    out = tmp_path / "out.mp4"
    start = ["--checkpoint", str(run), "--prompt", "a car on a road"]
    generate.main([*start, *images, "--windows", "2", "--out", str(out)])
    grid = episodes.read_video(out)
    assert grid.shape == (13 + 12, 48, 3 * 64, 3)
    for index, (camera, tile) in enumerate(zip(CAMERAS, camera_grids.split(grid, 3), strict=True)):
        own = episodes.read_video(video_files.camera_file(out, camera))
        assert np.abs(own.astype(int) - tile).mean() < 8
        # The first frame is the image of the camera of this name.
        assert own[0].mean(axis=(0, 1)).argmax() == index
    assert json.loads(out.with_suffix(".json").read_text())["image"] == images[1::2]

    with pytest.raises(SystemExit) as stopped:
        generate.main([*start, *images[:4], "--out", str(tmp_path / "two.mp4")])
    assert stopped.value.code == 2
    assert "--image: found 2, expected one for each camera in the order left, front, right" in capsys.readouterr().err
    generate.main([*start, "--image", str(out), "--out", str(tmp_path / "continued.mp4")])
    assert "is read as a grid of the cameras left, front, right" in capsys.readouterr().err

    evaluate.main(["--checkpoint", str(run), "--windows=1", "--chunks=1"])
    measured = json.loads((run / "evaluation" / "evaluation.json").read_text())
    found = json.dumps(measured)
    assert all(f'"{camera}"' in found for camera in CAMERAS)
    assert "psnr_per_view" in found
