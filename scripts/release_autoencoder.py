"""Write a trained autoencoder to one file, with its EMA weights and latents scaled to unit standard deviation.

    python scripts/release_autoencoder.py --run runs/autoencoder --output runs/autoencoder/autoencoder.safetensors

The standard deviation is measured on the run's training videos. Encode videos with the file by
`python -m jworld.precompute --autoencoder FILE`.
"""

import pathlib
from collections.abc import Sequence

import rich.console

from jworld.models.autoencoders import network
from jworld.systems import runs
from jworld.systems.autoencoder import release
from jworld.utils import arguments, errors, outputs


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser("python scripts/release_autoencoder.py", str(__doc__))
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a run of configs/autoencoder.py")
    parser.add_argument(
        "--step", type=arguments.training_step, help="step of the checkpoint to release (default: the newest)"
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file to write, .safetensors")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="precision of the file; float16 halves it",
    )
    options = parser.parse(argv)
    if options.output.exists():
        raise errors.UserError(f"--output {options.output} exists already: remove it or choose another name")
    outputs.check_file("--output", options.output)
    run = runs.load(options.run, options.step)
    if not isinstance(run.model, network.VideoAutoencoder):
        raise errors.UserError(f"--run: expected a run of configs/autoencoder.py, got another system in {options.run}")
    release.release(
        run.model, run.system.data.open(), options.output, dtype=options.dtype, console=rich.console.Console()
    )
    size = options.output.stat().st_size / 1e6
    print(f"wrote the autoencoder of step {run.step} to {options.output} ({size:.1f} MB)")
    print(f"next: python -m jworld.precompute --autoencoder {options.output} --width ... --height ... --input ...")


if __name__ == "__main__":
    main()
