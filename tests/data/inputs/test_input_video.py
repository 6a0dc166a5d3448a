"""Videos as streams: every container, and detection of damage before any frame is used."""

import itertools
import subprocess

import numpy as np
import PIL.Image
import pytest
import tiny_videos

from jworld.data.inputs import video
from jworld.utils.errors import UserError


@pytest.mark.parametrize("suffix", video.VIDEO_SUFFIXES)
def test_all_frames_and_times_of_every_container(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    tiny_videos.write(path)
    opened = video.open_video(path)
    frames = list(opened.frames())
    assert tiny_videos.numbers(frames) == list(range(30))
    assert opened.size == (32, 24)
    assert frames[0].shape == (24, 32, 3)
    assert frames[0].dtype == np.uint8
    np.testing.assert_allclose(opened.times, np.arange(30) / 10, atol=1e-3)
    assert video.rate(opened) == pytest.approx(10, rel=1e-3)


def test_an_audio_track_may_be_longer_than_the_video(tmp_path):
    path = tmp_path / "a.mp4"
    tiny_videos.write(path)
    with_sound = tmp_path / "b.mp4"
    tone = ("-f", "lavfi", "-i", "sine=duration=5")
    tiny_videos.ffmpeg("-i", str(path), *tone, "-map", "0:v", "-map", "1:a", "-c:v", "copy", str(with_sound))
    assert tiny_videos.numbers(video.open_video(with_sound).frames()) == list(range(30))


def test_frames_hidden_by_a_cut_without_encoding_are_not_counted(tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    tiny_videos.write(whole, options=("-g", "10"))
    tiny_videos.ffmpeg("-ss", "1.5", "-i", str(whole), "-c", "copy", str(cut))
    opened = video.open_video(cut)
    assert tiny_videos.numbers(opened.frames()) == list(range(15, 30))
    assert len(opened.times) == 15


def test_times_of_a_variable_rate(tmp_path):
    path = tmp_path / "a.mkv"
    late = "setpts='PTS+gte(N,20)*0.5/TB'"
    tiny_videos.write(path, options=("-vf", late, "-fps_mode", "passthrough"))
    times = video.open_video(path).times
    np.testing.assert_allclose(times, np.arange(30) / 10 + 0.5 * (np.arange(30) >= 20), atol=1e-3)


@pytest.mark.parametrize(
    "suffix, options, share",
    [
        (".mp4", (), 0.6),
        (".mp4", ("-movflags", "faststart"), 0.8),
        (".mp4", ("-movflags", "faststart"), 0.98),
        (".mkv", (), 0.6),
        (".webm", (), 0.97),
    ],
)
def test_truncated_files_are_refused(tmp_path, suffix, options, share):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (30, 24, 32, 3)).astype(np.uint8)
    tiny_videos.write(path, noise, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=rf"a\{suffix} (is damaged|decodes to \d+ frames .* expected 3\.00 s as in)"):
        video.open_video(path)


def test_missing_packets_are_found_by_the_duration_in_the_header(tmp_path, monkeypatch):
    """A file truncated exactly between two packets differs only in the duration of its header."""
    path = tmp_path / "a.mkv"
    tiny_videos.write(path)
    run = subprocess.run

    def without_last_frames(command, **options):
        done = run(command, **options)
        lines = done.stdout.splitlines(keepends=True)
        return subprocess.CompletedProcess(command, 0, b"".join(lines[:-3]), done.stderr)

    monkeypatch.setattr(video.subprocess, "run", without_last_frames)
    with pytest.raises(UserError, match=r"decodes to 27 frames \(2\.70 s\), expected 3\.00 s as in its header"):
        video.open_video(path)


def test_damage_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (30, 24, 32, 3)).astype(np.uint8)
    tiny_videos.write(path, noise)
    data = bytearray(path.read_bytes())
    begin, end = len(data) * 2 // 5, len(data) * 3 // 5
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.mp4 is damaged or not a video: \d+ frames decode"):
        video.open_video(path)


def test_invalid_videos_are_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(UserError, match=r"a\.mp4 is absent"):
        video.open_video(path)
    path.write_text("not a video")
    with pytest.raises(UserError, match=r"a\.mp4 is damaged or not a video: 0 frames decode"):
        video.open_video(path)
    tiny_videos.write(path, tiny_videos.numbered(1))
    with pytest.raises(UserError, match="holds 1 frames, expected a video of at least 2"):
        video.open_video(path)


def test_the_decoder_ends_when_the_reader_stops_early(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    tiny_videos.write(path, tiny_videos.numbered(120, width=320, height=240))  # more than a pipe holds
    opened = video.open_video(path)
    started = []
    popen = subprocess.Popen

    def remember(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(video.subprocess, "Popen", remember)
    frames = opened.frames()
    assert tiny_videos.numbers(itertools.islice(frames, 2)) == [0, 1]
    assert started[0].poll() is None
    frames.close()
    assert started[0].poll() is not None


def write_images(folder, frames, suffix=".png") -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(folder / f"frame_{index}{suffix}")


def test_images_are_in_the_order_of_their_numbers(tmp_path):
    write_images(tmp_path / "a", tiny_videos.numbered(12))
    opened = video.open_video(tmp_path / "a", frames_fps=4)
    assert tiny_videos.numbers(opened.frames()) == list(range(12))
    np.testing.assert_allclose(opened.times, np.arange(12) / 4)
    assert opened.size == (32, 24)


def test_folders_of_images_that_are_refused(tmp_path):
    folder = tmp_path / "a"
    write_images(folder, tiny_videos.numbered(3))
    with pytest.raises(UserError, match=r"without time stamps .*--frames-fps"):
        video.open_video(folder)
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "frame_1.png")
    with pytest.raises(UserError, match=r"frame_1\.png: a frame has 8x8 pixels, the first one has 32x24"):
        list(video.open_video(folder, frames_fps=4).frames())
    (folder / "frame_1.png").write_bytes((folder / "frame_2.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"frame_1\.png is not a readable image"):
        list(video.open_video(folder, frames_fps=4).frames())
