"""The command `python -m jworld.precompute.to_lerobot`: writes recorded or played episodes as a LeRobot data set."""

import pathlib
from collections.abc import Sequence

import rich.console

from jworld.data.recording import episodes, lerobot_sets
from jworld.data.records import shards
from jworld.utils import arguments, outputs
from jworld.utils.errors import UserError, exit_on_user_error

COMMAND = "python -m jworld.precompute.to_lerobot"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = arguments.Parser(
        COMMAND,
        "Write episodes of scripts/record_episodes.py or jworld play as a LeRobot data set of version 3.0, with keys "
        "as actions and camera poses as states.",
    )
    parser.add_argument("--input", required=True, type=pathlib.Path, help="folder of the episodes")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="new folder for the data set")
    options = parser.parse(argv)
    console = rich.console.Console()
    outputs.check_folder("--output", options.output)
    if options.output.exists() and any(options.output.iterdir()):
        raise UserError(f"--output {options.output} is not empty, expected a new folder: give another one or remove it")
    count = len(episodes.read_manifest(options.input)["episodes"])
    with (
        outputs.partial_folder(options.output, fix="free some space") as partial,
        shards.meter("writing", count, unit="episodes", console=console) as advance,
    ):
        lerobot_sets.write(options.input, partial, advance=lambda: advance(0, 1))
        partial.replace(options.output)
    console.print(
        f"{options.output}: {count} episodes. Load them with lerobot as "
        f"LeRobotDataset('owner/name', root={str(options.output)!r})",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    main()
