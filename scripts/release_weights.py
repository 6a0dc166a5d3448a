"""Write the released weights of a run: a folder with config, encoders and one float16 safetensors file.

    python scripts/release_weights.py --run runs/ar_mem-starter --output assets/starter
    python scripts/release_weights.py --run runs/matrix_lora-base --output assets/matrix \
        --autoencoder assets/starter/encoders/autoencoder.safetensors

Fine-tune from the folder with `--config.init_from=<folder>`; measure it with
`python -m jworld.evaluate --checkpoint <folder>`.
"""

import filecmp
import pathlib
import shutil
from collections.abc import Sequence

import ml_collections
import numpy as np
from flax import nnx

from jworld.data import records
from jworld.systems import runs
from jworld.training import weights
from jworld.utils import arguments, errors, files, outputs
from jworld.utils import config as run_config


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser("python scripts/release_weights.py", str(__doc__))
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a training run")
    parser.add_argument(
        "--step", type=arguments.training_step, help="step of the checkpoint to release (default: the newest)"
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder to write; must not exist")
    parser.add_argument(
        "--autoencoder",
        type=pathlib.Path,
        metavar="FILE",
        help="file with the autoencoder of the run, which the weights then refer to (default: they hold a copy)",
    )
    options = parser.parse(argv)
    if options.output.exists():
        raise errors.UserError(f"--output {options.output} exists already: remove it or choose another folder")
    outputs.check_folder("--output", options.output)
    config = run_config.load(options.run)
    if not (encoders := options.run / runs.ENCODERS).is_dir():
        raise errors.UserError(
            f"--run {options.run} has no folder {runs.ENCODERS}, expected the manifest or tokenizer that "
            f"training keeps there and sampling needs: copy it to {encoders}"
        )
    if options.autoencoder is not None:
        config = referring(config, options.autoencoder, encoders / records.AUTOENCODER_FILE)
    model, step = runs.load_model(options.run, config, options.step)
    partial = options.output.with_name(options.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        run_config.save(config, partial)
        for path in sorted(filter(pathlib.Path.is_file, encoders.rglob("*"))):
            if options.autoencoder is not None and path.name == records.AUTOENCODER_FILE:
                continue
            target = partial / path.relative_to(options.run)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.copy(path, target)
        weights.save(nnx.state(model, nnx.Param), partial / runs.WEIGHTS, np.float16)
        partial.rename(options.output)
    except OSError as error:
        raise errors.UserError(
            f"--output {options.output} could not be written ({errors.one_line(error)}): free space, or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = (options.output / runs.WEIGHTS).stat().st_size
    print(f"wrote the weights of step {step} to {options.output} ({size / 1e6:.1f} MB)")
    print(f"next: python -m jworld.evaluate --checkpoint {options.output}")


def referring(config: ml_collections.ConfigDict, file: pathlib.Path, own: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the config with a file in place of the run's own autoencoder; a `UserError` if they differ."""
    if not (own.is_file() and file.is_file() and filecmp.cmp(own, file, shallow=False)):
        raise errors.UserError(
            f"--autoencoder {file} is not the autoencoder of the run, {own}: give a file with its contents, or leave "
            "the option out"
        )
    found = ml_collections.ConfigDict(config)
    with found.unlocked():
        found.sample.encoders = {**found.sample.get("encoders", {}), "autoencoder": str(file)}
    return found


if __name__ == "__main__":
    main()
