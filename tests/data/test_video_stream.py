"""A video that grows: it can be read while it is written, holds every frame, and failures are told."""

import pathlib
import time

import numpy as np
import pytest

from jworld.data import video_stream
from jworld.data.recording import episodes
from jworld.utils import errors


def smooth_frames(count: int) -> np.ndarray:
    """uint8 [T, 32, 48, 3]: a slope that moves."""
    rows, columns = np.mgrid[:32, :48]
    return np.stack([np.stack([columns + 5 * t, 4 * rows, 0 * rows + 90], axis=-1) for t in range(count)]).astype(
        np.uint8
    )


def test_frames_can_be_seen_while_others_are_made(tmp_path: pathlib.Path) -> None:
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
    # Every frame stands where it was given: its neighbour is further away.
    assert np.abs(video[1:].astype(int) - frames[:-1]).mean() > 1.5 * errors_per_frame.mean()


def test_what_was_written_stays_when_the_rest_fails(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out.mp4"

    def fail() -> None:
        with video_stream.VideoStream(path, fps=16) as stream:
            stream.write(smooth_frames(9))
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        fail()
    assert len(episodes.read_video(path)) == 9


def test_a_place_that_cannot_be_written_is_told(tmp_path: pathlib.Path) -> None:
    with video_stream.VideoStream(tmp_path / "missing" / "out.mp4", fps=16) as stream:
        stream.write(smooth_frames(1))
        with pytest.raises(errors.UserError, match=r"could not be written \(.*No such file.*give another name"):
            stream.close()


def test_without_frames_there_is_no_file(tmp_path: pathlib.Path) -> None:
    with video_stream.VideoStream(tmp_path / "out.mp4", fps=16):
        pass
    assert not any(tmp_path.iterdir())
