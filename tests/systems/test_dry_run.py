"""`train --dry-run`: what needs no data is refused with the sentence of the run itself."""

import json
import pathlib

import commands
import pytest

STARTER = "--config=configs/ar_mem.py"
ROOMS = "--config=configs/ar_mem.py:rooms"
#: Arguments -> part of the error.
MISTAKES: dict[tuple[str, ...], str] = {
    (ROOMS, "--config.mesh.data=3", "--config.mesh.fsdp=2"): "config.global_batch is 16, expected a multiple of 6",
    (ROOMS, "--config.mesh.data=3"): "config.global_batch is 16, expected a multiple of 6",
    (ROOMS, "--config.optimizer.accumulate=5"): "config.global_batch is 16, expected a multiple of 30",
    (ROOMS, "--config.mesh.fsdp=1", "--config.mesh.sequence=-1"): (
        "config.mesh.sequence is 6, which does not divide config.data.clip.window_frames 16"
    ),
    (ROOMS, "--config.mesh.data=0"): "config.mesh.data: found 0, expected -1 or an integer from 1",
    (ROOMS, "--config.global_batch=30", "--config.model.width=160", "--config.model.rope_dims=(12,12,16)"): (
        "config.mesh.fsdp is 6, but params/"
    ),
    (ROOMS, "--config.global_batch=18", "--config.init_from=NOWHERE"): "config.init_from: NOWHERE has no config.json",
    (ROOMS, "--config.global_batch=18", "--config.init_from=EMPTY"): "there are no checkpoints: the folder EMPTY",
    ("--config=configs/cosmos_video2world.py:base", "--config.global_batch=18", "--config.init_from=assets/starter"): (
        "config.init_from: the model in assets/starter is of the system worldplay, expected cosmos"
    ),
    (STARTER, "--config.global_batch=18", "--config.model.text_dim=32"): "of the model in assets/starter has the shape",
    (
        *(STARTER, "--config.global_batch=18", "--config.model.actions=False"),
        "--config.model.references=False",
    ): "has parameters that this one lacks: action",
    (ROOMS, "--config.global_batch=18", "--config.optimizer.trainable=blocks"): "which matches no parameter",
    (ROOMS, "--config.global_batch=18", "--config.sample.encoders.autoencoder=NOWHERE"): "NOWHERE does not exist",
    (ROOMS, "--config.sample.encoders.text_encoder=word2vec:x"): "there is no text encoder 'word2vec'",
    (ROOMS, "--config.epochs=2", "--config.steps=3"): "config.steps is 3 and config.epochs 2, expected one above 0",
    (ROOMS, "--config.steps=0"): "config.steps is 0 and config.epochs 0, expected one above 0",
    (ROOMS, "--config.sample.prompts=('a','b')", "--config.sample.images=('a.png',)"): "1 images for 2 prompts",
    (
        ROOMS,
        "--config.evaluation.interval=-1",
    ): "config.evaluation.interval: expected an integer from 0 to 2147483647, got '-1'",
    (ROOMS, "--config.global_batch=18", "--config.checkpoint.step=99"): (
        "config.checkpoint.step is 99, but RUN/checkpoints holds no checkpoint, so that the run would start at step 0"
    ),
    (ROOMS, "--config.checkpoint.max_to_keep=0"): "config.checkpoint.max_to_keep: found 0, expected an integer from 1",
}


def test_mistakes_have_the_sentence_of_the_run(tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    recipe = {"system": "worldplay"}
    (empty / "config.json").write_text(json.dumps(recipe))
    places = {"NOWHERE": str(tmp_path / "nowhere"), "EMPTY": str(empty), "RUN": str(tmp_path / "run")}

    def named(text: str) -> str:
        for word, place in places.items():
            text = text.replace(word, place)
        return text

    calls = [[*map(named, given), f"--workdir={tmp_path / 'run'}", "--dry-run"] for given in MISTAKES]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=6"}
    found = commands.run_in_forks("jworld.train", calls, tmp_path / "answers", **devices)
    for result, expected in zip(found, MISTAKES.values(), strict=True):
        assert named(expected) in commands.one_sentence(result), (result.args, result.stderr)
    assert not (tmp_path / "run").exists()

    # Those of the mesh, before data are made.
    of_mesh = [[word for word in call if word != "--dry-run"] for call in calls[1:5]]
    real = commands.run_in_forks("jworld.train", of_mesh, tmp_path / "real", **devices)
    assert [result.stderr for result in real] == [result.stderr for result in found[1:5]]


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 64, "sequence": 4}, {"fsdp": 16}])
def test_a_mesh_that_is_not_here(mesh: dict[str, int], tmp_path: pathlib.Path) -> None:
    sizes = [f"--config.mesh.{name}={size}" for name, size in mesh.items()]
    batch = f"--config.global_batch={128 if 'data' in mesh else 32}"
    arguments = ["--config=configs/ar_mem.py:8b", *sizes, batch, f"--workdir={tmp_path / 'run'}", "--dry-run"]
    result = commands.run("jworld.train", *arguments)
    assert result.returncode == 0, result.stderr
    assert "records is not made yet" in result.stdout
