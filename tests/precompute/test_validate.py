"""Validation of record sets: every fault is found and named, statistics agree with numpy, plots are drawn."""

import json
import pathlib
import re

import ml_dtypes
import numpy as np
import PIL.Image
import pytest

from jworld.cameras import actions
from jworld.data import images, records
from jworld.data.records import checks, statistics, text_store
from jworld.encoders import autoencoders
from jworld.models.autoencoders import linear
from jworld.precompute import plots, validate
from jworld.utils.errors import UserError

FRAMES, RATIO, SIZE, TEXT_DIM, GLYPH_DIM = 5, 8, (24, 16), 6, 7
PROMPTS = ("", "a room", "a hall", "never used")


def make_autoencoder() -> linear.LinearAutoencoder:
    video = np.random.default_rng(0).integers(0, 256, (17, SIZE[1], SIZE[0], 3)).astype(np.uint8)
    return linear.fit([video], linear.LinearConfig(channels=4, spatial_ratio=RATIO), seed=0)


def straight(frames: int, step: float = 0.1) -> np.ndarray:
    """Return w2c [frames, 4, 4] of a camera that moves straight ahead."""
    w2c = np.tile(np.eye(4), (frames, 1, 1))
    w2c[:, 2, 3] = -step * np.arange(frames)
    return w2c


def make_record(seed: int, *, frames: int = FRAMES, prompt: int = 1) -> records.Record:
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(frames, SIZE[1] // RATIO, SIZE[0] // RATIO, 4)).astype(ml_dtypes.bfloat16)
    forward = actions.label_from_name("forward")
    return {
        "latent": latent,
        "image_cond": latent[:1],
        "w2c": straight(frames).astype(np.float32),
        "intrinsics": np.tile(np.array([[0.6, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]], np.float32), (frames, 1, 1)),
        "action": np.array([0] + [forward] * (frames - 1), np.int32),
        "vision_states": generator.normal(size=(12, 12)).astype(ml_dtypes.bfloat16),
        "prompt": np.array(prompt, np.int32),
    }


def prompt_states(row: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((row + 1, TEXT_DIM), row, np.float32), np.zeros((row // 2, GLYPH_DIM), np.float32)


def write_set(directory: pathlib.Path, rows: dict[str, list[records.Record]], *, per_shard: int = 2) -> dict:
    """Write splits in shards of `per_shard` records and return the manifest, whose clip lengths are all FRAMES."""
    directory.mkdir(exist_ok=True)
    autoencoder = make_autoencoder()
    autoencoder.save(directory / records.AUTOENCODER_FILE)
    with records.RecordWriter(directory, "text") as text_writer:
        for row in range(len(PROMPTS)):
            text_writer.write(text_store.prompt_record(*prompt_states(row)))
    splits = {}
    for split, members in rows.items():
        splits[split] = []
        for number in range(0, len(members), per_shard):
            with records.RecordWriter(directory, f"{split}{number // per_shard}") as writer:
                for record in members[number : number + per_shard]:
                    writer.write(record)
            splits[split] += writer.shards
    manifest = {
        "arrays": records.make_arrays(
            (SIZE[1] // RATIO, SIZE[0] // RATIO, 4), cameras=True, action=True, vision=(12, 12), prompt=True
        ),
        "autoencoder": autoencoder.manifest_entry(),
        "latent_shape": [SIZE[1] // RATIO, SIZE[0] // RATIO, 4],
        "temporal_ratio": 4,
        "fps": 8.0,
        "camera_convention": records.CAMERA_CONVENTION,
        "image_size": list(SIZE),
        "text_encoder": {"family": text_store.HASHED_WORDS_FAMILY, "dim": TEXT_DIM},
        "glyph_encoder": {"family": "byt5-glyph", "dim": GLYPH_DIM},
        "vision_encoder": {"family": images.THUMBNAIL_FAMILY, "tokens": 12, "dim": 12},
        "prompts": list(PROMPTS),
        "text": text_writer.shards,
        "splits": splits,
        "clips": {split: [FRAMES] * len(members) for split, members in rows.items()},
        "episodes": {split: [f"{split}_{i}" for i in range(len(members))] for split, members in rows.items()},
    }
    records.write_manifest(directory, manifest)
    return manifest


def good_rows() -> dict[str, list[records.Record]]:
    return {
        "train": [make_record(i, prompt=1 + i % 2) for i in range(5)],
        "val": [make_record(9)],
    }


def rewrite(directory: pathlib.Path, **changes) -> None:
    records.write_manifest(directory, records.read_manifest(directory) | changes)


@pytest.fixture
def good(tmp_path) -> pathlib.Path:
    write_set(tmp_path / "set", good_rows())
    return tmp_path / "set"


def test_statistics_agree_with_numpy(good):
    result = validate.validate(good, keep=3)
    assert result.findings == []
    assert result.notes == ["1 of 4 prompts are used by no clip: rows 3"]
    numbers = result.statistics.numbers()
    rows = good_rows()
    latents = np.concatenate([row["latent"].reshape(-1, 4) for split in rows.values() for row in split])
    np.testing.assert_allclose(numbers["latent_mean"], latents.astype(np.float64).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(numbers["latent_std"], latents.astype(np.float64).std(axis=0), rtol=1e-6)
    train = numbers["splits"]["train"]
    assert (train["clips"], train["latent_frames"]) == (5, 25)
    assert train["hours"] == pytest.approx(5 * 17 / 8 / 3600)
    assert train["bytes"] == sum(path.stat().st_size for path in good.glob("train*"))
    assert numbers["actions"] == {"forward": 24, "none": 6}
    assert numbers["text_tokens"] == {"least": 1, "median": 2.5, "most": 4}
    assert numbers["glyph_tokens"] == {"least": 0, "median": 0.5, "most": 1}
    assert list(result.clips) == ["train train_0", "train train_2", "val val_0"]


def test_channel_moments_keep_digits():
    generator = np.random.default_rng(0)
    parts = [1000 + 0.1 * generator.normal(size=(rows, 3, 2)) for rows in (1, 70, 5, 200)]
    moments = statistics.ChannelMoments()
    for part in parts:
        moments.add(part.astype(np.float32))
    whole = np.concatenate(parts).astype(np.float32).astype(np.float64).reshape(-1, 2)
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(moments.std, whole.std(axis=0), rtol=1e-4)


def changed(name: str, index, value) -> records.Record:
    record = make_record(0)
    record[name] = record[name].copy()
    record[name][index] = value
    return record


CROOKED = np.diag([1, 1.01, 1, 1])
MIRRORED = np.diag([-1, 1, 1, 1])


@pytest.mark.parametrize(
    "record, reasons",
    [
        (changed("latent", (2, 0, 0, 1), np.nan), ["'latent' has 1 of 120 numbers that are NaN or infinite"]),
        (changed("image_cond", 0, np.inf), ["'image_cond' has 24 of 24 numbers that are NaN"]),
        (changed("vision_states", 0, np.nan), ["'vision_states' has 12 of 144"]),
        (changed("w2c", (3, 0, 3), np.inf), ["'w2c' has 1 of 80 numbers"]),
        (changed("w2c", 1, CROOKED), ["'w2c' of latent frame 1 is not rigid"]),
        (changed("w2c", slice(2, 4), MIRRORED), [r"'w2c' of latent frame 2 \(and 1 more\) is not rigid"]),
        (changed("w2c", (4, 3, 3), 2), ["'w2c' of latent frame 4 is not rigid"]),
        (changed("intrinsics", (0, 0, 1), 0.1), ["frame 0 are not of the form"]),
        (changed("intrinsics", (2, 2, 2), 0), ["frame 2 are not of the form"]),
        (changed("intrinsics", (1, 1, 1), 0), ["frame 1 have a focal length that is not positive"]),
        (changed("intrinsics", (1, 0, 2), 320), ["frame 1 have a principal point outside the image"]),
        (changed("action", 3, 81), ["'action' of latent frame 3 is 81, expected 0 to 80"]),
        (changed("action", 2, -1), ["'action' of latent frame 2 is -1"]),
        (changed("action", 0, 1), ["'action' of latent frame 0 is 'yaw_right', expected 'none' by its cameras"]),
        (changed("action", slice(1, 3), 0), [r"latent frame 1 \(and 1 more\) is 'none', expected 'forward' by"]),
        (
            changed("latent", 0, np.nan) | {"action": np.full(FRAMES, 99, np.int32)},
            ["'latent' has 24 of 120", "'action' of latent frame 0 .*99"],
        ),
    ],
)
def test_faults_of_a_record(record, reasons):
    found = checks.record_problems(record)
    assert len(found) == len(reasons), found
    for problem, reason in zip(found, reasons, strict=True):
        assert re.search(reason, problem), problem
    assert checks.record_problems(make_record(0)) == []


def test_recorded_labels_may_differ_but_must_exist():
    assert checks.record_problems(changed("action", 1, 0), recorded_labels=True) == []
    assert "is 81" in checks.record_problems(changed("action", 1, 81), recorded_labels=True)[0]


def test_labels_at_the_edge_of_a_class_are_valid_on_either_side():
    threshold = actions.TRAINING_MIN_TRANSLATION
    # Steps just above the threshold, which fall below it when large positions are rounded to float32.
    w2c = straight(200, threshold * (1 + 1e-9))
    w2c[:, 2, 3] -= 50
    labels = actions.labels_from_poses(w2c, min_translation=threshold)
    rounded = w2c.astype(np.float32)
    assert (labels != actions.labels_from_poses(rounded, min_translation=threshold)).any()
    record = make_record(0, frames=200) | {"w2c": rounded, "action": labels}
    assert checks.record_problems(record) == []
    record["action"] = np.where(np.arange(200) == 7, actions.label_from_name("backward"), labels).astype(np.int32)
    assert "latent frame 7 is 'backward'" in checks.record_problems(record)[0]


def test_records_without_cameras_and_actions():
    record = {name: array for name, array in make_record(0).items() if name not in ("w2c", "intrinsics")}
    assert checks.record_problems(record) == []
    del record["action"]
    assert checks.record_problems(record) == []


def test_all_bad_records_are_listed(tmp_path):
    rows = good_rows()
    rows["train"][0] = changed("latent", 0, np.nan)
    rows["train"][3] = make_record(3, frames=FRAMES - 1)
    rows["train"][4] = {key: value for key, value in make_record(4).items() if key != "action"}
    rows["val"][0] = make_record(9, prompt=len(PROMPTS))
    directory = tmp_path / "set"
    write_set(directory, rows)
    found = validate.validate(directory).findings
    assert [(f.file, f.record, f.name) for f in found] == [
        ("train0-00000-of-00001.arrow", 0, "train_0"),
        ("train1-00000-of-00001.arrow", 3, "train_3"),
        ("train2-00000-of-00001.arrow", 4, "train_4"),
        ("val0-00000-of-00001.arrow", 0, "val_0"),
    ]
    reasons = [f.reason for f in found]
    assert reasons[0].startswith("'latent' has 24 of 120")
    assert reasons[1].startswith("key 'latent' is bfloat16 [4, 2, 3, 4], expected bfloat16 [5, 2, 3, 4]")
    assert reasons[2].startswith("key 'action' is missing")
    assert reasons[3].startswith("prompt 4 is not in the text store")


def test_damaged_files_do_not_hide_the_others(good):
    first, second = (good / f"train{i}-00000-of-00001.arrow" for i in (0, 1))
    first.write_bytes(first.read_bytes()[:200])
    damaged = bytearray(second.read_bytes())
    damaged[damaged.index(records.encode_record(make_record(2, prompt=1))) + 900] ^= 0xFF
    second.write_bytes(damaged)
    (good / "val0-00000-of-00001.arrow").unlink()
    result = validate.validate(good)
    found = result.findings
    assert [(f.file[:6], f.record, f.name) for f in found] == [
        ("train0", None, ""),
        ("train1", 2, "train_2"),
        ("val0-0", None, ""),
    ]
    assert "expected 2 records" in found[0].reason and "its 2 records could not be checked" in found[0].reason  # noqa: PT018
    assert found[1].reason.startswith("is corrupt (")
    assert "is absent" in found[2].reason
    assert result.statistics.numbers()["splits"]["train"]["clips"] == 2


def test_bad_prompts(good):
    with records.RecordWriter(good, "text") as writer:
        for row in range(len(PROMPTS)):
            states, glyphs = prompt_states(row)
            if row == 1:
                states[0, 0] = np.nan
            writer.write(
                text_store.prompt_record(states[:0] if row == 3 else states, glyphs[:, :2] if row == 2 else glyphs)
            )
    found = validate.validate(good).findings
    assert [(f.record, f.name) for f in found] == [(1, "a room"), (2, "a hall"), (3, "never used")]
    assert found[0].reason == "'text_states' has 1 of 12 numbers that are NaN or infinite"
    assert found[1].reason == "'glyph_states' has width 2, expected 7 as in the manifest"
    assert found[2].reason.startswith("'text_states' has no tokens")


def test_manifest_that_does_not_fit(good):
    manifest = records.read_manifest(good)
    rewrite(good, autoencoder=manifest["autoencoder"] | {"hash": "another"})
    assert f"the autoencoder of {good} has hash" in validate.validate(good).findings[0].reason
    rewrite(good, autoencoder=manifest["autoencoder"] | {"normalised": False})
    assert "autoencoder.normalised" in validate.validate(good).findings[0].reason
    other = {key: value for key, value in manifest["autoencoder"].items() if key != "temporal_ratio"}
    rewrite(good, autoencoder=other, temporal_ratio=2)
    assert "has temporal_ratio 4, expected 2" in validate.validate(good).findings[0].reason
    for changes, message in (
        ({"autoencoder": manifest["autoencoder"]}, "'temporal_ratio' is 2, expected that of 'autoencoder', 4"),
        ({"fps": float("nan")}, "'fps' is nan"),
    ):
        records.write_manifest(good, manifest | {"temporal_ratio": 2 if "fps" not in changes else 4} | changes)
        with pytest.raises(UserError, match=message):
            validate.validate(good)
    with pytest.raises(UserError, match="is absent"):
        validate.validate(good / "nowhere")


def test_notes(good):
    (good / "train9-00000-of-00001.arrow").write_bytes(b"")
    rewrite(good, episodes={"train": [f"clip_{i}" for i in range(5)], "val": ["clip_3"]})
    notes = validate.validate(good).notes
    assert "1 names of clips occur in every split, for example 'clip_3'" in notes
    assert "1 files are not in the manifest and are not read, for example train9-00000-of-00001.arrow" in notes


def test_command_line(good, tmp_path, capsys):
    report, folder = tmp_path / "reports" / "report.json", tmp_path / "plots"
    validate.main([str(good), "--json", str(report), "--plot", str(folder)])
    printed = capsys.readouterr().out
    assert "all 6 records and 4 prompts are good" in printed
    assert "forward" in printed
    content = json.loads(report.read_text())
    assert content["good"] is True
    assert content["statistics"]["splits"]["val"]["clips"] == 1
    names = {plots.CAMERAS, plots.ACTIONS, plots.LATENTS, plots.THUMBNAILS}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.iterdir():
        with PIL.Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1, path

    rewrite(good, autoencoder={"family": "unknown", "normalised": True})
    validate.main([str(good), "--plot", str(tmp_path / "others")])
    assert "no decoded frames" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "others").iterdir()} == names - {plots.THUMBNAILS}


def test_command_line_with_bad_records(tmp_path, capsys):
    rows = good_rows()
    rows["train"][2] = changed("w2c", 1, CROOKED)
    directory, report = tmp_path / "set", tmp_path / "report.json"
    write_set(directory, rows)
    with pytest.raises(SystemExit) as stopped:
        validate.main([str(directory), "--json", str(report)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "bad: train1-00000-of-00001.arrow, record 2 (train_2): 'w2c' of latent frame 1" in printed.out
    assert printed.err.startswith(f"error: {directory}: 1 bad among 6 records and 4 prompts")
    content = json.loads(report.read_text())
    assert content["good"] is False
    assert [finding["record"] for finding in content["findings"]] == [2]


def test_implausible_cameras_are_warned_about(tmp_path, capsys):
    """Millimeters, and a camera that only walks backward; both are valid records."""
    for name, step, words in (
        ("good", 0.1, ""),
        ("millimeters", 100.0, "the median step of a moving camera is 100 units per latent"),
        ("backward", -0.1, "100% of the moves along the view go backward: usual for OpenGL axes"),
    ):
        rows = good_rows()
        for split in rows.values():
            for record in split:
                record["w2c"] = straight(len(record["w2c"]), step).astype(np.float32)
                label = actions.label_from_name("forward" if step > 0 else "backward")
                record["action"] = np.array([0] + [label] * (len(record["w2c"]) - 1), np.int32)
        write_set(tmp_path / name, rows)
        report = tmp_path / f"{name}.json"
        validate.main([str(tmp_path / name), "--json", str(report)])
        printed = capsys.readouterr().out
        assert printed.count("warning: ") == bool(words)
        assert words in printed
        assert len(json.loads(report.read_text())["warnings"]) == bool(words)


def test_cameras_are_drawn_from_above():
    figure = plots.draw_cameras(
        {"moving": straight(9).astype(np.float32), "at rest": straight(9, 0).astype(np.float32)}
    )
    panels = {panel.get_title(): panel for panel in figure.axes}
    segments = panels["moving"].collections[0].get_segments()
    np.testing.assert_allclose(segments[0][0], [0, 0], atol=1e-6)
    np.testing.assert_allclose(segments[-1][1], [0, 0.8], atol=1e-6)
    # The axes of a camera at rest have a minimum extent.
    assert np.ptp(panels["at rest"].get_xlim()) > 0.1


def test_thumbnails_are_frames_of_the_clip():
    autoencoder = make_autoencoder()
    video = np.random.default_rng(1).integers(0, 256, (1, 33, SIZE[1], SIZE[0], 3)).astype(np.uint8)
    opened = autoencoders.Autoencoder(autoencoder)
    latents = opened.encode(video)
    frames = validate.decode_some(opened, latents[0])
    assert list(frames) == [0, 4, 12, 16, 24, 32]
    whole = opened.decode(latents)[0]
    for number, frame in frames.items():
        np.testing.assert_allclose(frame.astype(int), whole[number].astype(int), atol=1)
