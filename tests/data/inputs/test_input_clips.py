"""Uniform clips: choice of frames, cutting, cameras after a crop, and memory."""

import json
import pathlib
import tracemalloc

import numpy as np
import pytest
import tiny_videos

from jworld.data.inputs import clips, fitting, items
from jworld.utils.errors import UserError

FIT = fitting.Fit(width=16, height=12, mode="stretch", resampling="area")


class Timed:
    """Video with time stamps and no frames."""

    path = pathlib.Path("a.mp4")
    size = (4, 4)

    def __init__(self, times) -> None:
        self.times = np.asarray(times, np.float64)

    def frames(self):
        yield from ()


def steady(fps: float, frames: int) -> Timed:
    return Timed(np.arange(frames) / fps)


@pytest.mark.parametrize(
    "source_fps, fps, expected",
    [
        (30, 10, [0, 3, 6, 9, 12, 15, 18]),
        (30, 20, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18]),  # the earlier one of two equally near frames
        (25, 24, [*range(13), *range(14, 20)]),
        (24000 / 1001, 24, list(range(20))),
        (24, 24000 / 1001, list(range(20))),
        (24, None, list(range(20))),
    ],
)
def test_frames_nearest_in_time(source_fps, fps, expected):
    assert clips.pick_frames(steady(source_fps, 20), fps=fps).tolist() == expected


def test_frames_nearest_in_time_of_uneven_stamps():
    rng = np.random.default_rng(0)
    source = Timed(np.concatenate([[0], np.cumsum(rng.uniform(0.02, 0.05, 200))]))
    targets = np.arange(int(source.times[-1] * 8) + 1) / 8
    nearest = [int(np.argmin(np.abs(source.times - time))) for time in targets]
    assert clips.pick_frames(source, fps=8).tolist() == nearest


def test_ties_go_to_the_earlier_frame():
    picked = clips.pick_frames(steady(30, 9001), fps=20)
    np.testing.assert_array_equal(picked, np.arange(6001) * 3 // 2)


def test_time_stamps_that_jump_far():
    # Read as they are, these two frames would become 24 billion.
    with pytest.raises(UserError, match=r"has 1e\+09 s by its time stamps, 24,000,000,001 frames at 24 frames/s"):
        clips.pick_frames(Timed([0, 1e9]), fps=24, repeat=True)


def test_time_starts_at_the_first_frame():
    assert clips.pick_frames(steady(30, 14), fps=10, first=4).tolist() == [4, 7, 10, 13]
    assert clips.pick_frames(steady(30, 14), fps=None, first=12).tolist() == [12, 13]
    assert clips.pick_frames(steady(30, 14), fps=10, first=14).tolist() == []


def test_frames_are_repeated_only_on_request():
    with pytest.raises(UserError, match=r"a\.mp4 has 8 frames/s .* at 16 frames/s 9 of 19 frames .*--repeat-frames"):
        clips.pick_frames(steady(8, 10), fps=16)
    picked = clips.pick_frames(steady(8, 10), fps=16, repeat=True)
    assert picked.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9]
    frozen = Timed([*np.arange(10) / 10, *(3 + np.arange(10) / 10)])
    with pytest.raises(UserError, match=r"gaps of up to 2\.1 s"):
        clips.pick_frames(frozen, fps=10)


def config(**options) -> clips.CutConfig:
    return clips.CutConfig(**{"fit": FIT, "frames": 9, **options})


@pytest.fixture(scope="module")
def video_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    tiny_videos.write(path)
    return path


def item(path, **facts) -> items.Item:
    return items.Item(**{"name": "a", "video": path, "split": "train", "caption": "gray", **facts})


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {0: range(9), 9: range(9, 18), 18: range(18, 27)}),
        ({"remainder": "shift"}, {0: range(9), 9: range(9, 18), 18: range(18, 27), 21: range(21, 30)}),
        ({"stride": 6}, {0: range(9), 6: range(6, 15), 12: range(12, 21), 18: range(18, 27)}),
        ({"stride": 12}, {0: range(9), 12: range(12, 21)}),
        ({"stride": 2, "frames": 25}, {0: range(25), 2: range(2, 27), 4: range(4, 29)}),
        ({"frames": None}, {0: range(29)}),
        ({"frames": None, "temporal_ratio": 1}, {0: range(30)}),
        ({"fps": 5, "frames": 5}, {0: range(0, 10, 2), 5: range(10, 20, 2), 10: range(20, 30, 2)}),
        ({"fps": 5, "frames": 5, "remainder": "shift"}, {k: range(2 * k, 2 * k + 10, 2) for k in (0, 5, 10)}),
    ],
)
def test_cutting(video_file, options, expected):
    found = list(clips.read_clips(item(video_file), config(**options)))
    assert {clip.start: tiny_videos.numbers(clip.frames) for clip in found} == {k: list(v) for k, v in expected.items()}
    assert [clip.name for clip in found] == [f"a@{start:06d}" for start in expected]
    for clip in found:
        assert clip.frames.shape[1:] == (12, 16, 3)
        assert clip.frames.dtype == np.uint8
        assert clip.fps == pytest.approx(options.get("fps", 10), rel=1e-6)
        assert (clip.item, clip.split, clip.caption, clip.controls) == ("a", "train", "gray", None)


def test_tracks_follow_the_picked_frames(video_file):
    w2c = np.tile(np.eye(4), (30, 1, 1))
    w2c[:, 2, 3] = np.arange(30)
    words = tuple(f"word {t}" for t in range(30))
    tracks = items.Tracks(w2c=w2c, controls=items.Controls(words))
    source = item(video_file, first_frame=3, read_tracks=lambda frames: tracks)
    for clip in clips.read_clips(source, config(fps=5, frames=5)):
        shown = tiny_videos.numbers(clip.frames)
        assert shown == list(range(3 + 2 * clip.start, 13 + 2 * clip.start, 2))
        assert clip.w2c[:, 2, 3].tolist() == shown
        assert clip.controls == items.Controls(tuple(f"word {t}" for t in shown))


def test_overlapping_clips_do_not_share_memory(video_file):
    first, second = list(clips.read_clips(item(video_file), config(stride=4, frames=21)))[:2]
    second.frames[:] = 0
    assert tiny_videos.numbers(first.frames) == list(range(21))


def peak_bytes(path, cut: clips.CutConfig) -> int:
    tracemalloc.start()
    try:
        for clip in clips.read_clips(item(path), cut):
            assert clip.frames.any()
            del clip
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("stride", [9, 5])
def test_memory_does_not_grow_with_the_video(tmp_path, stride):
    frames = np.full((33, 48, 64, 3), 60, np.uint8)
    tiny_videos.write(tmp_path / "short.mp4", frames)
    tiny_videos.write(tmp_path / "long.mp4", np.tile(frames, (6, 1, 1, 1)))
    cut = config(fit=fitting.Fit(width=64, height=48), stride=stride)
    short, long = (peak_bytes(tmp_path / name, cut) for name in ("short.mp4", "long.mp4"))
    clip_bytes = 9 * 48 * 64 * 3
    assert long < 1.1 * short
    assert long < (1 if stride == 9 else 2) * clip_bytes + 12 * 48 * 64 * 3


def test_unusable_videos_are_refused(video_file, tmp_path):
    with pytest.raises(UserError, match=r"a\.mp4 has 30 frames, 30 of them .* 10 frames/s, a clip needs 33"):
        list(clips.read_clips(item(video_file), config(frames=33)))
    with pytest.raises(UserError, match="2 of them from frame 28 on"):
        list(clips.read_clips(item(video_file, first_frame=28), config(frames=None)))
    with pytest.raises(UserError, match="two names"):
        list(clips.read_clips(item(video_file, problem="two names"), config()))
    with pytest.raises(ValueError, match="no split"):
        list(clips.read_clips(item(video_file, split=None), config()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frames": 16}, r"16 frames, expected 4k\+1: give --frames 13 or 17"),
        ({"frames": 1}, r"1 frames, expected 4k\+1: give --frames 5 or 9"),
        ({"stride": 0}, "stride is 0"),
        ({"frames": None, "stride": 4}, "give --frames"),
        ({"fps": 0}, "frame rate is 0"),
        ({"remainder": "keep"}, "remainder is 'keep'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)


def test_manifest_entry_is_json():
    entry = json.loads(json.dumps(config(fps=16, stride=5).manifest_entry()))
    assert entry["fit"] == {"width": 16, "height": 12, "mode": "stretch", "resampling": "area"}
    assert (entry["fps"], entry["frames"], entry["stride"], entry["remainder"]) == (16, 9, 5, "drop")


@pytest.mark.parametrize(
    "size, scaled",
    [((64, 32), (48, 24)), ((32, 64), (36, 72)), ((37, 25), (36, 24)), ((20, 40), (36, 72)), ((36, 24), (36, 24))],
)
def test_crop_covers_the_whole_image(size, scaled):
    fit = fitting.Fit(width=36, height=24)
    assert fit.scaled(size) == scaled
    frame = np.full((size[1], size[0], 3), 77, np.uint8)
    assert (fit.frame(frame) == 77).all()
    assert fit.frame(frame).shape == (24, 36, 3)


def test_crop_is_centered():
    frame = np.zeros((24, 60, 3), np.uint8)
    frame[:, :12], frame[:, 12:48], frame[:, 48:] = 10, 100, 200
    assert (fitting.Fit(width=36, height=24).frame(frame) == 100).all()


@pytest.mark.parametrize("resampling", fitting.RESAMPLINGS)
@pytest.mark.parametrize("mode", fitting.MODES)
def test_intrinsics_match_the_fitted_image(mode, resampling):
    """The new intrinsics project a point to the bright ball that was drawn at its position before the fit."""
    width, height = 160, 90
    point = np.array([0.3, -0.2, 2.0])  # to the right of the optical axis and above it
    pixels = np.array([[110.0, 0, 84.0], [0, 120.0, 43.0], [0, 0, 1]])
    u, v, depth = pixels @ point
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ball = 255 * np.exp(-((x - u / depth) ** 2 + (y - v / depth) ** 2) / (2 * 4.0**2))
    frame = np.repeat(np.rint(ball)[..., None], 3, -1).astype(np.uint8)

    fit = fitting.Fit(width=50, height=62, mode=mode, resampling=resampling)
    fitted = fit.frame(frame)[..., 0].astype(np.float64)
    assert fitted.shape == (62, 50)
    relative = np.diag([1 / width, 1 / height, 1]) @ pixels
    found = fit.intrinsics(relative, (width, height))
    expected = found @ point / depth * [50, 62, 1]
    rows, columns = np.indices(fitted.shape) + 0.5
    centroid = [(columns * fitted).sum() / fitted.sum(), (rows * fitted).sum() / fitted.sum()]
    np.testing.assert_allclose(centroid, expected[:2], atol=0.15)
    if mode == "stretch":
        np.testing.assert_array_equal(found, relative)
    else:
        np.testing.assert_allclose(found[0, 0] / found[1, 1] * 50 / 62, 110 / 120, rtol=0.02)


def test_wrong_fit():
    with pytest.raises(UserError, match="size is 0x8"):
        fitting.Fit(width=0, height=8)
    with pytest.raises(UserError, match="mode is 'pad'"):
        fitting.Fit(width=8, height=8, mode="pad")
    with pytest.raises(UserError, match="resampling is 'nearest'"):
        fitting.Fit(width=8, height=8, resampling="nearest")
