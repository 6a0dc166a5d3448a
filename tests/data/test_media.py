"""The reader of first images and start videos: last frames by time stamps, in the memory of the result."""

import resource

import numpy as np
import PIL.Image
import pytest
import tiny_videos

from jworld.data import media
from jworld.data.inputs import video
from jworld.utils.errors import UserError

numbers = tiny_videos.numbers


@pytest.mark.parametrize("name", ["a.mp4", "A.MP4", "a.mov", "B.MOV", "a.mkv", "a.webm", "c.WEBM", "a.m4v", "a.avi"])
def test_the_last_frames_of_every_container(tmp_path, name):
    path = tmp_path / name
    made = path.with_name(f"made{path.suffix.lower()}")
    tiny_videos.write(made)
    made.rename(path)
    assert numbers(media.read_start(path)) == list(range(30))
    assert numbers(media.read_start(path, frames=5)) == [25, 26, 27, 28, 29]


def test_the_frame_rate_of_the_model(tmp_path):
    """Frames are counted back from the last one, at the model's frame rate."""
    tiny_videos.write(tmp_path / "a.mp4", fps=30)
    assert numbers(media.read_start(tmp_path / "a.mp4", frames=4, fps=15)) == [23, 25, 27, 29]
    # 16 frames per second: 1.875 frames apart.
    assert numbers(media.read_start(tmp_path / "a.mp4", frames=5, fps=16)) == [21, 23, 25, 27, 29]
    assert numbers(media.read_start(tmp_path / "a.mp4", fps=10)) == [2, 5, 8, 11, 14, 17, 20, 23, 26, 29]
    assert len(media.read_start(tmp_path / "a.mp4", frames=100, fps=10)) == 10
    # A lower rate than the model's repeats frames; the same rate takes every frame.
    assert numbers(media.read_start(tmp_path / "a.mp4", frames=4, fps=60)) == [27, 28, 28, 29]
    assert numbers(media.read_start(tmp_path / "a.mp4", frames=3, fps=29.97)) == [27, 28, 29]


def test_a_variable_frame_rate(tmp_path):
    """Ten frames per second, then from frame 20 on five per second."""
    slow = "settb=1/1000,setpts='if(lt(N,20),N*0.1,2+(N-20)*0.2)/TB'"
    tiny_videos.write(tmp_path / "a.mkv", options=("-vf", slow, "-fps_mode", "passthrough"))
    assert numbers(media.read_start(tmp_path / "a.mkv", frames=5, fps=5)) == [25, 26, 27, 28, 29]
    assert numbers(media.read_start(tmp_path / "a.mkv", frames=13, fps=5)) == [14, 16, 18, *range(20, 30)]
    assert numbers(media.read_start(tmp_path / "a.mkv", frames=5, fps=10)) == [27, 27, 28, 28, 29]


def test_animations_are_start_videos(tmp_path):
    frames = [PIL.Image.fromarray(frame) for frame in tiny_videos.numbered(6)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert numbers(media.read_start(tmp_path / name, frames=2, fps=5)) == [3, 5]
        frames[0].save(tmp_path / f"still-{name}", lossless=True)
        assert media.read_start(tmp_path / f"still-{name}").shape == (24, 32, 3)


def test_transparent_videos_are_over_black(tmp_path):
    rgba = np.full((3, 24, 32, 4), 200, np.uint8)
    rgba[:, :, :16, 3], rgba[:, :, 16:, 3] = 0, 255
    source = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "32x24", "-r", "10", "-i", "-")
    tiny_videos.ffmpeg(*source, "-c:v", "qtrle", "-pix_fmt", "argb", str(tmp_path / "a.mov"), data=rgba.tobytes())
    frames = media.read_start(tmp_path / "a.mov")
    assert frames[:, :, :16].max() == 0
    assert frames[:, :, 16:].min() >= 199


def test_a_turned_camera(tmp_path):
    tiny_videos.write(tmp_path / "a.mp4")
    tiny_videos.ffmpeg("-display_rotation", "90", "-i", str(tmp_path / "a.mp4"), "-c", "copy", str(tmp_path / "b.mp4"))
    assert media.read_start(tmp_path / "b.mp4", frames=1).shape == (1, 32, 24, 3)


def test_long_videos_are_decoded_from_shortly_before_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "WHOLE_SECONDS", 5.0)
    path = tmp_path / "a.mp4"
    tiny_videos.write(path, tiny_videos.numbered(256), options=("-g", "20"))
    assert len(video.open_end(path, 1.0).times) < 60
    assert numbers(media.read_start(path, frames=6, fps=5)) == [number % 32 for number in range(245, 256, 2)]
    # An audio track that outlasts the frames moves the end of the file.
    tone = ("-f", "lavfi", "-i", "sine=duration=40")
    tiny_videos.ffmpeg("-i", str(path), *tone, "-map", "0:v", "-map", "1:a", "-c:v", "copy", str(tmp_path / "b.mp4"))
    assert numbers(media.read_start(tmp_path / "b.mp4", frames=3, fps=5)) == [number % 32 for number in (251, 253, 255)]
    # A part near the end is missing.
    tiny_videos.ffmpeg("-i", str(path), "-c", "copy", "-movflags", "faststart", str(tmp_path / "c.mp4"))
    data = (tmp_path / "c.mp4").read_bytes()
    (tmp_path / "c.mp4").write_bytes(data[: int(0.9 * len(data))])
    with pytest.raises(UserError, match=r"--image .*c\.mp4 cannot be read: (is damaged|decodes to)"):
        media.read_start(tmp_path / "c.mp4", frames=3, fps=5)


def test_only_the_result_is_in_memory(tmp_path):
    """600 frames of 640x480 are 553 MB; the last 5 are 5 MB."""
    tiny_videos.write(tmp_path / "a.mp4", fps=25, options=("-vf", "loop=20:30,scale=640:480", "-t", "24"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frames = media.read_start(tmp_path / "a.mp4", frames=5, fps=16)
    assert frames.shape == (5, 480, 640, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (30, 24, 32, 3)).astype(np.uint8)
    tiny_videos.write(path, noise)
    data = path.read_bytes()
    for start, stop in ((0.4, 0.6), (0.6, 1.0)):
        damaged = bytearray(data)
        first, last = int(start * len(data)), int(stop * len(data))
        damaged[first:last] = bytes(last - first) if stop < 1 else b""
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError, match=r"--start .*a\.mp4 cannot be read: is damaged.* give an image \("):
            media.read_start(path, "--start", frames=5, fps=16)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"a\.mp4 cannot be read: is a Git LFS pointer"):
        media.read_start(path)
    (tmp_path / "a.txt").write_text("text")
    for name in ("a.txt", "none.png", "."):
        with pytest.raises(UserError, match="cannot be read"):
            media.read_start(tmp_path / name)
        with pytest.raises(UserError, match=r"--image .* cannot be read"):
            media.read_image(tmp_path / name)
