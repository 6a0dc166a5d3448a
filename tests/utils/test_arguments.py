"""Command lines: the look of help, values of options, mistakes, and changes of a config."""

import argparse
import pathlib
import sys

import pytest

from jworld.utils import arguments, errors

LONG = "a text that is long enough to be wrapped by the formatter, whatever the width of the terminal may be"


def make_parser() -> arguments.Parser:
    parser = arguments.Parser("python -m jworld.toy", f"Do something, {LONG}.\n\nTable:\n  first   1\n  second  2")
    arguments.add_changes(parser, default="as saved", alias=True)
    add = parser.add_argument
    add("source", metavar="FILE", help="file to read")
    add("--seed", type=int, default=0, help="random seed")
    add("--rate", type=float, help="rate in Hz (default: that of the file)")
    add("--out", type=pathlib.Path, required=True, help="file to write")
    add("--count", type=arguments.positive, default=3, help="number of things")
    add("--fast", action="store_true", help="be fast")
    add("--names", action="append", default=[], help="a name; may be repeated")
    add("--share", default="50%", help="share")
    add("--kind", choices=("a", "b"), default="a", help="kind of thing")
    return parser


def test_the_look_of_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = make_parser().format_help()
    assert text.startswith("usage: python -m jworld.toy [-h] ")
    assert "\n\nTable:\n  first   1\n  second  2\n" in text
    lines = [" ".join(line.split()[1:]) for line in text.splitlines() if line.startswith("  -")]
    expected = [
        "INT random seed (default: 0)",
        "FLOAT rate in Hz (default: that of the file)",
        "PATH file to write (required)",
        "INT number of things (default: 3)",
        "be fast (default: off)",
        "TEXT a name; may be repeated (default: none)",
        "TEXT share (default: 50%)",
        "{a,b} kind of thing (default: a)",
    ]
    assert lines[-len(expected) :] == expected
    assert "  FILE                file to read (required)" in text
    assert "--config.KEY VALUE" in text


def test_the_name_of_the_console_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jworld toy", "--help"])
    assert make_parser().format_usage().startswith("usage: jworld toy ")


def test_values() -> None:
    options = make_parser().parse(["in", "--out=x", "--seed", "-3", "--names=a", "--names=b", "--fast"])
    found = (options.source, options.out, options.seed, options.names, options.fast, options.rate)
    assert found == ("in", pathlib.Path("x"), -3, ["a", "b"], True, None)
    assert options.changes == {}


def test_changes_of_a_config() -> None:
    given = ["--config.a.b", "1", "in", "--config.c=x=y", "--set", "d=2", "--out=x", "-config.e=", "--set=c=older"]
    assert make_parser().parse(given).changes == {"a.b": "1", "c": "x=y", "d": "2", "e": ""}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--seed=x"], "--seed: expected an integer, got 'x'"),
        (["--rate=fast"], "--rate: expected a number, got 'fast'"),
        (["--count=0"], "--count: expected a positive integer, got '0'"),
        (["--count=99999999999"], "--count: expected a positive integer, got '99999999999'"),
        (["--out="], "--out: expected a path, got ''"),
        (["--out=gs://bucket/a"], "--out: expected a path on this machine, got 'gs://bucket/a'"),
        (["--sede=1"], "there is no option --sede, did you mean --seed?"),
        (["--fas"], "there is no option --fas, did you mean --fast?"),
        (["--xyz"], "there is no option --xyz (see"),
        (["more"], "'more' is not an option: write --name=value"),
        (["--kind=c"], "--kind: invalid choice: 'c'"),
        (["--config.a"], "--config.a: the value is missing: write --config.a=value"),
        (["--set", "a"], "--set a: expected KEY=VALUE"),
    ],
)
def test_mistakes(extra: list[str], message: str) -> None:
    with pytest.raises(errors.UserError) as found:
        make_parser().parse(["in", "--out=x", *extra])
    assert message in str(found.value)


def test_what_is_missing() -> None:
    with pytest.raises(errors.UserError, match=r"are required: FILE, --out \(see python -m jworld.toy --help\)"):
        make_parser().parse([])


def test_only_some_subcommands_change_a_config() -> None:
    parser = arguments.Parser("python -m jworld.toy", "Do something.")
    commands: argparse._SubParsersAction[arguments.Parser] = parser.add_subparsers(required=True, metavar="COMMAND")
    arguments.add_changes(commands.add_parser("train", help="train"), default="as saved")
    commands.add_parser("show", help="show")
    assert parser.parse(["train", "--config.a=1"]).changes == {"a": "1"}
    with pytest.raises(errors.UserError, match=r"there is no option --config\.a"):
        parser.parse(["show", "--config.a=1"])


def test_a_recipe_and_its_list() -> None:
    parser = arguments.Parser("python -m jworld.toy", "Do something.")
    arguments.add_recipe(parser)
    options = parser.parse(["--config=configs/ar_mem.py:8b", "--config.seed=1", "--config.list"])
    assert (options.config, options.changes, options.list_keys) == ("configs/ar_mem.py:8b", {"seed": "1"}, True)
