"""Conversations as training data of a run: prepared once, then read in batches."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import ml_collections
import rich.console

from jworld.data import pipeline, records, training_data
from jworld.data.conversations import batches, chat, formats, prepared, processor, questions
from jworld.data.recording import recorder
from jworld.utils import config as run_config
from jworld.utils import files, folder_lock
from jworld.utils.errors import UserError

#: The tokenizer file, which every run needs.
TOKENIZER = "tokenizer.json"
#: Files that may accompany it: everything from which transformers builds a processor.
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class RunEncoders:
    """Tokenizer for sampling; `fps` exists for the common interface, since there is no video."""

    tokenizer: chat.ChatTokenizer
    fps: float = 1.0


class Conversations:
    """Conversations in the folder `config.data.records` (a `systems.base.TrainingData`).

    If absent, they are prepared from `config.data.conversations`. Its format "questions" makes them from episodes,
    which `config.data.recording` describes.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, image_tokens: int) -> None:
        """Read the sections of the config; `image_tokens` is the number of the model's tokens per image."""
        data = config.data
        self._config = config
        self.set = run_config.section(formats.SetConfig, data.conversations, "data.conversations")
        self.clip = run_config.section(batches.ClipConfig, data.clip, "data.clip")
        self.questions = run_config.section(questions.QuestionsConfig, data.get("questions", {}), "data.questions")
        self._recording = run_config.section(recorder.RecordingConfig, data.recording, "data.recording")
        self._image_tokens = image_tokens

    def sections(self) -> dict[str, Any]:
        """Return the config sections that are read here, by name, with every default filled in."""
        return {"data.conversations": self.set, "data.clip": self.clip, "data.questions": self.questions}

    @property
    def global_batch(self) -> int:
        return int(self._config.global_batch)

    @property
    def directory(self) -> pathlib.Path:
        return pathlib.Path(self._config.data.records)

    @functools.cached_property
    def tokenizer(self) -> chat.ChatTokenizer:
        return chat.load(self._config.data.tokenizer, image_tokens=self._image_tokens)

    def _identity(self) -> prepared.Identity:
        return prepared.Identity(prepared.file_hash(self._tokenizer_file()), self._image_tokens, self.clip.pan)

    def _tokenizer_file(self) -> pathlib.Path:
        return chat.find_file(self._config.data.tokenizer)

    def prepare(self) -> None:
        """Prepare the conversations; see `systems.base.TrainingData`."""
        processor.check(self._tokenizer_file().parent, self.clip)
        if (self.directory / records.MANIFEST).is_file():
            return
        # Loaded first: a missing tokenizer must not be found after minutes of recording.
        tokenizer = self.tokenizer
        with folder_lock.making(self.directory):
            # Another process may have prepared them meanwhile.
            if not (self.directory / records.MANIFEST).is_file():
                self._make(tokenizer)

    def _make(self, tokenizer: chat.ChatTokenizer) -> None:
        console = rich.console.Console(highlight=False, soft_wrap=True)
        if self.set.format == "questions":
            if not self._recording.source:
                raise UserError(
                    "config.data.recording.source is '' and config.data.conversations.format is 'questions': name a "
                    "source to record from, such as rooms, or give another format with its path"
                )
            self._recording.record()

        def fill(folder: pathlib.Path) -> dict[str, Any]:
            rows = (
                questions.make(folder, pathlib.Path(self._recording.directory), self.questions, console=console)
                if self.set.format == "questions"
                else formats.read(self.set, folder)
            )
            return prepared.write(
                folder,
                rows,
                tokenizer,
                self._identity(),
                source=dataclasses.asdict(self.set),
                val_share=self.set.val_share,
                images=self.clip.images,
                console=console,
            )

        for line in prepared.summary(prepared.make(self.directory, fill)):
            console.print(f"{self.directory}: {line}")

    def source(self, split: str) -> prepared.Source:
        """Return the conversations of a split that are short enough."""
        self.tokenizer  # noqa: B018 - a missing tokenizer is reported before a missing set
        return prepared.Source(self.directory, split, self._identity(), max_tokens=self.clip.max_tokens)

    def batches(self, split: str) -> pipeline.BatchIterator:
        """Return the batches of a split; see `systems.base.TrainingData`."""
        source = self.source(split)
        if source.too_long:
            print(f"{source.too_long} conversations of split '{split}' have more than {self.clip.max_tokens} tokens")
        config = self._config
        order = batches.LengthOrder(
            source.lengths,
            self.clip.lengths,
            global_batch=config.global_batch,
            seed=config.seed,
            shuffle=split == "train",
        )
        transform = batches.MakeExample(self.clip, self.tokenizer, source)
        spec = batches.spec(self.clip, config.global_batch)
        examples, identity = batches.Examples(source, order), source.identity()
        return training_data.batches(config, examples, transform, spec, split=split, content=identity)

    def keep(self, directory: pathlib.Path) -> None:
        """Copy the tokenizer and its accompanying files, for exports; see `systems.base.TrainingData`."""
        directory.mkdir(parents=True, exist_ok=True)
        file = self._tokenizer_file()
        for name in TOKENIZER_FILES[1:]:
            if (file.parent / name).is_file():
                files.copy(file.parent / name, directory / name)
        if file.suffix == ".model":
            # Converted once, so that sampling needs neither transformers nor SentencePiece.
            chat.read(file).save(str(directory / TOKENIZER))
        else:
            files.copy(file, directory / TOKENIZER)

    def check_kept(self, directory: pathlib.Path) -> None:
        """Refuse another tokenizer than the copied one; see `systems.base.TrainingData`."""
        file = self._tokenizer_file()
        path = directory / (file.name if file.suffix == ".model" else TOKENIZER)
        if path.is_file() and file.is_file() and prepared.file_hash(path) != prepared.file_hash(file):
            raise UserError(
                f"config.data.tokenizer: {file} differs from {path}, with which the model was trained: give that one"
            )

    def find_problem(self, directory: pathlib.Path) -> str:
        """Return why sampling cannot use the copied tokenizer, "" if it can; see `systems.base.TrainingData`."""
        found = any((directory / name).is_file() for name in chat.FILES)
        return "" if found else f"{directory / TOKENIZER} is absent"

    def encoders(
        self, directory: pathlib.Path, *, given: Any, mesh: jax.sharding.Mesh, stored: bool = False
    ) -> RunEncoders:
        """Load the tokenizer; a `UserError` if the user names encoders, which nothing would use."""
        if given.flags():
            raise UserError(
                f"{', '.join(given.flags())}: the model of this checkpoint uses no external encoders: leave the option "
                "out"
            )
        if problem := self.find_problem(directory):
            raise UserError(
                f"{problem}: copy the tokenizer.json of the published model there, or to jworld.generate give "
                "--encoders with a folder that has it"
            )
        return RunEncoders(chat.load(directory, image_tokens=self._image_tokens))
