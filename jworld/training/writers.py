"""Writers of a run's log: `metrics.jsonl`, TensorBoard, Weights & Biases."""

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
    """Receiver of rows {"step": int, name: number or None}."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`, oldest first; skips a last line left incomplete by a killed run."""
    path = workdir / FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class JsonLines:
    """Writer of `metrics.jsonl`, one JSON object per line; drops the lines of an earlier launch after `start_step`."""

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        path = workdir / FILE
        lines = [json.dumps(row) + "\n" for row in read(workdir) if row["step"] <= start_step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(lines))
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Writer of event files in `tensorboard/`; marks events of an earlier launch after `start_step` as void."""

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._board = tensorboardX.SummaryWriter(str(workdir / BOARD), purge_step=start_step + 1)

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """Writer of a W&B run in the project "jworld", named after the workdir and resumed by every launch.

    A resumed run logs again the steps that a kill undid, with the same values: W&B cannot remove them.
    """

    def __init__(self, workdir: pathlib.Path, mode: str, *, first_launch: float, config: Mapping[str, Any]) -> None:
        """Start or resume the W&B run.

        Raises:
          UserError: the package is missing.
        """
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
