"""`jworld.train` of WorldPlay's bidirectional model and of shortcuts: a resumed run is an uninterrupted one."""

import pathlib

import commands
import pytest
import xla_flags

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: One device, and no optimization of programs that run a few times.
ONE_DEVICE = {"XLA_FLAGS": xla_flags.fast_compilation(1), "JAX_OPTIMIZATION_LEVEL": "O0"}
#: Changes that make the tiny recipe as small as `commands.train_arguments`.
SMALL = (
    "--config.init_from=",
    "--config.model.patch_size=(1,1,1)",
    "--config.data.encoding.autoencoder=",
    "--config.data.encoding.image_size=(64,48)",
    "--config.data.clip.latent_size=(3,4)",
    "--config.global_batch=4",
    "--config.checkpoint.interval=2",
)


def train(recipe: str, folder: pathlib.Path, workdir: str, steps: int) -> dict[str, object]:
    """Train up to a step; -> the checksums of its checkpoint."""
    arguments = commands.train_arguments(folder, *SMALL, f"--config.steps={steps}", workdir=workdir)
    result = commands.run("jworld.train", f"--config=configs/{recipe}", *arguments[1:], timeout=900, **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (folder / workdir / "samples" / "rollout.mp4").stat().st_size > 0
    return commands.checksums(folder / workdir, steps)


@pytest.mark.parametrize("recipe", ["ar_mem.py:bidirectional", "ar_distill.py:shortcut"])
def test_a_resumed_run_is_an_uninterrupted_one(recipe: str, tmp_path: pathlib.Path) -> None:
    straight = train(recipe, tmp_path, "straight", 4)
    halfway = train(recipe, tmp_path, "resumed", 2)
    assert halfway != straight
    assert train(recipe, tmp_path, "resumed", 4) == straight
