"""The notebooks run from first to last cell, with small parameters, in a folder that looks like a checkout."""

import os
import pathlib
import shutil
from typing import Any

import nbclient
import nbformat
import pytest
from guides import shrink

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
#: Small values for the cell with the tag "parameters", and what the notebook prints if it did its work.
NOTEBOOKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "train_tiny": (
        {"STEPS": 2, "OPTIONS": [*shrink.ROOMS, *shrink.RUN[1:]]},
        ["trained 2 steps", "(29, 96, 128, 3) uint8", "evaluation.png"],
    ),
    "convert_and_generate": ({}, ["wrote", "tensors are those of the published folder, number by number"]),
    "plan_a_pod": (
        {
            "CONFIG": "configs/ar_mem.py",
            "TOPOLOGIES": ["v5e-4"],
            "OPTIONS": ["--config.model.num_layers=2", "--config.optimizer.name=adamw"],
        },
        ["it fits", "v5e-4 compute", "{'data': 1, 'fsdp': 4, 'sequence': 1}"],
    ),
    "play_a_world": ({"TURN": 1}, ["PSNR of the view that comes back", "ended with exit code 130"]),
}


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name: str) -> None:
    """Outputs would be of another machine, and as large as their images."""
    notebook = read(name)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("scripts", "pyproject.toml"):
        (tmp_path / part).symlink_to(ROOT / part)
    for part in ("assets", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "notebooks").mkdir()
    for key, value in {**shrink.ENVIRONMENT, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}.items():
        monkeypatch.setenv(key, value)
    # With this variable the kernel does not show what commands print.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    values, expected = NOTEBOOKS[name]
    notebook = read(name)
    set_parameters(notebook, values)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path / "notebooks"}})
    client.execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    for text in expected:
        assert text in printed, printed[-3000:]


def set_parameters(notebook: Any, values: dict[str, Any]) -> None:
    """Insert a cell after the one with the tag "parameters", as papermill does; each value replaces an existing one."""
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    for key in values:
        assert f"{key} = " in notebook.cells[place].source or f"{key}: " in notebook.cells[place].source
    source = "\n".join(f"{key} = {value!r}" for key, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
