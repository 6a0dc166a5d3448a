"""The work of `python -m jworld.precompute`, and this process's part of it."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from jworld.cameras import robots
from jworld.data import records
from jworld.data.inputs import formats, items
from jworld.data.inputs.base import Format
from jworld.data.records import shards
from jworld.encoders import autoencoders, choices, stored, weightless
from jworld.encoders.autoencoders import Autoencoder
from jworld.models.autoencoders import linear
from jworld.parallel import mesh as mesh_lib
from jworld.precompute import prompts
from jworld.precompute import writer as record_writer
from jworld.precompute.reader import ReadAhead
from jworld.precompute.settings import IMAGE_ENCODER, TEXT_ENCODER, Settings
from jworld.utils import folder_lock
from jworld.utils.errors import UserError

COMMAND = "python -m jworld.precompute"


class Work:
    """The videos of a data set and the encoders for them."""

    def __init__(self, settings: Settings, *, threads: int, skip_errors: bool, console: rich.console.Console) -> None:
        self._settings, self._threads, self._skip_errors, self._console = settings, threads, skip_errors, console
        self._format = formats.find(settings.format)
        options = items.ListOptions(
            require_captions=not settings.allow_missing_captions,
            prompt=settings.prompt,
            frames_fps=settings.frames_fps or (settings.fps if self._format.untimed else None),
            frames_size=settings.frames_size,
            root=settings.root,
            camera=settings.camera,
            commands=settings.commands,
            stored_text=(settings.given.text_encoder or "").startswith(f"{stored.KIND}:"),
        )
        listing = formats.list_items(settings.format, settings.input, options=options, val_share=settings.val_share)
        self._note(listing.notes)
        self._items, self._facts = listing.items, listing.facts
        self._check_items()
        for role in (choices.TEXT, choices.GLYPH, choices.IMAGE):
            choices.check(role, settings.specs[role.attribute])
        self._mesh = mesh_lib.make_mesh(data=-1, fsdp=1, devices=jax.local_devices())
        self._autoencoder: Autoencoder | None = None
        family, ratios = linear.FAMILY, settings.linear
        if settings.given.autoencoder is not None:
            self._autoencoder = autoencoders.load(
                settings.given.autoencoder, mesh=self._mesh, dtype=settings.autoencoder_dtype, tiling=settings.tiling
            )
            family, ratios = self._autoencoder.family, self._autoencoder.network.config
            if settings.keep_posterior and not self._autoencoder.has_posterior:
                raise UserError(f"{settings.given.autoencoder} has no posterior: leave --keep-posterior out")
            if settings.tile is not None and family == linear.FAMILY:
                raise UserError(f"{settings.given.autoencoder} is linear and needs no tiles: leave --tile out")
            if settings.autoencoder_dtype is not None and family == linear.FAMILY:
                raise UserError(
                    f"{settings.given.autoencoder} is linear and computes in float32: leave --autoencoder-dtype out"
                )
        elif settings.keep_posterior:
            raise UserError("the linear autoencoder has no posterior: leave --keep-posterior out or give --autoencoder")
        self._cut = settings.cut(
            family=family, temporal_ratio=ratios.temporal_ratio, spatial_ratio=ratios.spatial_ratio
        )
        self._note(_notes(settings, self._format, family))
        self._motions = self._count_motions()
        self._images = choices.load(choices.IMAGE, settings.specs["image_encoder"], settings.given.options)
        # "none:1024" stands for empty captions, for a model that has a text input.
        self._has_text = settings.specs["text_encoder"] not in (choices.NONE, f"{choices.NONE}:0")

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            self._console.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False, emoji=False)

    def _check_items(self) -> None:
        bad = [item for item in self._items if item.problem is not None]
        if bad and not self._skip_errors:
            raise UserError(
                f"{bad[0].problem} ({len(bad)} of {len(self._items)} videos have a problem); give --on-error skip to "
                "leave out bad videos and list them"
            )
        if not any(item.split == "train" for item in self._items):
            raise UserError(
                f"{self._settings.input}: no video is in the split 'train': add videos or lower --val-share"
            )

    def request(self) -> dict[str, Any]:
        """Return the request that identifies the data set and is stored in its manifest."""
        settings = self._settings
        listed = json.dumps(
            [
                [item.name, item.split, item.caption, item.first_frame, *(view.caption for view in item.views)]
                for item in self._items
            ]
        )
        fit = dataclasses.asdict(settings.linear) | {"whitening": settings.whitening}
        autoencoder: dict[str, Any] = {"fit": fit, "seed": settings.seed}
        if self._autoencoder is not None:
            autoencoder = {
                "family": self._autoencoder.family,
                "hash": self._autoencoder.hash,
                "dtype": settings.autoencoder_dtype,
                **({} if settings.tile is None else {"tile": list(settings.tile)}),
            }
        return {
            "command": COMMAND,
            "format": settings.format,
            "items_sha256": hashlib.sha256(listed.encode()).hexdigest(),
            "cut": self._cut.manifest_entry(),
            "autoencoder": autoencoder,
            **settings.specs,
            "keep_posterior": settings.keep_posterior,
            "items_per_shard": settings.items_per_shard,
            **self._facts,
        }

    def write(self, output: shards.Output, index: int, count: int) -> None:
        """Write the shards of process `index` of `count`, and the manifest if all shards of all processes exist."""
        autoencoder = self._autoencoder or self._fitted(output)
        if autoencoder.is_stored:
            autoencoder.save(output.directory / records.AUTOENCODER_FILE)
        texts = prompts.collect(self._items) if self._has_text else []
        text_plan = prompts.plan(texts)
        prompts.write(
            output,
            text_plan[index::count],
            texts,
            self._settings.specs,
            self._settings.given.options,
            console=self._console,
        )
        by_split = {split: [i for i, item in enumerate(self._items) if item.split == split] for split in records.SPLITS}
        plan = shards.plan(by_split, items_per_shard=self._settings.items_per_shard)
        maker = self._maker(autoencoder, {prompt: row for row, prompt in enumerate(texts)})
        self._write_records(output, plan[index::count], maker)
        results = [output.result(shard) for shard in (*text_plan, *plan)]
        written = [result for result in results if result is not None]
        if len(written) == len(results):
            output.finish([*text_plan, *plan], written, self._manifest(maker, written[: len(text_plan)], written))
        elif (output.directory / records.MANIFEST).is_file():
            output.complete = True  # another process has written the manifest

    def _write_records(self, output: shards.Output, mine: Sequence[shards.Shard], maker: record_writer.Maker) -> None:
        missing = [shard for shard in mine if output.result(shard) is None]
        listed = [self._items[i] for shard in missing for i in shard.items]
        done = sum(len(shard.items) for shard in mine) - len(listed)
        with (
            shards.meter("encoding", done + len(listed), done=done, unit="clips", console=self._console) as advance,
            ReadAhead(listed, self._cut, threads=self._threads) as reader,
        ):
            first = 0
            for shard in missing:
                positions = range(first, first + len(shard.items))
                first += len(shard.items)
                with shards.ShardWriter(output.directory, shard) as writer:
                    maker.write_shard(
                        writer,
                        [(position, listed[position]) for position in positions],
                        reader,
                        measure=shard.split == "val",
                        skip_errors=self._skip_errors,
                        advance=advance,
                    )

    def _fitted(self, output: shards.Output) -> Autoencoder:
        """Return the linear autoencoder that an earlier run has fitted, or a new one."""
        path = output.directory / records.AUTOENCODER_FILE
        if not path.is_file():
            given = self._settings
            linear.fit(self._training_frames(), given.linear, seed=given.seed, whitening=given.whitening).save(path)
        return autoencoders.load(path, mesh=self._mesh)

    def _training_frames(self) -> Iterator[np.ndarray]:
        training = [item for item in self._items if item.split == "train"]
        with (
            shards.meter("fitting the autoencoder", len(training), unit="clips", console=self._console) as advance,
            ReadAhead(training, self._cut, threads=self._threads) as reader,
        ):
            for position in range(len(training)):
                count = 0
                try:
                    for clip in reader.read(position):
                        yield from clip.frames if clip.captions else (clip.frames,)
                        count += 1
                except UserError as error:
                    if not self._skip_errors:
                        hint = "give --on-error skip to leave out bad videos and list them"
                        raise UserError(f"{error}; {hint}") from error
                advance(0, count)

    def _maker(self, autoencoder: Autoencoder, rows: dict[str, int]) -> record_writer.Maker:
        fit = self._cut.fit
        cameras = any(item.cameras is not None for item in self._items)
        return record_writer.Maker(
            autoencoder=autoencoder,
            images=self._images,
            arrays=records.make_arrays(
                autoencoder.latent_shape(1, fit.height, fit.width)[1:],
                logvar=self._settings.keep_posterior,
                cameras=cameras,
                action=cameras,
                control=bool(self._format.control_tokens)
                and not cameras
                and any(item.controls is not None for item in self._items),
                motions=self._motions,
                vision=None if self._images is None else (self._images.entry.tokens, self._images.dim),
                prompt=bool(rows),
                views=len(self._items[0].views),
            ),
            rows=rows,
            fps=self._fps(),
            whole_videos=self._cut.frames is None,
            format=self._format,
            batch=len(jax.local_devices()),
        )

    def _count_motions(self) -> tuple[int, int] | None:
        """Return the number of motions of a clip and of numbers in each; None if the videos have none."""
        widths = {robots.ACTION_SIZE if item.hand is not None else len(item.commands) for item in self._items}
        if not any(widths):
            return None
        if self._cut.frames is None:
            raise UserError("clips with motions must have one length: give --frames, such as --frames 13 --stride 1")
        return self._cut.frames - 1, max(widths)

    def _fps(self) -> float:
        if self._settings.fps is not None:
            return self._settings.fps
        assert self._format.read_fps is not None  # checked by `Settings`
        return self._format.read_fps(self._settings.input)

    def _manifest(
        self, maker: record_writer.Maker, texts: Sequence[shards.Result], results: Sequence[shards.Result]
    ) -> dict[str, Any]:
        autoencoder, fit, read_source = maker.autoencoder, self._cut.fit, self._format.read_source
        manifest: dict[str, Any] = {
            "source": read_source(self._settings.input) if read_source else self._format.name,
            "arrays": maker.arrays,
            "autoencoder": autoencoder.manifest_entry(),
            "latent_shape": list(autoencoder.latent_shape(1, fit.height, fit.width)[1:]),
            "temporal_ratio": autoencoder.temporal_ratio,
            "fps": maker.fps,
            "image_size": [fit.width, fit.height],
            "cut": self._cut.manifest_entry(),
            **prompts.facts(texts),
            "vision_encoder": (self._images or weightless.NoImage(0)).manifest_entry(),
            **self._facts,
        }
        if "w2c" in maker.arrays:
            manifest["camera_convention"] = records.CAMERA_CONVENTION
            manifest["action_labels"] = "recorded" if self._format.recorded_labels else "cameras"
        if "control" in maker.arrays:
            manifest["controls"] = list(self._format.control_tokens)
        psnr = [value for result in results for value in result.psnr]
        if psnr:
            manifest["reconstruction_psnr"] = round(float(np.mean(psnr)), 3)
        return manifest


def _notes(settings: Settings, entry: Format, family: str) -> list[str]:
    """Return what the user should know about the settings before any work."""
    notes = []
    if settings.frames is None and entry.usual_cut is not None:
        frames, stride = entry.usual_cut
        notes.append(
            "without --frames a clip is a whole video, and training uses only its beginning: for the published model "
            f"give --frames {frames} --stride {stride}"
        )
    stand_ins = [
        f"{role.flag} {default}"
        for role, default in ((choices.TEXT, TEXT_ENCODER), (choices.IMAGE, IMAGE_ENCODER))
        if getattr(settings.given, role.attribute) is None
    ]
    if stand_ins and family not in autoencoders.OWN_FAMILIES:
        notes.append(
            f"{' and '.join(stand_ins)} are stand-ins, which published models cannot read: name the model's encoders, "
            "or none for one that it does not have"
        )
    return notes


def precompute(
    settings: Settings,
    output: str | pathlib.Path,
    *,
    shard: tuple[int, int] = (0, 1),
    skip_errors: bool = False,
    threads: int | None = None,
    console: rich.console.Console | None = None,
) -> shards.Summary | None:
    """Write this process's part of the records to `output`, or resume where an earlier call was stopped.

    Args:
      settings: the data set.
      output: folder for the records.
      shard: (i, n) for process i of n.
      skip_errors: skip bad videos and list them in report.json; otherwise the first one is a `UserError`.
      threads: number of videos that are read at once.
      console: shows progress; silent by default.

    Returns:
      A summary of the complete data set, or None while other processes still work on it.
    """
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"--shard is {index}/{count}, expected i/n with 0 <= i < n, such as 0/4")
    if settings.given.autoencoder is None and count > 1:
        raise UserError("only one process can fit the autoencoder: give --autoencoder, or leave --shard out")
    work = Work(
        settings,
        threads=threads or min(os.cpu_count() or 1, 8),
        skip_errors=skip_errors,
        console=console or rich.console.Console(quiet=True),
    )
    try:
        folder = shards.Output(output, work.request())
        if not folder.complete:
            # If two commands have the same part, the second one finds the files of the first.
            with folder_lock.making(output, part=f".{index}-of-{count}"):
                folder = shards.Output(output, work.request())
                if not folder.complete:
                    work.write(folder, index, count)
    except OSError as error:
        raise UserError(
            f"{output} could not be written ({error}): free some space and repeat the command, or give another --output"
        ) from error
    return shards.Summary.read(output) if folder.complete else None
