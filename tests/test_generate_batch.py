"""python -m jworld.generate --batch and --seed 0,1: many videos with one load and one compilation, resumable."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tiny_videos
import video_runs

from jworld import generate
from jworld.data.recording import episodes
from jworld.systems import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.getbasetemp() / "video_runs"


def write(path: pathlib.Path, entries: list[dict[str, Any]]) -> pathlib.Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def run_batch(name: str, folder: pathlib.Path, batch: pathlib.Path, out: pathlib.Path, *extra: str) -> None:
    generate.main(video_runs.arguments(name, folder, out, "--batch", str(batch), *extra))


def facts(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("name", list(video_runs.RUNS))
def test_a_batch_loads_and_compiles_once(
    name: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[pathlib.Path] = []
    original = runs.load_model
    monkeypatch.setattr(runs, "load_model", lambda *a, **k: (loads.append(a[0]), original(*a, **k))[1])
    entries: list[dict[str, Any]] = [
        {"prompt": "a red room", "seed": [0, 1], "out": "a.mp4"},
        {"prompt": "a long hall with golden walls", "seed": 7, "out": "sub/b.MP4"},
        {},
    ]
    # The first video has as many kinds of chunks as the others.
    if name == "worldplay":
        entries[0]["pose"], entries[1]["pose"] = "w-7", "w-3, right-8"
    if name == "stream":
        entries[0]["actions"], entries[1]["actions"] = "D*4", "DL*6"
    batch = write(tmp_path / "batch.jsonl", entries)
    run_batch(name, folder, batch, tmp_path / "out")
    out = tmp_path / "out"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        *("00003.json", "00003.mp4", "a_0.json", "a_0.mp4", "a_1.json", "a_1.mp4", "sub/b.MP4", "sub/b.json"),
    ]
    assert len(loads) == 1
    made = [facts(out / file) for file in ("a_0.mp4", "a_1.mp4", "sub/b.MP4", "00003.mp4")]
    assert [(x["seed"], x["prompt"]) for x in made] == [
        (0, "a red room"),
        (1, "a red room"),
        (7, "a long hall with golden walls"),
        (0, "a red room"),
    ]
    assert made[0]["timings"]["load_seconds"] > 0
    assert [x["timings"]["compile_seconds"] for x in made[1:]] == [0, 0, 0]
    # A batch makes the same videos as single calls.
    path = [f"--{key}={entries[0][key]}" for key in ("pose", "actions") if key in entries[0]]
    own = [*video_runs.arguments(name, folder, tmp_path / "alone.mp4", "--seed", "1"), *path]
    generate.main(own)
    np.testing.assert_array_equal(episodes.read_video(tmp_path / "alone.mp4"), episodes.read_video(out / "a_1.mp4"))
    assert (episodes.read_video(out / "a_0.mp4") != episodes.read_video(out / "a_1.mp4")).any()
    if not path:
        np.testing.assert_array_equal(episodes.read_video(out / "a_0.mp4"), episodes.read_video(out / "00003.mp4"))


def test_several_seeds_and_negative_prompts(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "a.mp4"
    generate.main(video_runs.arguments("clip", folder, out, "--seed", "0,5"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_0.json", "a_0.mp4", "a_5.json", "a_5.mp4"]
    assert facts(tmp_path / "a_5.mp4")["seed"] == 5
    batch = write(tmp_path / "b.jsonl", [{"out": "plain.mp4"}, {"out": "gray.mp4", "negative_prompt": "gray fog"}])
    run_batch("clip", folder, batch, tmp_path / "new")
    plain, gray = (episodes.read_video(tmp_path / "new" / f"{name}.mp4") for name in ("plain", "gray"))
    np.testing.assert_array_equal(plain, episodes.read_video(tmp_path / "a_0.mp4"))
    assert (plain != gray).any()
    assert facts(tmp_path / "new" / "gray.mp4")["negative_prompt"] == "gray fog"


def test_the_same_command_continues(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = write(tmp_path / "batch.jsonl", [{"seed": number, "out": f"{number}.mp4"} for number in range(3)])
    out = tmp_path / "out"
    original = generate.make_video

    def killed(request: Any, job: Any, *rest: Any) -> Any:
        if job.video.seed == 2:
            raise KeyboardInterrupt
        return original(request, job, *rest)

    monkeypatch.setattr(generate, "make_video", killed)
    with pytest.raises(SystemExit):
        run_batch("clip", folder, batch, out)
    assert sorted(path.name for path in out.iterdir()) == ["0.json", "0.mp4", "1.json", "1.mp4"]
    (out / "1.json").unlink()  # as if the process had died before it was written
    before = (out / "0.mp4").stat().st_mtime_ns, (out / "1.mp4").stat().st_mtime_ns
    monkeypatch.setattr(generate, "make_video", original)
    run_batch("clip", folder, batch, out)
    assert "1 of 3 videos are finished" in capsys.readouterr().out
    assert (out / "0.mp4").stat().st_mtime_ns == before[0]
    assert (out / "1.mp4").stat().st_mtime_ns > before[1]
    assert len(list(out.glob("*.mp4"))) == len(list(out.glob("*.json"))) == 3

    monkeypatch.setattr(runs, "load", lambda *a, **k: pytest.fail("nothing is left to do"))
    run_batch("clip", folder, batch, out)
    assert "3 of 3 videos are finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_batch("clip", folder, batch, out, "--guidance", "2")
    assert "line 1: " in (printed := capsys.readouterr().err)
    assert "0.mp4 exists and was made with another config.sample: remove it" in printed
    with pytest.raises(SystemExit):
        run_batch("clip", folder, batch, out, "--prompt", "another")
    assert "was made with another prompt" in capsys.readouterr().err


def test_a_batch_file_of_cosmos(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its format: a JSON list with the keys input_video, prompt and output_video, relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    image = video_runs.image(folder)
    entries = [
        {"input_video": str(image), "prompt": f"scene {number}", "output_video": f"output/{number}.mp4"}
        for number in range(2)
    ]
    (tmp_path / "batch.json").write_text(json.dumps(entries, indent=2))
    checkpoint = str(video_runs.make("cosmos", folder))
    generate.main(["--checkpoint", checkpoint, "--batch", "batch.json"])
    assert [facts(tmp_path / f"output/{number}.mp4")["prompt"] for number in range(2)] == ["scene 0", "scene 1"]
    (tmp_path / "batch.json").write_text(json.dumps([*entries, {"input_video": "x.png", "image": "y.png"}]))


BAD: list[tuple[str, str, str]] = [
    ("clip", "{", "not valid JSON"),
    ("clip", "[1]", "entry 1: expected an object such as"),
    ("clip", "3", "expected an object such as"),
    ("clip", '{"promt": "x", "out": "b.mp4"}', "unknown key 'promt', did you mean 'prompt'?"),
    ("clip", '{"prompt": 3, "out": "b.mp4"}', "'prompt' is 3, expected text"),
    (
        "clip",
        '{"seed": "x", "out": "b.mp4"}',
        "'seed' is 'x', expected an integer of 32 bits or a list",
    ),
    ("clip", '{"seed": [1, 1], "out": "b.mp4"}', "'seed' is [1, 1], expected an integer"),
    ("clip", '{"seed": true, "out": "b.mp4"}', "'seed' is True, expected an integer"),
    ("clip", '{"out": "b.avi"}', "'out' is 'b.avi', expected the name of a video that ends in .mp4"),
    ("clip", '{"out": "a.mp4"}', "a.mp4 is also the name of"),
    ("clip", '{"out": "./a.MP4"}', "a.MP4 is also the name of"),
    ("clip", '{"windows": 0, "out": "b.mp4"}', "'windows' is 0, expected a positive integer"),
    ("clip", '{"length": "stretch", "out": "b.mp4"}', "'length' is 'stretch', expected one of pad, cut"),
    ("clip", '{"pose": "w-3", "out": "b.mp4"}', "--pose w-3: this model is steered by --actions"),
    ("clip", '{"actions": "D", "out": "b.mp4"}', "--actions: the model has no control"),
    ("clip", '{"image": "a.png", "out": "b.mp4"}', "the model makes clips from a caption alone"),
    ("worldplay", '{"pose": "w-3, jump-4", "out": "b.mp4"}', "pose string item 'jump-4' is invalid"),
    ("worldplay", '{"image": "absent.png", "out": "b.mp4"}', "--image absent.png cannot be read"),
    ("worldplay", '{"negative_prompt": "x", "out": "b.mp4"}', "--negative-prompt has no effect without guidance"),
    ("cosmos", '{"input_video": "a.png", "image": "b.png", "out": "b.mp4"}', "'image' is another name of 'image'"),
]


@pytest.mark.parametrize(("name", "line", "message"), BAD)
def test_a_bad_line_is_refused_before_anything_starts(
    name: str,
    line: str,
    message: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "load", lambda *a, **k: pytest.fail("the model was loaded"))
    text = line if line.startswith("[") else f'{{"out": "a.mp4"}}\n\n{line}\n'
    (tmp_path / "batch.jsonl").write_text(text)
    with pytest.raises(SystemExit) as exit_info:
        run_batch(name, folder, tmp_path / "batch.jsonl", tmp_path / "out")
    assert exit_info.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert message in printed
    assert re.search(r"batch.jsonl, (entry 1|line 3): ", printed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "text", "message"),
    [
        ((), "", "has no entries, expected one JSON object per line"),
        ((), "[]", "has no entries"),
        (("--out", "a.mp4"), '{"out": "b.mp4"}', "--out is a.mp4, expected the folder for the videos of --batch"),
        (("--out", "."), "{}", "line 1: 'out' is missing: add it, or give a folder with --out"),
        (("--batch", "no.jsonl"), "", "--batch no.jsonl is absent"),
        (("--seed", "0,0"), "{}", "--seed: expected different integers of 32 bits such as 0 or 0,1,2, got '0,0'"),
        (("--seed", "4294967296"), "{}", "--seed: expected different integers"),
    ],
)
def test_files_that_are_no_batch(
    extra: tuple[str, ...],
    text: str,
    message: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "batch.jsonl").write_text(text)
    with pytest.raises(SystemExit):
        run_batch("clip", folder, tmp_path / "batch.jsonl", tmp_path / "out", *extra)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.mp4", "B.MOV", "c.mkv", "d.webm"])
@pytest.mark.parametrize("system", ["cosmos", "stream"])
def test_a_start_video_is_read_by_its_time_stamps(
    system: str, name: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video of twice the frame rate is continued from every second frame, at the rate that --fps sets."""
    needed = {"cosmos": 5, "stream": 37}[system]
    video = tmp_path / name
    frames = np.repeat(tiny_videos.numbered(30), 5, axis=0)[-90:]
    tiny_videos.write(video.with_suffix(video.suffix.lower()), frames, fps=16)
    video.with_suffix(video.suffix.lower()).rename(video)
    seen: list[np.ndarray] = []
    session = type(runs.load(video_runs.make(system, folder)).session())
    original = session.reset

    def reset(self: Any, first_frame: np.ndarray, *rest: Any, **options: Any) -> None:
        seen.append(first_frame)
        original(self, first_frame, *rest, **options)

    monkeypatch.setattr(session, "reset", reset)
    more = ("--config.sample.rollout.conditioning_frames=2",) if system == "cosmos" else ()
    out = tmp_path / "out.mp4"
    generate.main(video_runs.arguments(system, folder, out, "--image", str(video), "--fps", "8", *more))
    (given,) = seen
    expected = np.arange(90)[::-2][:needed][::-1]
    level = frames[expected].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(given.mean(axis=(1, 2, 3)), level, atol=4)


def test_starts_that_are_shorter_than_the_model_continues(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = "--config.sample.rollout.conditioning_frames=2"
    generate.main(video_runs.arguments("cosmos", folder, tmp_path / "a.mp4", two))
    assert (
        "first.png: config.sample.rollout.conditioning_frames is 2, which are 5 frames of a video, so the first window "
        "continues only the last frame"
    ) in capsys.readouterr().err
    tiny_videos.write(tmp_path / "short.mp4", tiny_videos.numbered(6), fps=24)
    generate.main(video_runs.arguments("stream", folder, tmp_path / "b.mp4", "--image", str(tmp_path / "short.mp4")))
    assert "short.mp4: it has 4 of the 37 frames of a window, so the first one is repeated" in capsys.readouterr().err
    generate.main(video_runs.arguments("stream", folder, tmp_path / "c.mp4"))
    assert "note: " not in capsys.readouterr().err


def test_a_damaged_start_video_is_told(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "a.mkv"
    tiny_videos.write(video, np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8), fps=24)
    data = video.read_bytes()
    video.write_bytes(data[: 2 * len(data) // 3])
    with pytest.raises(SystemExit):
        generate.main(video_runs.arguments("stream", folder, tmp_path / "out.mp4", "--image", str(video)))
    (printed,) = capsys.readouterr().err.splitlines()
    assert f"error: --image {video} cannot be read: " in printed
    assert not (tmp_path / "out.mp4").exists()
