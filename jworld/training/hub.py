"""Background uploads of checkpoints to a Hugging Face repository during training.

A thread uploads the newest complete checkpoint with config, tokenizer or encoders, and logs, next to an export for
other programs and a model card. Uploads never stop or delay a step: a failure is reported, and the newest checkpoint is
tried again later.
"""

import dataclasses
import fnmatch
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import huggingface_hub

from jworld.training import model_card
from jworld.utils import errors, hub_folders, ranges

Upload = Callable[[int], None]
#: Step, folder to create -> content of the config.json of the export; None if the model cannot be exported.
Export = Callable[[int, pathlib.Path], dict[str, Any] | None]

#: Seconds until the next try, after each failure in a row; the last one repeats.
_PAUSES = (30.0, 120.0, 600.0)
_POLL = 0.5
#: Beginning of the name of the folder in which an upload is put together, within that of the run.
#: First letters of the folder from which an upload is sent.
STAGING = ".upload-"
_NAME = r"\w(?:[\w.-]{0,94}\w)?"
#: Names that the hub accepts, see huggingface_hub.utils.validate_repo_id.
_REPO = re.compile(rf"(?!.*(?:--|\.\.|\.git$))(?:{_NAME}/)?{_NAME}", re.ASCII)
_EXPORT = "export"
_FILES = ("config.json", "metrics.jsonl", "encoders/*", "checkpoints/frozen/*", "evaluation/evaluation.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Settings of uploads (`config.checkpoint.hub`).

    Attributes:
      repo: repository such as "name/theworld-rooms", created if absent; "" uploads nothing.
      strategy: "every_save", or "end" for the last checkpoint only.
      private: whether a new repository is private.
      patience: minutes that a run waits at its end for the last upload.
    """

    repo: str = ""
    strategy: Literal["every_save", "end"] = "every_save"
    private: bool = False
    patience: ranges.Minutes = 15.0

    def __post_init__(self) -> None:
        if self.repo and not _REPO.fullmatch(self.repo):
            raise ValueError(
                f"repo is {self.repo!r}, expected owner/name or name, of letters, digits, '-', '_' and '.', each at "
                "most 96 long"
            )
        ranges.check(self)


def uploader(config: HubConfig, workdir: pathlib.Path, export: Export) -> Upload:
    """Return a function that uploads the checkpoint of a step; the login is that of `hf auth login`, or HF_TOKEN.

    The repository has the export and the model card at its top and the run in a sub-folder, see
    `jworld.utils.hub_folders`. If the model cannot be exported, the upload has no export.
    """

    def upload(step: int) -> None:
        api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.create_repo(config.repo, private=config.private, exist_ok=True)
        for rest in workdir.glob(f"{STAGING}*"):  # of an upload that was killed
            shutil.rmtree(rest, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=workdir, prefix=STAGING) as name:
            folder = pathlib.Path(name)
            exported = export(step, folder / _EXPORT)
            _link(workdir, folder / hub_folders.RUN, [*_FILES, f"checkpoints/{step}/*"])
            card = model_card.text(config.repo, step, workdir, exported)
            if exported is not None:
                for file in (folder / _EXPORT).iterdir():
                    file.rename(folder / file.name)
                (folder / _EXPORT).rmdir()
            (folder / "README.md").write_text(card, encoding="utf-8")
            api.upload_folder(
                repo_id=config.repo,
                folder_path=folder,
                commit_message=f"Step {step}",
                # The repository has only the newest checkpoint; older ones stay in its history.
                delete_patterns=[f"{hub_folders.RUN}/*", "*.safetensors", "*.safetensors.index.json"],
            )

    return upload


def _link(origin: pathlib.Path, target: pathlib.Path, patterns: Sequence[str]) -> None:
    """Link the files of a folder that match a pattern to another folder, or copy them."""
    for path in origin.rglob("*"):
        name = path.relative_to(origin).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target / name)
            except OSError:
                shutil.copyfile(path, target / name)


class Uploads:
    """Background uploads, as a context manager around training; without a repository it does nothing."""

    def __init__(
        self,
        config: HubConfig,
        checkpoints: pathlib.Path,
        upload: Upload,
        *,
        message: Callable[[str], None],
        pauses: tuple[float, ...] = _PAUSES,
    ) -> None:
        """Start the thread; the sub-folder STEP of `checkpoints` appears once that checkpoint is complete."""
        self._config, self._checkpoints, self._upload = config, checkpoints, upload
        self._message, self._pauses = message, pauses
        self._changed = threading.Condition()
        self._requested: int | None = None
        self._done: int | None = None
        self._closing = False
        # A daemon thread: a hub that hangs must not keep the process of a finished run alive.
        self._thread = threading.Thread(target=self._work, name="hub uploads", daemon=True)
        if config.repo:
            self._thread.start()

    def saved(self, step: int, *, is_last: bool) -> None:
        """Upload the checkpoint of a step once its files are complete; it replaces one that still waits."""
        if self._config.repo and (is_last or self._config.strategy == "every_save"):
            with self._changed:
                self._requested = step
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
        if kind is None and self._requested is not None and self._done != self._requested:
            self._message(
                f"the checkpoint of step {self._requested} was not uploaded to {self._config.repo}: "
                "run the same command again to upload it"
            )

    def _work(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._requested != self._done)
                step, closing = self._requested, self._closing
            if step is None or step == self._done:
                return
            try:
                self._wait_for_files(step)
                self._upload(step)
            except Exception as error:  # any error of the network or the library
                failures += 1
                problem = f"upload of step {step} to {self._config.repo} failed: {errors.one_line(error)}"
                # At the end of the run there is no second try.
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
        """Wait for a checkpoint, which has another name until it is complete."""
        while not (self._checkpoints / str(step)).is_dir():
            with self._changed:
                newer = self._requested != step
            if newer or (self._closing and not any(self._checkpoints.glob(f"{step}.*"))):
                raise FileNotFoundError(f"{self._checkpoints / str(step)} no longer exists")
            time.sleep(_POLL)
