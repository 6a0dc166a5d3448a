"""Write a trained autoencoder to one file, with its EMA weights and latents scaled to unit standard deviation.

    python scripts/release_autoencoder.py --run runs/autoencoder --output runs/autoencoder/autoencoder.safetensors

The standard deviation is measured on the run's training videos. Encode videos with the file by
`python -m jworld.precompute --autoencoder FILE`.
"""

import argparse
import pathlib
from collections.abc import Sequence

import rich.console

from jworld.models.autoencoders import network
from jworld.systems import runs
from jworld.systems.autoencoder import release
from jworld.utils import errors


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a run of configs/autoencoder.py")
    parser.add_argument("--step", type=int, help="step of the checkpoint to release (default: the newest)")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="file to write, .safetensors")
    arguments = parser.parse_args(argv)
    if arguments.output.exists():
        raise errors.UserError(f"--output {arguments.output} exists already: remove it or choose another name")
    run = runs.load(arguments.run, arguments.step)
    if not isinstance(run.model, network.VideoAutoencoder):
        raise errors.UserError(
            f"--run: expected a run of configs/autoencoder.py, got another system in {arguments.run}"
        )
    release.release(run.model, run.system.data.open(), arguments.output, console=rich.console.Console())
    size = arguments.output.stat().st_size / 1e6
    print(f"wrote the autoencoder of step {run.step} to {arguments.output} ({size:.1f} MB)")
    print(f"next: python -m jworld.precompute --autoencoder {arguments.output} --width ... --height ... --input ...")


if __name__ == "__main__":
    main()
