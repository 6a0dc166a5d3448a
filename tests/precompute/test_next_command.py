"""The command that precompute prints at its end: it runs as printed, on the records just made."""

import pathlib
import shlex
from typing import Any

import numpy as np
import precompute_inputs
import pytest
import tiny_autoencoders
import tiny_videos

from jworld import systems, train
from jworld.data import records
from jworld.precompute import __main__ as precompute
from jworld.systems import recipes
from jworld.utils import config as run_config

FLAGS = ("--fps=10", "--frames=9", "--width=32", "--height=24", "--val-share=0.4")
LINEAR = ("--spatial-ratio=8", "--channels=24")


def run(form: str, raw: pathlib.Path, output: pathlib.Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Run precompute and return what it printed."""
    linear = () if any(flag.startswith("--autoencoder=") for flag in flags) else LINEAR
    precompute.main([f"--input={raw}", f"--format={form}", f"--output={output}", *FLAGS, *linear, *flags])
    return capsys.readouterr().out


def lines(printed: str, start: str) -> list[str]:
    return [line.removeprefix(start) for line in printed.splitlines() if line.startswith(start)]


def first_batch(arguments: list[str]) -> dict[str, np.ndarray]:
    """Return the first batch of the run that a command starts: the records are checked against the model."""
    name, *changes = [argument.removeprefix("--config") for argument in arguments]
    config = recipes.change(
        run_config.load_recipe(name.removeprefix("=")),
        dict(change.removeprefix(".").split("=", 1) for change in changes) | {"global_batch": "1"},
    )
    system = systems.create(config)
    batch = next(system.data.batches("train"))
    assert {key: np.asarray(batch[key]).shape for key in system.batch_spec(1)} == {
        key: spec.shape for key, spec in system.batch_spec(1).items()
    }
    return batch


@pytest.mark.parametrize(
    "form, flags, recipe",
    [
        ("videos", ("--image-encoder=none",), "configs/cosmos_video2world.py:base"),
        ("cosmos", ("--text-encoder=hashed-words:24",), "configs/cosmos_video2world.py:base"),
        ("webdataset", ("--image-encoder=none",), "configs/cosmos_video2world.py:base"),
        ("parquet", ("--image-encoder=none",), "configs/cosmos_video2world.py:base"),
        ("bridge", ("--text-encoder=none:24", "--stride=4"), "configs/cosmos_video2world.py:tiny_action"),
        (
            "lerobot",
            ("--text-encoder=hashed-words:24", "--stride=4", "--camera=front", "--fps=8"),
            "configs/cosmos_video2world.py:tiny_lerobot",
        ),
        (
            "rlds",
            ("--text-encoder=hashed-words:24", "--stride=4", "--camera=image"),
            "configs/cosmos_video2world.py:tiny_lerobot",
        ),
        (
            "jasmine",
            ("--stride=4", "--frames-size=64x48", "--allow-missing-captions"),
            "configs/cosmos_video2world.py:coinrun",
        ),
        ("matrix", ("--whitening=0.5",), "configs/matrix_lora.py:base"),
        ("worldplay", (), "configs/ar_mem.py:rooms"),
        ("worldplay", ("--image-encoder=none:24",), "configs/ar_mem.py:rooms"),
    ],
)
def test_the_next_command_fits_the_records(tmp_path, capsys, monkeypatch, form, flags, recipe):
    raw, output = precompute_inputs.write_videos(tmp_path / "my data", form), tmp_path / "my records"
    printed = run(form, raw, output, capsys, *flags)
    (command,) = lines(printed, "next: ")
    python, dash_m, module, *arguments = shlex.split(command)
    assert (python, dash_m, module) == ("python", "-m", "jworld.train")
    assert arguments[0] == f"--config={recipe}"
    assert f"--config.data.records={output}" in arguments
    monkeypatch.chdir(tmp_path)
    train.main([*arguments, "--dry-run"])
    if form == "worldplay":
        assert "the shortest clip has 3 latents, an example of configs/ar_mem.py:rooms has 16" in printed
        assert "--frames 61 or more" in printed
    else:
        assert first_batch(arguments)["latent"].shape == (1, 3, 3, 4, 24)


@pytest.mark.parametrize(
    "form, flags, recipe",
    [
        ("worldplay", (), "configs/ar_mem.py"),
        ("matrix", (), "configs/matrix_lora.py"),
        ("cosmos", (), "configs/cosmos_video2world.py"),
        ("bridge", ("--stride=4",), "configs/cosmos_video2world.py:tiny_action"),
        # The shipped weights cannot be continued with these.
        ("worldplay", ("--text-encoder=hashed-words:24",), "configs/ar_mem.py:rooms"),
        ("matrix", ("--text-encoder=hashed-words:24",), "configs/matrix_lora.py:base"),
        ("cosmos", ("--text-encoder=hashed-words:24",), "configs/cosmos_video2world.py:base"),
        ("worldplay", ("--width=48", "--height=80"), "configs/ar_mem.py:rooms"),
        ("matrix", ("--width=48", "--height=80"), "configs/matrix_lora.py:base"),
    ],
)
def test_latents_of_the_shipped_autoencoder(tmp_path, capsys, monkeypatch, form, flags, recipe):
    """Own videos continue the shipped weights where there are any."""
    raw = precompute_inputs.write_videos(tmp_path / "raw", form)
    sizes = ("--autoencoder=assets/starter/encoders/autoencoder.safetensors", "--width=128", "--height=96")
    height, width = (5, 3) if "--width=48" in flags else (6, 8)
    (command,) = lines(run(form, raw, tmp_path / "set", capsys, *sizes, *flags), "next: ")
    arguments = shlex.split(command)[3:]
    assert arguments[0] == f"--config={recipe}"
    assert not any(argument.startswith("--config.init_from") for argument in arguments)
    assert flags or not any(argument.startswith("--config.model") for argument in arguments)
    monkeypatch.chdir(tmp_path)
    train.main([*arguments, "--dry-run"])
    if form != "worldplay":  # whose examples are longer than these videos
        assert first_batch(arguments)["latent"].shape == (1, 3, height, width, 128)


def test_a_network_of_published_size(tmp_path, capsys):
    """Latents of the published autoencoder: what does not fit the published weights is named with its flag."""
    raw = precompute_inputs.write_videos(tmp_path / "raw", "matrix")
    folder = tiny_autoencoders.save(tmp_path / "vae", "cogvideox")
    flags = (f"--autoencoder={folder}", "--keep-posterior", "--text-encoder=none:4096", "--image-encoder=none")
    printed = run("matrix", raw, tmp_path / "set", capsys, *flags)
    (command,) = lines(printed, "next: ")
    arguments = shlex.split(command)[3:]
    assert arguments == [
        "--config=configs/matrix_lora.py:2b",
        f"--config.data.records={tmp_path / 'set'}",
        "--config.data.clip.latent_size=(6,8)",
        "--config.data.clip.window_frames=3",
        "--config.model.channels=4",
        "--config.init_from=",
    ]
    (note,) = [note for note in lines(printed, "note: ") if "published weights" in note]
    assert "config.model.channels 16 (here 4), so the next command trains from scratch" in note
    assert note.endswith("make the records again with another --autoencoder")
    assert first_batch(arguments)["latent"].shape == (1, 3, 6, 8, 4)


def test_stand_ins_for_published_encoders_are_noted_first(tmp_path, capsys):
    raw = precompute_inputs.write_videos(tmp_path / "raw", "cosmos")
    folder = tiny_autoencoders.save(tmp_path / "vae", "wan")
    printed = run("cosmos", raw, tmp_path / "set", capsys, f"--autoencoder={folder}")
    notes = lines(printed, "note: ")
    assert notes[0].startswith("--text-encoder hashed-words:64 and --image-encoder thumbnail are stand-ins")
    assert "config.model.text_dim 1024 (here 64)" in notes[-1]
    assert notes[-1].endswith("make the records again with another --text-encoder")


def test_whole_videos_and_nothing_held_out(tmp_path, capsys):
    """Both are said before the work and, with numbers, after it."""
    raw = precompute_inputs.write_videos(tmp_path / "raw", "cosmos")
    tiny_videos.write(raw / "videos" / "a.mp4", precompute_inputs.wall(0, 45))
    arguments = [f"--input={raw}", "--format=cosmos", f"--output={tmp_path / 'set'}", "--fps=10", "--val-share=0"]
    precompute.main([*arguments, "--width=32", "--height=16"])
    printed = capsys.readouterr().out
    notes = lines(printed, "note: ")
    held_out, whole, nothing, longer = notes
    assert held_out.startswith(
        "no video is held out, so a model that trains on this set cannot be measured: give --val-"
    )
    share = held_out.split("--val-share ")[1].split()[0]
    assert "give --frames 93 --stride 16" in whole
    assert nothing.startswith("nothing is held out")
    # Four frames per latent after the first; the two other videos have 17 frames, and so has every example.
    assert longer == (
        "1 of 3 clips are longer than the 5 latents (17 frames) that training uses of each, counted from its start: to "
        "use all frames, make the records again with --frames 17 --stride 10"
    )
    precompute.main([*arguments[:2], f"--output={tmp_path / 'b'}", "--fps=10", f"--val-share={share}", "--frames=17"])
    manifest = records.read_manifest(tmp_path / "b")
    assert len(manifest["clips"]["val"]) >= 1
    assert lines(capsys.readouterr().out, "note: ") == []


def test_one_prompt_for_all_videos(tmp_path, capsys):
    """As with the original's script for NeMo assets: captions that exist are kept."""
    raw = precompute_inputs.write_videos(tmp_path / "raw", "cosmos")
    for name in "bc":
        (raw / "metas" / f"{name}.txt").unlink()
    with pytest.raises(SystemExit):
        run("cosmos", raw, tmp_path / "set", capsys)
    assert "give --prompt TEXT for all videos without a caption" in capsys.readouterr().err
    run("cosmos", raw, tmp_path / "set", capsys, "--prompt", "A video of sks teal robot.")
    prompts = records.read_manifest(tmp_path / "set")["prompts"]
    assert sorted(prompts) == ["", "A video of sks teal robot.", "wall 0"]


@pytest.mark.parametrize("value", ["2", "-0.1"])
def test_whitening_has_a_range(tmp_path, capsys, value):
    raw = precompute_inputs.write_videos(tmp_path / "raw", "videos")
    with pytest.raises(SystemExit):
        run("videos", raw, tmp_path / "set", capsys, f"--whitening={value}")
    assert f"whitening is {float(value)}, expected 0 (none) to 1" in capsys.readouterr().err


def test_whitening_and_channels_of_the_linear_autoencoder(tmp_path, capsys):
    raw = precompute_inputs.write_videos(tmp_path / "raw", "videos")
    deviations: dict[str, Any] = {}
    for value in ("0", "1"):
        run("videos", raw, tmp_path / value, capsys, f"--whitening={value}")
        source = records.RecordSource(tmp_path / value, "train")
        latents = np.concatenate([source[i]["latent"].astype(np.float32).reshape(-1, 24) for i in range(len(source))])
        deviations[value] = latents.std(axis=0)
    assert deviations["0"][0] / deviations["0"][-1] > 3 * deviations["1"][0] / deviations["1"][-1]


def test_tiles(tmp_path, capsys):
    """Tiles cover the frame with blended overlaps, so latents stay close to those of whole frames."""
    raw = precompute_inputs.write_videos(tmp_path / "raw", "videos")
    folder = tiny_autoencoders.save(tmp_path / "vae", "wan")
    found = {}
    for name, flags in {"whole": (), "tiles": ("--tile=20x24",)}.items():
        run("videos", raw, tmp_path / name, capsys, f"--autoencoder={folder}", *flags)
        found[name] = records.RecordSource(tmp_path / name, "train")[0]["latent"].astype(np.float32)
    assert found["tiles"].shape == found["whole"].shape
    difference = np.abs(found["tiles"] - found["whole"]).max(axis=(0, 1, 3))
    assert difference.max() > 0
    assert difference[:2].max() < 0.2 * np.abs(found["whole"]).max()
    for flags, message in (
        (("--tile=21x24",), "must be multiples of 4 pixels"),
        (("--tile=20",), "expected WIDTHxHEIGHT such as 360x240, got '20'"),
    ):
        with pytest.raises(SystemExit):
            run("videos", raw, tmp_path / "no", capsys, f"--autoencoder={folder}", *flags)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("videos", raw, tmp_path / "no", capsys, "--tile=20x24")
    assert "--tile is 20x24, but the linear autoencoder needs no tiles" in capsys.readouterr().err
