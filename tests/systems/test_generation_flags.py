"""Plain flags of generation on every video system, trained and imported: their keys, effects and refusals."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import video_runs

import jworld
from jworld import generate
from jworld.data import records
from jworld.data.inputs import fitting, video
from jworld.data.recording import episodes
from jworld.encoders import weightless
from jworld.systems import options, runs
from jworld.utils import config as run_config
from jworld.utils import errors

SYSTEMS = pytest.mark.parametrize("name", list(video_runs.RUNS))
#: Starts with guidance, which the tiny recipes of two systems turn off.
GUIDED = {"worldplay": "3", "cosmos": "2", "clip": "3", "stream": "3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.getbasetemp() / "video_runs"


def made(name: str, folder: pathlib.Path, out: pathlib.Path, *extra: str) -> tuple[np.ndarray, dict]:
    """Generate a video; -> its frames and its JSON file."""
    generate.main(video_runs.arguments(name, folder, out, *extra))
    return episodes.read_video(out), json.loads(out.with_suffix(".json").read_text())


def refused(capsys: pytest.CaptureFixture[str], name: str, folder: pathlib.Path, out: pathlib.Path, *extra: str) -> str:
    """Return the one sentence that refuses a command line, before anything is written."""
    with pytest.raises(SystemExit) as exit_info:
        generate.main(video_runs.arguments(name, folder, out, *extra))
    assert exit_info.value.code == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(printed) == 1
    assert not out.exists()
    return printed[0]


@pytest.mark.parametrize("imported", [False, True], ids=["trained", "imported"])
@SYSTEMS
def test_all_flags_on_every_system(name: str, imported: bool, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = video_runs.make(name, folder)
    encoders: tuple[str, ...] = ()
    if imported:
        # Imported weights come without the encoders' folder.
        run = tmp_path / "imported"
        shutil.copytree(folder / name, run, ignore=shutil.ignore_patterns(runs.ENCODERS))
        encoders = ("--autoencoder", str(folder / name / runs.ENCODERS / "autoencoder.safetensors"))
        encoders += ("--text-encoder", "hashed-words:64")
        encoders += ("--image-encoder", "thumbnail:none") if name == "worldplay" else ()
    flags = ["--size", "96x64", "--fps", "7.5", "--steps", "4", "--guidance", GUIDED[name], "--negative-prompt", "gray"]
    out = tmp_path / "out.mp4"
    found, facts = made(name, folder, out, *flags, "--checkpoint", str(run), *encoders)
    assert found.shape[1:] == (64, 96, 3)
    assert video.rate(video.open_video(out)) == pytest.approx(7.5, rel=0.01)
    config = facts["config"]
    rollout = config["sample"]["rollout"]
    assert (facts["fps"], rollout["fps"], rollout["num_steps"]) == (7.5, 7.5, 4)
    assert (rollout["guidance"], rollout["negative_prompt"]) == (float(GUIDED[name]), "gray")
    assert config["data"]["clip"]["latent_size"] == [4, 6]


@SYSTEMS
def test_a_negative_prompt_and_the_number_of_steps_change_the_video(
    name: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    guided = ("--guidance", GUIDED[name])
    plain, _ = made(name, folder, tmp_path / "plain.mp4", *guided)
    negative, _ = made(name, folder, tmp_path / "negative.mp4", *guided, "--negative-prompt", "gray fog")
    key = "--config.sample.rollout.negative_prompt=gray fog"
    same, _ = made(name, folder, tmp_path / "same.mp4", *guided, key)
    assert (negative != plain).any()
    np.testing.assert_array_equal(negative, same)


@SYSTEMS
def test_the_python_interface_has_the_same_flags(name: str, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    guidance, prompt = GUIDED[name], "gray fog"
    flags = ("--aspect", "3:4", "--steps", "4", "--fps", "5", "--guidance", guidance, "--negative-prompt", prompt)
    made(name, folder, tmp_path / "out.mp4", *flags, "--seed", "3")
    run = jworld.load(folder / name, aspect=(3, 4), steps=4, fps=5.0, guidance=float(guidance))
    assert run.encoders.fps == 5
    own = dict(zip(video_runs.RUNS[name][2][::2], video_runs.RUNS[name][2][1::2], strict=True))
    image = video_runs.image(folder) if "--image" in own else None
    frames = run.generate(
        image=image,
        prompt="a red room",
        pose=own.get("--pose"),
        actions=own.get("--actions"),
        negative_prompt=prompt,
        seed=3,
    )
    written = tmp_path / "api.mp4"
    episodes.write_video(written, frames, fps=5)
    np.testing.assert_array_equal(episodes.read_video(written), episodes.read_video(tmp_path / "out.mp4"))
    # As many pixels as the recipe has.
    assert frames.shape[1:3] == ((64, 48) if name == "worldplay" else (128, 96))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("cosmos", ("--size", "97x64"), "--size is 97x64, expected multiples of 32x32 pixels"),
        ("cosmos", ("--size", "97x64"), "the nearest sizes are 96x64 or 128x64"),
        ("cosmos", ("--size", "big"), "expected WxH in pixels such as 832x480, or a name such as 480p, got 'big'"),
        ("cosmos", ("--size", "512p"), "--size is 512p, expected WxH or one of 480p, 720p"),
        ("clip", ("--size", "480p"), "--size is 480p, expected WxH, such as 832x480"),
        ("cosmos", ("--size", "96x64", "--aspect", "3:2"), "--aspect 3:2: --size 96x64 already sets it"),
        ("cosmos", ("--aspect", "0:2"), "expected W:H, such as 16:9, got '0:2'"),
        ("clip", ("--fps", "inf"), "--fps: expected a finite number, got 'inf'"),
        ("clip", ("--guidance", "nan"), "--guidance: expected a finite number, got 'nan'"),
        (
            "clip",
            ("--config.sample.rollout.fps=nan",),
            "config.sample.rollout.fps: expected a number above 0, up to 1000 or None, got 'nan'",
        ),
        (
            "cosmos",
            ("--fps", "0"),
            "config.sample.rollout.fps: expected a number above 0, up to 1000 or None, got '0.0'",
        ),
        ("clip", ("--steps", "0"), "--steps: expected a positive integer, got '0'"),
        ("stream", ("--steps", "7"), "num_steps is 7, expected a multiple of the 4 groups"),
        (
            "worldplay",
            ("--pose", "w-1000000"),
            "makes a path of 1,000,001 latents, expected at most 25,000",
        ),
        ("worldplay", ("--pose", "none-1e300"), "latents, expected at most 25,000: shorten it"),
        ("stream", ("--actions", "D*3,N*1000000000"), "1,000,000,003 or more latents, expected at most 25,000"),
        ("stream", ("--actions", f"D*{'9' * 5000}"), "expected <token>*<latents>"),
        ("cosmos", ("--windows", "1000000000"), "--windows is 1,000,000,000, expected at most 25,000"),
        (
            "worldplay",
            ("--config.sample.actions=forward*1000000000",),
            "'forward*1000000000' makes a script of more than 25,000 latents: shorten it",
        ),
        ("worldplay", (f"--config.sample.actions=forward*{'9' * 5000}",), "makes a script of more than 25,000 latents"),
        ("worldplay", ("--config.sample.actions=forward*0",), "found 'forward*0', expected <action>*<latents>"),
        ("cosmos", ("--negative-prompt", "x"), "--negative-prompt has no effect without guidance"),
        ("worldplay", ("--negative-prompt", "x"), "--negative-prompt has no effect without guidance"),
        (
            "cosmos",
            ("--steps", "2", "--config.sample.rollout.num_steps=3"),
            "--config.sample.rollout.num_steps is also set by --steps: leave one of them out",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(
    name: str,
    flags: tuple[str, ...],
    message: str,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, name, folder, tmp_path / "out.mp4", *flags)


def test_a_guidance_embedding_takes_the_scale(folder: pathlib.Path) -> None:
    config = runs.resolve(video_runs.make("stream", folder), changes={"model.guidance_dim": "8"})
    run = folder / "embedding"
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(config.to_json())
    resolved = runs.resolve(run, flags=options.Flags(guidance=2.5))
    assert resolved.sample.rollout.guidance_embedding_scale == 2.5
    assert resolved.sample.rollout.guidance == config.sample.rollout.guidance


def test_a_new_negative_prompt_needs_the_text_encoder(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Records of the user's own data have the states of one negative prompt, and maybe no text encoder."""
    directory = video_runs.make("worldplay", folder)
    shutil.copytree(directory / runs.ENCODERS, tmp_path / "kept")
    entry = {"family": "qwen2.5-vl", "dim": 64, "hash": "0"}
    records.write_manifest(tmp_path / "kept", records.read_manifest(tmp_path / "kept") | {"text_encoder": entry})
    config = runs.resolve(
        directory, flags=options.Flags(guidance=2.0), changes={"data.recording.source": "", "seed": "1"}
    )
    run = runs.load(directory, config=config, encoders=tmp_path / "kept", stored=True)
    frame = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(errors.UserError, match=r"prompt 'fog' is not .* text encoder is absent"):
        run.session().reset(frame, "", negative_prompt="fog")
    run.session().reset(frame, "")


def test_the_frame_rate_is_an_input_where_the_model_has_one(folder: pathlib.Path) -> None:
    def frames(fps: float, **changes: str) -> np.ndarray:
        directory = video_runs.make("cosmos", folder)
        model = {f"model.{key}": value for key, value in changes.items()}
        config = runs.resolve(directory, flags=options.Flags(fps=fps), changes=model)
        run = runs.load(directory, config=config)
        return run.generate(image=video_runs.image(folder), prompt="a red room")

    assert (frames(6, fps_modulation="True") != frames(30, fps_modulation="True")).any()
    np.testing.assert_array_equal(frames(6), frames(30))


@pytest.mark.parametrize("flag", ["--size=64x48", "--aspect=4:3", "--fps=5", "--steps=2", "--guidance=2"])
@pytest.mark.parametrize("recipe", ["theworld.py", "autoencoder.py"])
def test_systems_without_videos_refuse_the_flags(
    recipe: str, flag: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_config.save(run_config.load_recipe(str(video_runs.ROOT / "configs" / recipe)), tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        generate.main(["--checkpoint", str(tmp_path), "--prompt", "What is it?", flag])
    assert exit_info.value.code == 2
    name = flag.partition("=")[0]
    reason = "this model has no such option" if recipe == "theworld.py" else "the model generates no videos"
    assert capsys.readouterr().err == f"error: {name}: {reason}: leave it out\n"


@pytest.mark.parametrize("flag", ["--temperature=1", "--top-k=5", "--top-p=0.5", "--max-tokens=4", "--stop=x"])
def test_systems_without_text_refuse_its_flags(
    flag: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_config.save(run_config.load_recipe(str(video_runs.ROOT / "configs" / "ar_mem.py")), tmp_path)
    with pytest.raises(SystemExit):
        generate.main(["--checkpoint", str(tmp_path), "--prompt", "a room", flag])
    expected = f"error: {flag.partition('=')[0]}: this model has no such option: leave it out\n"
    assert capsys.readouterr().err == expected


def test_flags_of_answers_are_keys_of_the_config(tmp_path: pathlib.Path) -> None:
    run_config.save(run_config.load_recipe(str(video_runs.ROOT / "configs" / "theworld.py")), tmp_path)
    flags = options.Flags(temperature=0.5, top_k=3, top_p=0.9, max_tokens=5, stop=("a, b", "it's"))
    rollout = runs.resolve(tmp_path, flags=flags).sample.rollout
    assert (rollout.temperature, rollout.top_k, rollout.top_p, rollout.max_tokens) == (0.5, 3, 0.9, 5)
    assert rollout.stop == ("a, b", "it's")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--prompt is missing"),
        (("--prompt=?", "--pose=w-1"), "--pose w-1: the model answers in text"),
        (("--prompt=?", "--seed=0,1"), "--seed has several values"),
        (("--prompt=?", "--out=a.mp4"), "--out is a.mp4, expected a name that ends in .json"),
        (("--batch=q.jsonl", "--prompt=?", "--out=a.jsonl"), "--prompt: the questions are those of --batch"),
        (("--batch=q.jsonl",), "--out is missing, expected a name that ends in .jsonl"),
        (("--prompt=?", "--top-p=2"), "top_p: expected a number above 0, up to 1, got '2.0'"),
    ],
)
def test_mistakes_in_questions(
    arguments: tuple[str, ...], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_config.save(run_config.load_recipe(str(video_runs.ROOT / "configs" / "theworld.py")), tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        generate.main(["--checkpoint", str(tmp_path), *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "seen"), [((60, 80), (48, 64)), ((40, 80), (32, 64)), ((90, 60), (64, 48)), ((30, 90), (32, 96))]
)
def test_the_image_encoder_gets_the_size_nearest_to_the_image(
    shape: tuple[int, int],
    seen: tuple[int, int],
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The latent has the model's size, 64 x 48, and both images are scaled before they are cropped."""
    images: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    run = runs.load(video_runs.make("worldplay", folder))
    encode_image, encode = weightless.Thumbnail.encode, type(run.encoders.autoencoder).encode
    monkeypatch.setattr(weightless.Thumbnail, "encode", lambda self, x: (images.append(x[0]), encode_image(self, x))[1])
    monkeypatch.setattr(
        type(run.encoders.autoencoder), "encode", lambda self, x: (latents.append(x[0, 0]), encode(self, x))[1]
    )
    first = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with jax.set_mesh(run.mesh):
        run.session().reset(first, "a red room")
    assert images[0].shape == (*seen, 3)
    assert latents[0].shape == (48, 64, 3)
    for found in (images[0], latents[0]):
        fit = fitting.Fit(width=found.shape[1], height=found.shape[0], resampling=run.encoders.fit.resampling)
        scaled = fit.scaled((shape[1], shape[0]))
        whole = dataclasses.replace(fit, width=scaled[0], height=scaled[1], mode="stretch").frame(first)
        left, top = round((scaled[0] - fit.width) / 2), round((scaled[1] - fit.height) / 2)
        if found is latents[0]:
            left, top = (scaled[0] - fit.width) // 2, (scaled[1] - fit.height) // 2
        np.testing.assert_array_equal(found, whole[top : top + fit.height, left : left + fit.width])
