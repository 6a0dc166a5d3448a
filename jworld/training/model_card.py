"""The README.md of an uploaded run: what it is, how to load it, its settings, and the numbers that were measured."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jworld.utils import hub_folders

#: Values of the log that describe the training, by their names there.
_LOGGED = {"loss_mean": "training loss, mean of the last interval", "accuracy": "token accuracy in training"}
_HELD_OUT = "held_out"
#: Sections of an evaluation with its settings and answers, which the card leaves out.
_SETTINGS = ("options", "config", "checkpoint", "step", "answers", "tasks")
_SHOWN = ("steps", "global_batch", "init_from", "optimizer.name", "optimizer.learning_rate", "optimizer.trainable")


def text(repo: str, step: int, workdir: pathlib.Path, exported: Mapping[str, Any] | None) -> str:
    """Return the card of a run.

    Args:
      repo: repository of the upload.
      step: step of the checkpoint.
      workdir: folder of the run, whose config, log and evaluation are read.
      exported: content of the config.json of the export next to the run; None without an export.
    """
    config = _read(workdir / "config.json")
    classes = (exported or {}).get("architectures") or [(exported or {}).get("_class_name")]
    name = repo.rsplit("/", 1)[-1]
    lines = [
        "---",
        f"library_name: {_library(exported)}",
        "tags:",
        *(f"- {tag}" for tag in ("jworld", str(config.get("system", "")))),
        "---",
        "",
        f"# {name}",
        "",
        f"A model of the system `{config.get('system')}`, trained with jworld; checkpoint of step {step}.",
        "",
        "```python",
        "import jworld",
        "",
        f'run = jworld.load("{repo}")',
        "```",
        "",
        f"The folder `{hub_folders.RUN}` has the run: its config, the checkpoint, what sampling needs, and the log.",
    ]
    if exported is not None:
        lines.append(f"The other files are an export{f' for `{classes[0]}`' if classes[0] else ''}.")
    lines += ["", "## Measured", "", *_table(("measure", "value"), _measured(workdir))]
    lines += ["", "## Training", "", *_table(("setting", "value"), _settings(config))]
    return "\n".join(lines) + "\n"


def _library(exported: Mapping[str, Any] | None) -> str:
    if exported is None:
        return "jworld"
    return "transformers" if "architectures" in exported else "diffusers" if "_class_name" in exported else "jworld"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return ["Nothing yet."]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _measured(workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Return the last values of the log, and those of the evaluation if there was one."""
    last: dict[str, float] = {}
    log = workdir / "metrics.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a line that is being written
            continue
        last |= {key: value for key, value in row.items() if key in _LOGGED or _HELD_OUT in key}
    rows = [(_LOGGED.get(key, key.replace("_", " ")), f"{value:.4g}") for key, value in last.items()]
    evaluation = _read(workdir / "evaluation" / "evaluation.json")
    measured = {key: value for key, value in evaluation.items() if key not in _SETTINGS}
    title = f"evaluation at step {evaluation['step']}" if evaluation.get("step") is not None else "evaluation"
    return [*rows, *((f"{title}: {name}", f"{value:.4g}") for name, value in _numbers(measured))]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key in _SHOWN:
        node: Any = config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node not in (None, ""):
            rows.append((f"`{key}`", f"`{node}`".replace("|", "\\|")))
    return rows


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} without one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
