"""Command lines: one look for the help of every command, and `--config.a.b=value` wherever a config can be changed.

Every command builds a `Parser`. Its help shows for each option the type of the value, and after the text the default or
"(required)". A mistake is a `UserError` of one sentence.
"""

import argparse
import difflib
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from jworld.utils import errors

#: Names of types in help, where an option gives none of its own.
_TYPES: dict[object, str] = {int: "INT", float: "FLOAT", pathlib.Path: "PATH", str: "TEXT", None: "TEXT"}
#: Metavars of options that are paths, and of options whose text may be empty.
_PATHS = ("DIR", "dir", "FILE", "PATH")
_FREE_TEXT = (None, "TEXT")
_CHANGE = re.compile(r"--?config\.([A-Za-z_][\w.]*)(?:=(.*))?", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: The option that lists the keys of a config, which looks like a change and is none.
_LIST = "--config.list"


def program(command: str) -> str:
    """Return how the user started `command`: "jworld train" through the console command, else `command` itself."""
    return sys.argv[0] if sys.argv[0].startswith("jworld ") else command


class Formatter(argparse.RawDescriptionHelpFormatter):
    """The look of an option: `--seed INT   random seed (default: 0)`."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "kind", action.type)
        return kind if isinstance(kind, str) else _TYPES.get(kind, "VALUE")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(_filled(paragraph, width) for paragraph in text.strip().split("\n\n"))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if isinstance(action, argparse._HelpAction) or re.search(r"\((default|required)\b", text):
            return text
        if action.required and action.nargs not in ("?", "*"):
            return f"{text} (required)"
        if action.nargs == 0 and action.default is False:
            return f"{text} (default: off)"
        if action.default is None:
            return text
        return f"{text} (default: {_shown(action.default)})"


def _filled(paragraph: str, width: int) -> str:
    """Return a paragraph in lines of `width`; one that is laid out by hand stays as it is."""
    by_hand = paragraph.startswith(" ") or "\n " in paragraph
    return paragraph if by_hand else textwrap.fill(" ".join(paragraph.split()), width)


def _shown(value: Any) -> str:
    """Return a default as the user would type it."""
    if value in ("", (), []):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """An argument parser with the shared look, whose mistakes are `UserError`s.

    Args:
      command: how the command is started without the console command, such as "python -m jworld.train".
      description: what the command does, in sentences.
      epilog: what stands after the options.
    """

    def __init__(self, command: str = "", description: str = "", *, prog: str = "", **options: Any) -> None:
        super().__init__(
            prog=prog or program(command),
            description=description,
            formatter_class=Formatter,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self._given: set[str] = set()
        self._only_with: list[tuple[str, tuple[str, ...]]] = []
        self._not_with: list[tuple[str, tuple[str, ...]]] = []
        self._positionals.title = "arguments"
        self.register("type", pathlib.Path, _path)
        self.add_argument("-h", "--help", action="help", help="show this help and exit")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse `argv`, by default the arguments of this process.

        If the parser or its chosen subparser has `add_changes`, `changes` holds the texts of --config.a.b by key.

        Raises:
          UserError: an option is unknown or missing, has an impossible value, or would have no effect.
        """
        arguments, changes = split_changes(sys.argv[1:] if argv is None else argv)
        for parser in self._parsers():
            parser._given.clear()
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error(self._unknown(unknown[0]))
        for parser in self._parsers():
            parser._check_effects()
        if hasattr(options, "changes"):
            older = dict(map(_setting, getattr(options, "settings", None) or []))
            options.changes = older | changes
        elif changes:
            self.error(f"there is no option --config.{next(iter(changes))}")
        return options

    def only_with(self, option: str, *others: str) -> None:
        """Refuse an option where none of `others` is given, without which it has no effect."""
        self._only_with.append((option, others))

    def not_with(self, option: str, *others: str) -> None:
        """Refuse an option where one of `others` is given, with which it has no effect."""
        self._not_with.append((option, others))

    def _parsers(self) -> Iterator["Parser"]:
        """Yield this parser and those of its commands."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser._parsers()

    def _check_effects(self) -> None:
        for option, others in self._only_with:
            if option in self._given and self._given.isdisjoint(others):
                self.error(f"{option} has no effect without {' or '.join(others)}: give it too, or leave {option} out")
        for option, others in self._not_with:
            if option in self._given and (found := [other for other in others if other in self._given]):
                self.error(f"{option} has no effect with {found[0]}: leave one of them out")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Note that an option is given, and refuse an empty text where a name is expected."""
        self._given.update(action.option_strings)
        if "" in arg_strings and action.type is None and action.metavar not in _FREE_TEXT:
            expected = "a path" if action.metavar in _PATHS else str(action.metavar)
            raise argparse.ArgumentError(action, f"expected {expected}, got ''")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        message = re.sub(r"invalid int value: (.*)", r"expected an integer, got \1", message)
        message = re.sub(r"invalid float value: (.*)", r"expected a number, got \1", message)
        raise errors.UserError(f"{message} (see {self.prog} --help)")

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"{argument!r} is not an option: write --name=value"
        name = argument.partition("=")[0]
        near = difflib.get_close_matches(name, list(self._option_string_actions), 1)
        return f"there is no option {name}" + (f", did you mean {near[0]}?" if near else "")


def add_recipe(parser: Parser, *, required: bool = True) -> None:
    """Add `--config=RECIPE`, `--config.a.b=value` and `--config.list`."""
    note = "required" if required else "default: none"
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="recipe, a Python file that is executed, such as configs/ar_mem.py, or configs/ar_mem.py:8b for a variant "
        f"({note})",
    )
    add_changes(parser, default="as in the recipe")
    parser.add_argument(_LIST, action="store_true", dest="list_keys", help="print all keys of the config and exit")


def add_checkpoint(parser: Parser) -> None:
    """Add `--checkpoint=DIR`, which is required, and `--step=INT`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="folder of a run, or one with weights, or hub id of one",
    )
    parser.add_argument("--step", type=positive, help="training step of the checkpoint (default: the newest)")


def add_changes(parser: Parser, *, default: str, alias: bool = False) -> None:
    """Add `--config.a.b=value`; with `alias` also its old form `--set a.b=value`."""
    parser.set_defaults(changes={})
    # Only shown in the help: `parse` takes the changes out before anything is parsed.
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        dest=argparse.SUPPRESS,
        help=f"value for a key of the config, such as --config.seed=1; may be repeated (default: {default})",
    )
    if alias:
        parser.add_argument(
            "--set",
            action="append",
            dest="settings",
            metavar="KEY=VALUE",
            help="old form of --config.KEY=VALUE, accepted until the next release (default: none)",
        )


def split_changes(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split a command line into other arguments and the texts of `--config.a.b=value`, by key.

    The value may also be the next argument, as in `--config.seed 1`.

    Raises:
      UserError: a value is missing.
    """
    rest: list[str] = []
    changes: dict[str, str] = {}
    following = iter(arguments)
    for argument in following:
        found = _CHANGE.fullmatch(argument)
        if argument == "--":
            return [*rest, argument, *following], changes
        if found is None or argument == _LIST:
            rest.append(argument)
            continue
        key, text = found.groups()
        if text is None and (text := next(following, None)) is None:
            raise errors.UserError(f"--config.{key}: the value is missing: write --config.{key}=value")
        changes[key] = text
    return rest, changes


def _setting(text: str) -> tuple[str, str]:
    """ "a.b=value" -> ("a.b", "value")."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise errors.UserError(f"--set {text}: expected KEY=VALUE, such as sample.rollout.num_steps=4")
    return key.strip().removeprefix("config."), value.strip()


def checked(kind: str, words: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a `type` for `add_argument`: `kind` in help, and "expected `words`" where `convert` raises ValueError."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}") from error

    parse.kind = kind  # type: ignore[attr-defined]
    return parse


def _path(text: str) -> pathlib.Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    # A pathlib.Path would make one slash of two, and a local folder "gs:" of it.
    if _ADDRESS.match(text):
        raise argparse.ArgumentTypeError(
            f"expected a path on this machine, got {text!r}: download it first, or mount the bucket, as docs/pods.md "
            "shows"
        )
    return pathlib.Path(text)


def integer(least: int, most: int, words: str = "") -> Callable[[str], Any]:
    """Return a `type` for `add_argument`: an integer from `least` to `most`; `words` describe it in errors."""

    def convert(text: str) -> int:
        if not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return checked("INT", words or f"an integer from {least} to {most}", convert)


def number(least: float, most: float, words: str = "") -> Callable[[str], Any]:
    """Return a `type` for `add_argument`: a finite number from `least` to `most`; `words` describe it in errors."""

    def convert(text: str) -> float:
        if not least <= float(text) <= most:
            raise ValueError(text)
        return float(text)

    return checked("FLOAT", words or f"a number from {least:g} to {most:g}", convert)


finite = number(-sys.float_info.max, sys.float_info.max, "a finite number")
positive = integer(1, 2**31 - 1, "a positive integer")
#: Training steps, which checkpoints are named by.
training_step = integer(0, 2**31 - 1)
#: Random seeds, as all libraries take them.
seed = integer(0, 2**32 - 1, "an integer of 32 bits that is not negative")
