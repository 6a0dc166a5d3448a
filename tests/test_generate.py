"""python -m jworld.generate on a tiny model: its files, its options and user errors."""

import contextlib
import json
import pathlib
import shutil
import tempfile
import time

import commands
import full_disk
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tiny_run

from jworld import generate
from jworld.cameras import pose_strings, poses
from jworld.data.recording import episodes
from jworld.systems import generation, options, runs, video_files
from jworld.utils import compilation, errors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_run.make_run(tmp_path_factory.getbasetemp() / "tiny_run")


@pytest.fixture(scope="module")
def image(run: pathlib.Path) -> pathlib.Path:
    """Write a recorded frame."""
    path = run.parent / "first.png"
    frame = episodes.read_episode(run.parent / "episodes", "episode_00007").frames[0]
    PIL.Image.fromarray(frame).save(path)
    return path


def arguments(run: pathlib.Path, image: pathlib.Path, out: pathlib.Path, *extra: str) -> list[str]:
    """Return a command line; options of `extra` replace the others."""
    own = ["--checkpoint", str(run), "--image", str(image), "--prompt", "rooms", "--pose", "w-3, w+right-4"]
    return commands.replaced([*own, "--out", str(out)], *extra)


def make(run: pathlib.Path, image: pathlib.Path, folder: pathlib.Path, *extra: str) -> np.ndarray:
    """Generate a video and return its frames."""
    out = folder / "out.mp4"
    generate.main(arguments(run, image, out, *extra))
    return episodes.read_video(out).astype(int)


@pytest.fixture(scope="module")
def plain(run: pathlib.Path, image: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return make(run, image, tmp_path_factory.mktemp("plain"))


def test_video_contact_sheet_and_numbers(
    run: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    began = time.time()
    video = make(run, image, folder, "--sheet", "--seed", "7", "--config.sample.rollout.num_steps=3")
    assert video.shape == (29, 24, 32, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["out.json", "out.mp4", "out.png"]
    with PIL.Image.open(folder / "out.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 2 * 4 * 112
    facts = json.loads((folder / "out.json").read_text())
    assert (facts["seed"], facts["pose"], facts["prompt"]) == (7, "w-3, w+right-4", "rooms")
    assert facts["chunks"] == [
        {"start": 0, "stop": 13, "action": "forward"},
        {"start": 13, "stop": 29, "action": "forward+yaw_right"},
    ]
    assert facts["config"]["sample"]["rollout"] == {
        "mode": "autoregressive",
        "num_steps": 3,
        "shift": 10.0,
        "guidance": 1.0,
        "context_time": 14.0,
        "negative_prompt": "",
        "fps": None,
    }
    assert facts["config"]["model"]["param_dtype"] == "float32"  # a default, written out
    timings = facts["timings"]
    assert len(timings["chunk_seconds"]) == 2
    assert 0 < timings["chunk_p50_seconds"] <= timings["chunk_p95_seconds"]
    assert timings["frames_per_second"] == pytest.approx(29 / sum(timings["chunk_seconds"]))
    assert timings["load_seconds"] + timings["compile_seconds"] + sum(timings["chunk_seconds"]) < time.time() - began
    printed = capsys.readouterr().out
    assert f"wrote {folder / 'out.png'}" in printed
    assert "29 frames" in printed


def test_the_same_request_makes_the_same_video(
    run: pathlib.Path, image: pathlib.Path, plain: np.ndarray, tmp_path: pathlib.Path
) -> None:
    np.testing.assert_array_equal(make(run, image, tmp_path), plain)
    assert np.abs(make(run, image, tmp_path, "--seed", "1") - plain).mean() > 20
    assert np.abs(make(run, image, tmp_path, "--pose", "s-3, s+left-4") - plain).mean() > 20


def test_a_stream_is_the_same_video(
    run: pathlib.Path, image: pathlib.Path, plain: np.ndarray, tmp_path: pathlib.Path
) -> None:
    """Streams are encoded without look-ahead, so the frames differ slightly."""
    video = make(run, image, tmp_path, "--stream")
    assert video.shape == plain.shape
    assert np.abs(video - plain).mean() < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.mp4"]
    assert [x["stop"] for x in json.loads((tmp_path / "out.json").read_text())["chunks"]] == [13, 29]


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (errors.RestartError("a process is lost"), 75)])
def test_frames_of_a_rollout_that_ends_early_are_kept(
    error: BaseException,
    code: int,
    run: pathlib.Path,
    image: pathlib.Path,
    plain: np.ndarray,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(bar: video_files.ProgressBar) -> None:
        raise error

    monkeypatch.setattr(video_files.ProgressBar, "advance", fail)
    out = tmp_path / "out.mp4"
    out.write_text("an older video")
    with pytest.raises(SystemExit) as exit_info:
        make(run, image, tmp_path)
    assert exit_info.value.code == code
    kept = tmp_path / "out.partial.mp4"
    assert f"wrote {kept}: the 13 frames made so far" in capsys.readouterr().out
    assert np.abs(episodes.read_video(kept).astype(int) - plain[:13]).mean() < 5
    assert sorted(tmp_path.iterdir()) == [out, kept]
    assert out.read_text() == "an older video"


@pytest.mark.parametrize("is_full_everywhere", [False, True])
def test_a_full_disk_leaves_nothing_half_written(
    is_full_everywhere: bool,
    run: pathlib.Path,
    image: pathlib.Path,
    plain: np.ndarray,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The video is kept in the folder for temporary files if that is on another disk."""
    out, other = tmp_path / "out", tmp_path / "temporary"
    out.mkdir()
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    original = episodes.write_video

    def write(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> None:
        with full_disk.after(1000) if is_full_everywhere or out in path.parents else contextlib.nullcontext():
            original(path, frames, fps=fps)

    monkeypatch.setattr(episodes, "write_video", write)
    with pytest.raises(SystemExit) as exit_info:
        make(run, image, out)
    assert exit_info.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"error: --out {out / 'out.mp4'} could not be written ([Errno 27] File too large")
    assert sentence.count("\n") == 1
    assert list(out.iterdir()) == []
    if is_full_everywhere:
        assert list(other.iterdir()) == []
    else:
        (kept,) = other.rglob("*.mp4")
        assert f"the frames are kept in {kept}" in sentence
        np.testing.assert_array_equal(episodes.read_video(kept), plain)


@pytest.mark.parametrize(
    "extra",
    [
        ("--mesh", "data=1,fsdp=1,sequence=2"),
        ("--set", "model.dtype=bfloat16", "--set", "model.param_dtype=bfloat16"),
        pytest.param(
            ("--mesh", "fsdp=2,sequence=2", "--set", "model.dtype=bfloat16", "--set", "model.param_dtype=bfloat16"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_meshes_and_bfloat16_make_nearly_the_same_video(
    extra: tuple[str, ...], run: pathlib.Path, image: pathlib.Path, plain: np.ndarray, tmp_path: pathlib.Path
) -> None:
    video = make(run, image, tmp_path, *extra)
    assert np.abs(video - plain).mean() < (4 if "bfloat16" in "".join(extra) else 0.01)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["device"].startswith({"data": "2", "fsdp": "4"}.get(extra[1].split("=")[0], "1"))


def test_guidance_and_the_bidirectional_mode(run: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    settings = ["sample.rollout.mode=bidirectional", "sample.rollout.guidance=2.0", "sample.actions=forward*15"]
    extra = [part for text in settings for part in ("--set", text)]
    video = make(run, image, tmp_path, "--pose", "w-31", *extra)
    assert video.shape == (125, 24, 32, 3)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert [chunk["stop"] for chunk in facts["chunks"]] == [61, 125]


def test_a_file_of_poses_is_a_path(
    run: pathlib.Path, image: pathlib.Path, plain: np.ndarray, tmp_path: pathlib.Path
) -> None:
    """A file of poses gives the same video as the pose string; its intrinsics are in pixels of 320 x 240."""
    units = runs.load(run).system.units
    c2w = poses.invert_rigid(pose_strings.path("w-3, w+right-4", units).w2c)
    intrinsics = [[160, 0, 160], [0, 160, 120], [0, 0, 1]]
    file = tmp_path / "poses.json"
    file.write_text(json.dumps({str(i): {"extrinsic": x.tolist(), "K": intrinsics} for i, x in enumerate(c2w)}))
    assert np.abs(make(run, image, tmp_path, "--pose", str(file)) - plain).mean() < 0.01


def test_paths_that_end_within_a_chunk(
    run: pathlib.Path,
    image: pathlib.Path,
    plain: np.ndarray,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A file of 9 poses for chunks of 4; the suffixes of files may be upper case."""
    units = runs.load(run).system.units
    c2w = poses.invert_rigid(pose_strings.path("w-3, w+right-4, right-1", units).w2c)
    file, out = tmp_path / "POSES.JSON", tmp_path / "OUT.MP4"
    entry = {"K": [[160, 0, 160], [0, 160, 120], [0, 0, 1]]}
    file.write_text(json.dumps({str(i): entry | {"extrinsic": x.tolist()} for i, x in enumerate(c2w)}))
    with pytest.raises(SystemExit):
        generate.main(arguments(run, image, out, "--pose", str(file)))
    assert "add 3, or give --length pad or --length cut" in capsys.readouterr().err
    generate.main(arguments(run, image, out, "--pose", str(file), "--length", "cut"))
    assert "the last 1 fill no chunk of 4 and are left out" in capsys.readouterr().err
    assert np.abs(episodes.read_video(out).astype(int) - plain).mean() < 0.01
    padded = make(run, image, tmp_path, "--pose", "w-3, w+right-4, right-1", "--length=pad")
    assert "has 9 latents (the first frame is one): 3 are added to fill a chunk of 4" in capsys.readouterr().err
    still = make(run, image, tmp_path, "--pose", "w-3, w+right-4, right-1, none-3")
    np.testing.assert_array_equal(padded, still)


def test_encoders_in_another_folder(
    run: pathlib.Path,
    image: pathlib.Path,
    plain: np.ndarray,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = tmp_path / "imported"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns(runs.ENCODERS))
    with pytest.raises(SystemExit) as exit_info:
        make(bare, image, tmp_path)
    assert exit_info.value.code == 2
    assert f"error: {bare / 'encoders'} has no manifest.json" in capsys.readouterr().err
    np.testing.assert_array_equal(make(bare, image, tmp_path, "--encoders", str(run / runs.ENCODERS)), plain)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--pose", "w-3, jump-4"), "pose string item 'jump-4' is invalid"),
        (("--pose", "w-4"), "--pose w-4 has 5 latents (the first frame is one), "),
        (("--pose", "no.json"), "no.json is absent"),
        (("--set", "sample.rollout.num_steps=four"), "expected an integer from 1 to 1000, got 'four' (it is 2)"),
        (
            ("--set", "sample.rollout.num_step=4"),
            "config.sample.rollout.num_step: this config has no such key; did",
        ),
        (("--set", "sampel.rollout=4"), "config.sampel: this config has no such key; did you mean 'sample'?"),
        (("--config.sample.rollout=4",), "config.sample.rollout is a section with the keys"),
        (("--set", "sample.rollout.num_steps"), "expected KEY=VALUE"),
        (("--config.sample.rollout.num_steps",), "--config.sample.rollout.num_steps: the value is missing"),
        (("--config.sample.rollout.num_steps=0",), "num_steps: expected an integer from 1 to 1000, got '0'"),
        (
            ("--set", "sample.rollout.mode=both"),
            "mode: expected one of 'autoregressive', 'bidirectional', got 'both'",
        ),
        (("--config.model.mlp_ratio=2.0",), "holds another model"),
        (("--mesh", "sequence=3"), "the mesh has sequence=3, which does not divide"),
        (("--mesh", "fsdp=64"), "config.mesh is data=1, fsdp=64, sequence=1 = 64 devices"),
        (("--actions", "D*3"), "--actions D*3: this model is steered by --pose"),
        (("--stream", "--sheet"), "--sheet needs all frames at the end, but --stream stores none"),
        (("--out", "video.avi"), "expected a name that ends in .mp4"),
        (("--out", "/proc/none/video.mp4"), "--out /proc/none/video.mp4 cannot be written in /proc"),
        (("--image", "no.png"), "--image no.png cannot be read"),
        (("--image", str(tiny_run.RECIPE)), "cannot be read"),
        (("--image", "a.png", "--image", "b.png"), "--image is given 2 times: a video begins with one"),
        (("--checkpoint", "nowhere"), "nowhere/config.json is absent"),
    ],
)
def test_mistakes_end_with_one_sentence(
    extra: tuple[str, ...],
    message: str,
    run: pathlib.Path,
    image: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        make(run, image, tmp_path, *extra)
    assert exit_info.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert not any(tmp_path.iterdir())


class Start(options.VideoOptions):
    """The part of a system that a first image needs."""

    def __init__(self, *, needs_image: bool) -> None:
        self.needs_image = needs_image


def test_a_first_image_is_required_or_refused(image: pathlib.Path) -> None:
    needed, refused = Start(needs_image=True), Start(needs_image=False)
    assert generation.find_start(None, refused, fps=None) is None  # type: ignore[arg-type]
    array = generation.find_start(image, needed, fps=None)  # type: ignore[arg-type]
    assert array is not None
    assert array.ndim == 3
    for path, system, message in ((None, needed, "--image is missing"), (image, refused, "from a caption alone")):
        with pytest.raises(errors.UserError, match=message):
            generation.find_start(path, system, fps=None)  # type: ignore[arg-type]


@pytest.mark.e2e
def test_the_command(run: pathlib.Path, image: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = commands.run("jworld.generate", *arguments(run, image, tmp_path / "out.mp4"))
    assert result.returncode == 0, result.stderr
    assert "per second" in result.stdout
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_help_explains_paths(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        generate.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    assert "w+right-4" in printed
    assert "--mesh" in printed


def test_compile_time_is_separate() -> None:
    with compilation.CompileTimes() as times:
        began = time.time()
        jax.jit(lambda x: jnp.tanh(x) * 3.25 + 0.875)(jnp.ones(7)).block_until_ready()
        compiled = time.time()
        time.sleep(0.05)
        ended = time.time()
    assert 0 < times.seconds(began, ended) <= compiled - began
    assert times.seconds(compiled, ended) == 0
    # Nested, overlapping and separate spans.
    times._spans = [(10, 14), (11, 12), (13, 16), (20, 21)]
    assert times.seconds(0, 100) == 7
    assert times.seconds(12, 15) == 3
