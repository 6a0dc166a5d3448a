"""The console command, and the help of every command: complete, in one look, in plain words."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import jworld
from jworld import cli
from jworld.utils import errors
from scripts import check_words

ROOT = pathlib.Path(__file__).parents[1]
#: Modules that are started but have no options: the console command itself, and a process of the planner.
WITHOUT_OPTIONS = ("jworld.__main__", "jworld.cli", "jworld.planning.worker")
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("jworld", "conversion")
    for path in (ROOT / package).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
)
HELPS = [
    *((module, ()) for module in PROGRAMS if module not in WITHOUT_OPTIONS),
    ("jworld.evaluate", ("compare",)),
    *(("conversion.__main__", (name,)) for name in ("import", "fuse", "export", "inspect", "verify")),
]


def read_help(module: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def entries(text: str) -> dict[str, str]:
    """The options and arguments of a help text: name -> description in one line."""
    found: dict[str, list[str]] = {}
    for block in text.split("\n\n")[1:]:
        title, *lines = block.splitlines()
        if not re.fullmatch(r"[\w -]+:", title) or title in ("formats:", "examples:", "commands:"):
            continue
        for line in lines:
            if match := re.match(r" {2}(-\S+|\w\S*)", line):
                found[match[1].rstrip(",")] = [line.strip()]
            else:
                next(reversed(found.values())).append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}


def test_every_command_is_tried() -> None:
    assert {module for module, _ in cli.COMMANDS.values()} <= {module for module, _ in HELPS}


@pytest.mark.parametrize(("module", "arguments"), HELPS)
def test_help(
    module: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["python"])
    text = read_help(module, arguments, capsys)
    program = " ".join(["python -m", module.removesuffix(".__main__"), *arguments])
    assert text.startswith(f"usage: {program} [-h]")
    description = text.split("\n\n")[1]
    assert re.match(r"[A-Z]", description)
    assert description.endswith(".")
    found = entries(text)
    assert re.fullmatch(r"-h, --help +show this help and exit", found.pop("-h"))
    for name, entry in found.items():
        if name != "COMMAND":
            assert re.search(r"\((default: .+|required.*)\)$", entry), (
                f"{name} has neither a default nor 'required': {entry}"
            )
            assert not re.search(r"[.;] ?\((default|required)", entry), entry
    for pattern, replacement in check_words.PATTERNS:
        assert not (bad := pattern.search(text)), f"{bad}: {replacement}"


def test_the_console_command_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: jworld COMMAND")
    for name, (_, summary) in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", text, re.MULTILINE)
    cli.main([])
    assert capsys.readouterr().out == text
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jworld {jworld.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_shows_its_own_name(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jworld", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: jworld {name} [-h]")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "jworld has no command 'trian': did you mean train?"),
        (["xyz"], "jworld has no command 'xyz': expected one of train, generate"),
        (["config", "--config=configs/none.py"], "there is no file configs/none.py"),
        (["plan", "--topolgy=x"], "there is no option --topolgy, did you mean --topology? (see jworld plan --help)"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["jworld", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == errors.MISTAKE
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1


def test_nothing_slow_is_imported_before_a_command_is_chosen() -> None:
    code = (
        "import sys\n"
        "from jworld import cli\n"
        "cli.main(['--help'])\n"
        "print(sorted({'jax', 'numpy', 'flax', 'rich'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_keys_of_a_recipe_and_a_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["jworld"])
    changed = ("--config=configs/ar_mem.py", "--config.loss.logit_std=2")
    cli.main(["config", *changed])
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert re.search(r" 2\.0 +command line +a number from 0 to 100: ", lines["loss.logit_std"])
    assert re.search(r" 192 +recipe +an integer from 1 to \d+: ", lines["model.width"])
    assert re.search(r" 256\.0 +default +a number from 1 to ", lines["model.rope_theta"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *changed, "--config.list"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == text
    cli.main(["config", "--config=assets/starter"])
    assert re.search(r"^model.width +192 +saved ", capsys.readouterr().out, re.MULTILINE)


def test_help_that_nobody_reads_to_its_end() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jworld", "config", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    # Without a buffer argparse itself hides that nobody reads.
    assert process.wait(timeout=120) in (0, errors.UNREAD)
