"""The end of a command: exit codes, one sentence, and output that nobody reads."""

import pathlib
import subprocess
import sys

import pytest

from jworld.utils import errors

PROGRAM = """
import sys
from jworld.utils import errors

@errors.exit_on_user_error
def main():
    print("line\\n" * int(sys.argv[1]))
    if sys.argv[2] == "help":
        sys.exit(0)
    if sys.argv[2] == "socket":
        raise BrokenPipeError("a connection to another process")

main()
"""


@pytest.mark.parametrize(
    ("error", "code"), [(errors.UserError("a is 1, expected 2"), 2), (errors.RestartError("preempted"), 75)]
)
def test_one_sentence(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    @errors.exit_on_user_error
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


# A short text is still buffered when the command ends, a long one is not.
@pytest.mark.parametrize("lines", [3, 100_000])
@pytest.mark.parametrize("end", ["help", "return"])
def test_output_that_nobody_reads_ends_silently(tmp_path: pathlib.Path, lines: int, end: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", str(lines), end], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) == errors.UNREAD


def test_another_broken_pipe_is_a_defect(tmp_path: pathlib.Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    result = subprocess.run(
        [sys.executable, "program.py", "1", "socket"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "BrokenPipeError: a connection to another process" in result.stderr


def test_a_current_folder_that_was_deleted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit) as ended:
        errors.exit_on_user_error(lambda: pytest.fail("the command runs"))()
    assert ended.value.code == errors.MISTAKE
    assert capsys.readouterr().err == (
        "error: the current folder cannot be used (No such file or directory): change to another one\n"
    )
