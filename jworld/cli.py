"""The console command `jworld`: one name for all commands, of which only the chosen one is imported."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import jworld
from jworld.utils import errors, interrupts

#: Subcommand -> (module with its main function, what it does).
COMMANDS = {
    "train": ("jworld.train", "train a model as a recipe describes, or resume a run"),
    "generate": ("jworld.generate", "generate a video or an answer with a trained model"),
    "play": ("jworld.play.__main__", "play a trained model in a browser, live"),
    "view": ("jworld.play.view", "write episodes or a played session for the Rerun viewer"),
    "evaluate": ("jworld.evaluate", "measure a trained model on held-out data"),
    "precompute": ("jworld.precompute.__main__", "encode videos into training records"),
    "plan": ("jworld.plan", "estimate memory and time of a training step or of generation on a topology"),
    "doctor": ("jworld.doctor", "check this machine, and a recipe on it"),
    "convert": ("conversion.__main__", "import, export and compare PyTorch checkpoints"),
    "config": ("jworld.config", "list all keys of a recipe's or a run's config"),
}


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the subcommand that `argv`, by default the arguments of this process, begins with."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"jworld {jworld.__version__}")
    elif name in COMMANDS:
        # Commands show their own name by this, see `arguments.program`.
        sys.argv = [f"jworld {name}", *rest]
        with interrupts.importing():
            module = importlib.import_module(COMMANDS[name][0])
        module.main()
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise errors.UserError(f"jworld has no command {name!r}: {hint} (see jworld --help)")


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = (f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return "\n".join(
        [
            "usage: jworld COMMAND ...",
            "",
            "Train and run interactive video world models.",
            "",
            "commands:",
            *commands,
            "",
            "options:",
            f"  {'-h, --help':{width}}  show this help and exit",
            f"  {'--version':{width}}  show the version and exit",
            "",
            "jworld COMMAND --help lists the options of a command.",
        ]
    )


if __name__ == "__main__":
    main()
