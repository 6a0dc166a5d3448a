"""Streaming videos: readable while they are written, complete, and failures are reported."""

import pathlib
import time

import numpy as np
import pytest

from jworld.data import video_stream
from jworld.data.inputs import video
from jworld.data.recording import episodes
from jworld.utils import errors


def smooth_frames(count: int) -> np.ndarray:
    """Make a moving gradient, uint8 [T, 32, 48, 3]."""
    rows, columns = np.mgrid[:32, :48]
    return np.stack([np.stack([columns + 5 * t, 4 * rows, 0 * rows + 90], axis=-1) for t in range(count)]).astype(
        np.uint8
    )


def test_frames_are_readable_during_writing(tmp_path: pathlib.Path) -> None:
    frames, path = smooth_frames(40), tmp_path / "out.mp4"
    with video_stream.VideoStream(path, fps=16) as stream:
        stream.write(frames[:17])
        deadline = time.monotonic() + 20
        while not path.is_file() or path.stat().st_size < 1000 or len(episodes.read_video(path)) < 16:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stream.write(frames[17:])
    video = episodes.read_video(path)
    assert video.shape == frames.shape
    errors_per_frame = np.abs(video.astype(int) - frames).mean(axis=(1, 2, 3))
    assert errors_per_frame.max() < 4
    # Frames are in order: each is closer to its original than to the neighbor.
    assert np.abs(video[1:].astype(int) - frames[:-1]).mean() > 1.5 * errors_per_frame.mean()


def test_written_frames_survive_a_failure(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out.mp4"

    def fail() -> None:
        with video_stream.VideoStream(path, fps=16) as stream:
            stream.write(smooth_frames(9))
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        fail()
    assert len(episodes.read_video(path)) == 9


def test_an_unwritable_path_is_reported(tmp_path: pathlib.Path) -> None:
    with video_stream.VideoStream(tmp_path / "missing" / "out.mp4", fps=16) as stream:
        stream.write(smooth_frames(1))
        with pytest.raises(errors.UserError, match=r"could not be written \(.*No such file.*give another name"):
            stream.close()


def test_without_frames_there_is_no_file(tmp_path: pathlib.Path) -> None:
    with video_stream.VideoStream(tmp_path / "out.mp4", fps=16):
        pass
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a:b.mp4", "-y.mp4", "http:%2d.mp4"])
def test_names_are_names_of_files(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    frames, path = smooth_frames(3), pathlib.Path(name)
    with video_stream.VideoStream(path, fps=16) as stream:
        stream.write(frames)
    assert len(episodes.read_video(path)) == 3
    episodes.write_video(path, frames, fps=16)
    assert video.open_video(path).size == (48, 32)
    assert [found.name for found in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("content", ["ffconcat version 1.0\nfile other.mp4\n", "#EXTM3U\n#EXTINF:1,\nother.mp4\n"])
def test_a_video_names_no_other_file(tmp_path: pathlib.Path, content: str) -> None:
    episodes.write_video(tmp_path / "other.mp4", smooth_frames(3), fps=16)
    (tmp_path / "a.mp4").write_text(content)
    with pytest.raises(errors.UserError, match=r"a\.mp4 is damaged or not a video"):
        video.open_video(tmp_path / "a.mp4")
    with pytest.raises(errors.UserError, match=r"a\.mp4 is not a readable video"):
        episodes.read_video(tmp_path / "a.mp4")
