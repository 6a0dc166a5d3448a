"""Checkpoints copied to a Hugging Face repository while training goes on.

A thread uploads the newest complete checkpoint with config, tokenizer or encoders, and logs. Nothing that happens there
stops or delays a step: what fails is told and tried again later, with the checkpoint that is newest then.
"""

import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import huggingface_hub

from jworld.utils import errors

Upload = Callable[[int], None]

#: Seconds until the next try, after each failure in a row; the last one goes on.
_PAUSES = (30.0, 120.0, 600.0)
_POLL = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Uploads (`config.checkpoint.hub`).

    Attributes:
      repo: such as "name/theworld-rooms", made where it is absent; "" uploads nothing.
      strategy: "every_save", or "end" for the last checkpoint alone.
      private: whether a repository that is made is private.
      patience: minutes that a run waits at its end for the last upload.
    """

    repo: str = ""
    strategy: Literal["every_save", "end"] = "every_save"
    private: bool = False
    patience: float = 15.0

    def __post_init__(self) -> None:
        if self.repo and self.repo.count("/") > 1:
            raise ValueError(f"repo is {self.repo!r}, expected owner/name or name")
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience:g}, expected 0 minutes or more")


def uploader(config: HubConfig, workdir: pathlib.Path) -> Upload:
    """What uploads the checkpoint of a step; the login is that of `hf auth login`, or HF_TOKEN."""

    def upload(step: int) -> None:
        api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=config.repo,
            folder_path=workdir,
            commit_message=f"Step {step}",
            allow_patterns=[
                "config.json",
                "metrics.jsonl",
                "encoders/*",
                f"checkpoints/{step}/*",
                "checkpoints/frozen/*",
            ],
            # The repository has the newest checkpoint alone; what is no longer there stays in its history.
            delete_patterns=["checkpoints/*"],
        )

    return upload


class Uploads:
    """Uploads in the background; a context manager around training. Without a repository it does nothing."""

    def __init__(
        self,
        config: HubConfig,
        checkpoints: pathlib.Path,
        upload: Upload,
        *,
        message: Callable[[str], None],
        pauses: tuple[float, ...] = _PAUSES,
    ) -> None:
        """`checkpoints` is the folder whose sub-folder STEP appears when the checkpoint of a step is complete."""
        self._config, self._checkpoints, self._upload = config, checkpoints, upload
        self._message, self._pauses = message, pauses
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._done: int | None = None
        self._closing = False
        # Of the kind that does not keep a process alive: a hub that hangs must not hold a finished run.
        self._thread = threading.Thread(target=self._work, name="hub uploads", daemon=True)
        if config.repo:
            self._thread.start()

    def saved(self, step: int, *, is_last: bool) -> None:
        """Upload the checkpoint of a step once its files are complete; one that waits for its turn is passed over."""
        if self._config.repo and (is_last or self._config.strategy == "every_save"):
            with self._changed:
                self._wanted = step
                self._changed.notify()

    def __enter__(self) -> "Uploads":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if not self._config.repo:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=60 * self._config.patience if kind is None else 0)
        if kind is None and self._wanted is not None and self._done != self._wanted:
            self._message(
                f"the checkpoint of step {self._wanted} is not at {self._config.repo}: the same command again tries it "
                "once more"
            )

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._wanted != self._done)
                step, closing = self._wanted, self._closing
            if step is None or step == self._done:
                return
            try:
                self._wait_for_files(step)
                self._upload(step)
            except Exception as error:  # whatever a network and a library can raise
                failures += 1
                problem = f"upload of step {step} to {self._config.repo} failed: {errors.one_line(error)}"
                # At the end one failure is enough: the run would wait for nothing.
                if closing:
                    self._message(problem)
                    return
                pause = self._pauses[min(failures, len(self._pauses)) - 1]
                self._message(f"{problem}; trying again in {pause:g} s")
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=pause)
                continue
            failures, self._done = 0, step
            self._message(f"uploaded step {step} to {self._config.repo}")

    def _wait_for_files(self, step: int) -> None:
        """Checkpoints are written in the background, under another name until they are complete."""
        while not (self._checkpoints / str(step)).is_dir():
            with self._changed:
                newer = self._wanted != step
            if newer or (self._closing and not any(self._checkpoints.glob(f"{step}.*"))):
                raise FileNotFoundError(f"{self._checkpoints / str(step)} is not there any more")
            time.sleep(_POLL)
