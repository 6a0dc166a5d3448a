"""The evaluation command: windows, measures on synthetic data, files and user errors."""

import json
import pathlib

import commands
import numpy as np
import PIL.Image
import pytest
import tiny_run

from jworld import evaluate
from jworld.cameras import actions
from jworld.data.recording import episodes
from jworld.evaluation import held_out, leaderboard, measures, results
from jworld.systems.worldplay import evaluation, rollout, scripted
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

FILES = ("evaluation.json", "evaluation.png", "evaluation_rollouts.png", leaderboard.FILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.getbasetemp() / "tiny_run")


def test_windows_cover_episodes_and_their_length():
    assert held_out.choose_windows([61, 61], latents=16, windows=6) == [
        *((0, 0), (0, 22), (0, 45)),
        *((1, 0), (1, 22), (1, 45)),
    ]
    assert held_out.choose_windows([61] * 8, latents=16, windows=2) == [(0, 0), (7, 0)]
    assert held_out.choose_windows([8, 16, 17], latents=16, windows=9) == [(1, 0), (2, 0), (2, 1)]


def test_other_episodes_bring_their_world(tmp_path):
    """Weights of two worlds are measured in the one of the episodes, also on scripted paths."""
    facts = {"seed": 0, "fps": 16.0, "width": 64, "height": 48, "episodes": []}
    for source, expected in (("rooms", "rooms"), ("elsewhere", "worlds")):
        (tmp_path / source).mkdir()
        episodes.write_manifest(tmp_path / source, source=source, **facts)
        config = run_config.load_recipe(str(commands.ROOT / "configs" / "ar_mem.py:starter"))
        held_out.use_episodes(config, str(tmp_path / source))
        assert (config.data.recording.source, config.data.recording.directory) == (expected, str(tmp_path / source))
        own = run_config.load_recipe(str(commands.ROOT / "configs" / "ar_mem.py:8b"))
        with own.unlocked():
            own.data.recording.directory = ""
        held_out.use_episodes(own, str(tmp_path / source))
        assert own.data.recording.source == ""


def test_windows_longer_than_the_episodes_are_refused():
    with pytest.raises(UserError, match=r"longest of 2 held-out \w+ has 20 latents, expected at least 24"):
        held_out.choose_windows([20, 12], latents=24, windows=4)


def test_turning_chunks():
    names = ("none", "yaw_right", "forward+yaw_left", "forward", "none", "yaw_left", "forward", "left")
    labels = np.array([actions.label_from_name(name) for name in names])
    assert evaluation.turning_chunks(labels, 4) == [True, False]


class PerfectSession:
    """Session that returns the recorded frames for the recorded actions, else black ones; lossless autoencoder."""

    chunk_frames, spatial_ratio = 4, 16

    def __init__(self, clip: held_out.Clip):
        self.clip, self.encoders, self.autoencoder = clip, self, self

    def reset(self, first_frame, prompt, *, seed, first=None):
        np.testing.assert_array_equal(first_frame, self.clip.frames[0])
        self.latent = 0

    def step(self, controls):
        first, self.latent = self.latent, self.latent + self.chunk_frames
        start, stop = max(4 * first - 3, 0), 4 * self.latent - 3
        right = (controls.action == self.clip.controls.action[first : self.latent]).all()
        return self.clip.frames[start:stop] * np.uint8(right)

    def encode(self, frames):
        return frames

    def decode(self, latents):
        return latents


def make_clip() -> held_out.Clip:
    labels = np.array([0, *[actions.label_from_name("forward")] * 3, *[actions.label_from_name("yaw_left")] * 4])
    cameras = np.tile(np.eye(4, dtype=np.float32), (8, 1, 1))
    frames = np.arange(100, 129, dtype=np.uint8)[:, None, None, None] * np.ones((48, 64, 3), np.uint8)
    return held_out.Clip(
        name="made-up", frames=frames, prompt="", controls=rollout.Controls(labels, cameras, cameras[:, :3, :3])
    )


def test_measures_of_a_perfect_model():
    clip = make_clip()
    finished = []
    videos = evaluation.generated(PerfectSession(clip), clip, seed=0, advance=lambda: finished.append(1))
    np.testing.assert_array_equal(videos[held_out.MODEL], clip.frames)
    assert len(finished) == 2
    row = measures.measure(clip.frames, videos, held_out.generated_frames(8, 4), patch=16)
    assert row["psnr"][held_out.MODEL] == row["psnr"][held_out.AUTOENCODER] == [held_out.BEST_PSNR] * 2
    # Mirrored, a straight motion stays the same; a turn does not.
    first, turned = row["psnr"][held_out.SWAPPED]
    assert first == held_out.BEST_PSNR
    assert turned == held_out.psnr(clip.frames[13:], 0 * clip.frames[13:])
    errors = np.arange(1.0, 29.0) ** 2
    assert row["psnr"][evaluation.REPEATED] == pytest.approx(
        [10 * np.log10(255**2 / part.mean()) for part in (errors[:12], errors[12:])], abs=1e-4
    )


def test_command_writes_everything(folder, tmp_path, capsys):
    output = tmp_path / "out"
    evaluate.main(
        [f"--checkpoint={folder}", "--windows=2", "--chunks=2", "--revisits=1", "--seed=5", f"--output={output}"]
    )
    printed = capsys.readouterr().out
    numbers = json.loads((output / FILES[0]).read_text())
    assert numbers["windows"] == 2
    assert numbers["options"] == {"windows": 2, "chunks": 2, "revisits": 1, "seed": 5}
    assert numbers["step"] is None
    assert numbers["config"]["system"] == "worldplay"
    assert [row["first_latent"] for row in numbers["per_window"]] == [0, 8]
    for name, values in numbers["psnr_per_chunk"].items():
        assert name in printed
        np.testing.assert_allclose(values, np.mean([row["psnr"][name] for row in numbers["per_window"]], axis=0))
    curves = numbers["psnr_per_chunk"]
    gain = np.mean(np.subtract(curves[held_out.MODEL], curves[evaluation.REPEATED]))
    assert numbers["gain_over_repeated_first_frame"] == pytest.approx(gain)
    assert numbers["revisit_psnr"]["90"].keys() == {"with retrieval", "without"}
    assert len(numbers["still_psnr_per_chunk"]) == scripted.STILL_CHUNKS
    assert 0 < numbers["held_out_loss"] < 100
    board = leaderboard.read(output)
    assert board["psnr, chunk 2"] == leaderboard.Measure(curves[held_out.MODEL][1], "higher")
    assert board["held-out loss"] == leaderboard.Measure(numbers["held_out_loss"], "lower")
    assert leaderboard.FILE in printed
    for name in FILES[1:3]:
        assert name in printed
        with PIL.Image.open(output / name) as sheet:
            assert sheet.width > 500
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)


def test_what_was_measured_before_an_interruption_is_kept(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scripted, "revisits", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    output = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([f"--checkpoint={folder}", "--windows=2", "--chunks=2", f"--output={output}"])
    assert exit_.value.code == 130
    assert f"wrote {output / evaluate.PARTIAL}: what was measured so far" in capsys.readouterr().out
    assert [path.name for path in output.iterdir()] == [evaluate.PARTIAL]
    rows = [json.loads(line) for line in (output / evaluate.PARTIAL).read_text().splitlines()]
    assert [row["first_latent"] for row in rows] == [0, 8]
    assert all(len(row["psnr"][held_out.MODEL]) == 2 for row in rows)


def test_data_of_ones_own_has_no_revisits(folder, tmp_path):
    config = run_config.load(folder)
    config.data.recording.source = ""
    clone = tmp_path / "own"
    clone.mkdir()
    for part in folder.iterdir():
        (clone / part.name).symlink_to(part)
    (clone / run_config.FILE_NAME).unlink()
    run_config.save(config, clone)
    # A key that the saved config does not list.
    assert "context_time" not in config.sample.rollout
    changes = ("--config.sample.rollout.num_steps=1", "--config.sample.rollout.context_time=7")
    evaluate.main([f"--checkpoint={clone}", "--windows=1", "--chunks=2", f"--output={tmp_path / 'out'}", *changes])
    numbers = json.loads((tmp_path / "out" / FILES[0]).read_text())
    rollout = numbers["config"]["sample"]["rollout"]
    assert (rollout["num_steps"], rollout["context_time"]) == (1, 7.0)
    assert all(values == {} for values in numbers["revisit_psnr"].values())
    assert numbers["still_psnr_per_chunk"] == []
    assert numbers["windows"] == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--episodes=absent"], "python scripts/record_episodes.py --source rooms --episodes 8 --frames 61"),
        (["--records=absent"], "absent"),
        (["--chunks=9"], "expected at least 36"),
        (["--config.sample.rollout.num_step=1"], "this config has no such key; did you mean 'num_steps'?"),
        (
            ["--config.sample.rollout.num_steps=0"],
            "config.sample.rollout.num_steps: expected an integer from 1 to 1000, got '0'",
        ),
    ],
)
def test_missing_data_ends_with_one_sentence(folder, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([f"--checkpoint={folder}", f"--output={tmp_path / 'out'}", *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_number_and_help(capsys):
    for arguments, code, part in ((["--checkpoint=x", "--windows=0"], 2, "'0'"), (["--help"], 0, "--revisits")):
        with pytest.raises(SystemExit) as exit_:
            evaluate.main(arguments)
        assert exit_.value.code == code
        captured = capsys.readouterr()
        assert part in captured.out + captured.err


def test_unwritable_output_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    report = results.Report(numbers={}, curves={"model": [1.0]}, bars={}, bars_title="", summary=[], rollouts=[])
    with pytest.raises(UserError, match="give another --output"):
        evaluate.write(tmp_path / "file", {"checkpoint": "runs/x", "step": 1}, report)


@pytest.mark.parametrize("angle, turns, back", [(90, 11, 11), (180, 22, 22), (360, 45, 0)])
@pytest.mark.parametrize("chunk", [3, 4])
def test_paths_that_come_back(angle, turns, back, chunk):
    script = scripted.revisit_script(angle, chunk)
    assert (len(script) + 1) % chunk == 0
    assert (script.count("yaw_right"), script.count("yaw_left")) == (turns, back)
    waiting = script[turns : len(script) - back]
    assert set(waiting) <= {"none"}
    assert len(waiting) <= chunk
    assert waiting or not back


def test_too_large_angles_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([f"--checkpoint={folder}", "--angles", "90", "361"])
    assert "--angles: found 361, expected at most 360 degrees" in capsys.readouterr().err


def test_measures_that_are_not_finite_are_named_and_not_written(tmp_path: pathlib.Path) -> None:
    report = results.Report(numbers={}, summary=[], curves={"model": [1.0]})
    numbers = {"checkpoint": "a", "step": 1, "psnr": {"model": [20.0, float("nan")]}}
    with pytest.raises(UserError, match=r"^psnr\.model\.1 is not finite, so nothing is written"):
        evaluate.write(tmp_path / "out", numbers, report)
    assert not (tmp_path / "out").exists()
