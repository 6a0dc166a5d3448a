"""Rollouts compared with recordings: controls of an episode, scripts, chunks, images, and samples of a run."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import tiny_run

from jworld.cameras import actions, pose_strings
from jworld.data import records
from jworld.data.recording import episodes
from jworld.evaluation import contact_sheets, held_out, results, samples
from jworld.systems import runs
from jworld.systems.worldplay import rollout
from jworld.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.getbasetemp() / "tiny_run")


@pytest.fixture(scope="module")
def run(folder):
    return runs.load(folder)


@pytest.fixture(scope="module")
def session(run):
    return run.system.session(run.model, run.encoders)


@pytest.fixture(scope="module")
def clip(run):
    return held_out.from_episode(
        episodes.read_episode(run.config.data.recording.directory, "episode_00007"), run.encoders
    )


def test_script_is_parsed_in_order():
    assert rollout.parse_script("forward*2, forward+yaw_left,none*4", chunk_frames=4) == [
        *["forward"] * 2,
        "forward+yaw_left",
        *["none"] * 4,
    ]


@pytest.mark.parametrize(
    "script, action", [("jump*3", "yaw_right"), ("forward*x", "forward"), ("forward*0", "forward"), ("", "none")]
)
def test_script_with_a_bad_token_is_refused_with_the_allowed_actions(script, action):
    with pytest.raises(UserError, match=rf"config\.sample\.actions: found .*{action}"):
        rollout.parse_script(script, chunk_frames=4)


def test_script_must_fill_whole_chunks():
    with pytest.raises(UserError, match="add 3 latents"):
        rollout.parse_script("forward*4", chunk_frames=4)


def test_chunks_cover_every_frame_once():
    assert held_out.chunk_frames(12, 4) == [(0, 13), (13, 29), (29, 45)]


def test_window_starts_at_its_first_camera(clip):
    part = held_out.window(clip, start=5, latents=8)
    np.testing.assert_array_equal(part.frames, clip.frames[20:49])
    np.testing.assert_allclose(part.controls.w2c[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(
        part.controls.w2c[3] @ np.linalg.inv(part.controls.w2c[2]),
        clip.controls.w2c[8] @ np.linalg.inv(clip.controls.w2c[7]),
        atol=1e-5,
    )
    assert part.controls.action[0] == 0
    np.testing.assert_array_equal(part.controls.action[1:], clip.controls.action[6:13])


def test_clip_of_an_episode_equals_its_record(run, clip):
    source = records.RecordSource(run.config.data.records, "val")
    coded = held_out.from_record(source, 0, run.encoders)
    assert coded.name == clip.name
    assert coded.prompt == clip.prompt
    assert coded.frames.shape == clip.frames.shape
    np.testing.assert_array_equal(coded.controls.action, clip.controls.action)
    np.testing.assert_allclose(coded.controls.w2c, clip.controls.w2c, atol=1e-6)
    np.testing.assert_allclose(coded.controls.intrinsics, clip.controls.intrinsics, atol=1e-6)
    assert held_out.psnr(clip.frames, coded.frames) > 18


def test_labels_of_a_clip_are_the_recorded_actions(run, clip):
    recorded = episodes.read_episode(run.config.data.recording.directory, "episode_00007").actions[:: held_out.STRIDE]
    assert [set(actions.label_name(label).split("+")) for label in clip.controls.action] == [
        set(action.split("+")) for action in recorded
    ]


def test_rollout_is_repeatable_and_depends_on_the_controls(session, clip):
    part = held_out.window(clip, start=0, latents=8)
    first, again, mirrored = (
        rollout.roll_out(session, part, controls, seed=3)
        for controls in (part.controls, part.controls, rollout.swapped(part.controls))
    )
    assert first.shape == part.frames.shape == (29, 24, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != mirrored).any()


def test_held_keys_equal_a_pose_string(session, clip):
    path = pose_strings.path("w+right-7", session.units)
    controls = rollout.Controls(path.action, path.w2c, path.intrinsics)
    expected = rollout.roll_out(session, clip, controls, seed=3)
    session.reset(clip.frames[0], clip.prompt, seed=3)
    np.testing.assert_array_equal(np.concatenate([session.step("w+right") for _ in range(2)]), expected)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (90, 64), (48, 100), (240, 320)])
def test_first_images_are_scaled_and_then_cropped_as_in_data_sets(run, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fit = dataclasses.replace(run.encoders.fit, mode="crop")
    np.testing.assert_array_equal(run.encoders.resize(image), fit.frame(image))
    latent, _ = run.encoders.image(image)
    np.testing.assert_array_equal(latent, run.encoders.autoencoder.encode(fit.frame(image)[None, None])[0])


def test_rollout_needs_whole_chunks(session, clip):
    part = held_out.window(clip, start=0, latents=7)
    with pytest.raises(ValueError, match="7 latents"):
        rollout.roll_out(session, part, part.controls, seed=0)


def test_chunk_psnr_of_known_errors():
    truth = np.full((29, 4, 4, 3), 100, np.uint8)
    prediction = truth.copy()
    prediction[0] = 0  # given, so not counted
    prediction[13:] = 110
    perfect, off_by_ten = held_out.chunk_psnr(truth, prediction, 4)
    assert perfect == held_out.BEST_PSNR
    assert off_by_ten == pytest.approx(20 * np.log10(25.5), abs=1e-6)


def test_chunks_are_named_by_their_actions(clip):
    labels = [actions.label_from_name(name) for name in ("none", *["forward"] * 4, *["yaw_right"] * 3)]
    part = held_out.window(clip, start=0, latents=8)
    part = dataclasses.replace(part, controls=part.controls._replace(action=np.array(labels)))
    comparison = rollout.compare(part, part.frames, 4)
    assert [chunk.action for chunk in comparison.chunks] == ["forward", "forward, yaw_right"]


def make_comparison(chunks: int) -> results.Comparison:
    spans = held_out.chunk_frames(4 * chunks, 4)
    frames = np.zeros((spans[-1][1], 48, 64, 3), np.uint8)
    return results.Comparison(
        title="title",
        truth=frames,
        prediction=frames + np.uint8(255),
        chunks=[results.Chunk(start=start, stop=stop, action="forward", psnr=9.0) for start, stop in spans],
    )


def test_sheet_wraps_long_rollouts():
    short, long = (np.asarray(contact_sheets.contact_sheet([make_comparison(chunks)])) for chunks in (4, 6))
    assert short.shape[1] == long.shape[1]
    assert short.shape[0] - contact_sheets.LINE == (long.shape[0] - contact_sheets.LINE) / 2
    # 16 images of twice the size, predicted all white.
    assert (short == 255).all(axis=-1).sum() == 16 * 96 * 128


def test_sheet_of_a_generated_video_has_one_strip_in_each_row():
    both = make_comparison(4)
    alone = dataclasses.replace(both, truth=None, chunks=[dataclasses.replace(x, psnr=None) for x in both.chunks])
    short, tall = (np.asarray(contact_sheets.contact_sheet([comparison])) for comparison in (alone, both))
    assert short.shape == (tall.shape[0] - 96, *tall.shape[1:])
    assert (short == 255).all(axis=-1).sum() == 16 * 96 * 128


def test_sheet_downscales_large_images():
    frames = np.full((13, 480, 832, 3), 255, np.uint8)
    chunk = results.Chunk(start=0, stop=13, action="forward")
    sheet = np.asarray(contact_sheets.contact_sheet([results.Comparison(title="", prediction=frames, chunks=[chunk])]))
    assert (sheet == 255).all(axis=-1).sum() == 4 * 224 * 129


def test_video_has_even_size_and_both_halves():
    frames = contact_sheets.video(make_comparison(1))
    assert frames.shape == (13, 2 * (192 + contact_sheets.LINE), 256, 3)
    assert (frames[0, -192:] == 255).all()


def test_sample_of_a_run_is_written(folder):
    run = runs.load(folder)
    made = run.system.make_sample(run.model, run.encoders, run.config)
    lines = samples.write(made, folder / "samples", run.system.sample_name, fps=run.encoders.fps)
    assert "rollout.mp4" in lines[-1]
    video = episodes.read_video(folder / "samples" / "rollout.mp4")
    assert video.shape == (29, 2 * (192 + contact_sheets.LINE), 256, 3)
    with PIL.Image.open(folder / "samples" / "rollout.png") as sheet:
        assert sheet.width > 2 * 4 * 112


def test_sample_of_own_data_follows_a_held_out_record(run, session):
    config = run.config.copy_and_resolve_references()
    config.data.recording.source = ""
    comparison = rollout.sample(session, config)
    source = records.RecordSource(config.data.records, "val")
    np.testing.assert_array_equal(comparison.truth, held_out.from_record(source, 0, run.encoders).frames[:29])
    assert len(comparison.chunks) == 2
