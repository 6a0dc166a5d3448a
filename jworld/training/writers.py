"""Where the lines of a run's log go: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import tensorboardX

from jworld.utils import errors, files

FILE = "metrics.jsonl"
BOARD = "tensorboard"
WANDB_PROJECT = "jworld"

Row = Mapping[str, Any]
WandbMode = Literal["off", "offline", "online"]


class Writer(Protocol):
    """Takes rows {"step": int, name: number or None}."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, oldest first; a last line that a killed run left half-written is passed over."""
    path = workdir / FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class JsonLines:
    """`metrics.jsonl`: one JSON object a line; the lines of an earlier launch after `start_step` are dropped."""

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        path = workdir / FILE
        kept = [json.dumps(row) + "\n" for row in read(workdir) if row["step"] <= start_step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(kept))
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files in `tensorboard/`; what an earlier launch wrote after `start_step` is marked as void."""

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._board = tensorboardX.SummaryWriter(str(workdir / BOARD), purge_step=start_step + 1)

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of the project "jworld", named after the workdir; every launch of it goes on with the same one.

    A resumed run writes the steps again that a kill undid, with the same values: W&B takes nothing back.
    """

    def __init__(self, workdir: pathlib.Path, mode: str, *, first_launch: float, config: Mapping[str, Any]) -> None:
        """`UserError` where the package is missing."""
        try:
            import wandb
        except ImportError as error:
            raise errors.UserError(
                f"config.log.wandb is {mode!r} but the package wandb is missing: pip install 'jworld[wandb]', or set "
                "it to off"
            ) from error
        identity = hashlib.sha256(f"{workdir.resolve()} {first_launch}".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=WANDB_PROJECT,
            name=workdir.name,
            id=identity,
            resume="allow",
            mode=mode,
            dir=str(workdir),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        self._run.log({name: value for name, value in row.items() if value is not None})

    def close(self) -> None:
        self._run.finish()
