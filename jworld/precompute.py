"""python -m jworld.precompute: raw episodes (video, actions, cameras, captions) -> training records.

Frames are resized to the model's size and encoded by a linear codec, which is fitted on the training split or given
as a file; captions and first frames by the weight-free encoders of `jworld.data`. The output folder appears when it is
complete.
"""

import argparse
import collections
import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import actions, poses
from jworld.data import episodes, images, records, text
from jworld.errors import UserError, exit_on_user_error
from jworld.models.autoencoders import linear

# Width of the glyph states of the published models (byT5-small); captions of episodes have no text to draw.
GLYPH_DIM = 1472


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run wrote: clips per split, reconstruction PSNR (dB, mean over the held-out episodes), codec hash."""

    output: pathlib.Path
    clips: dict[str, int]
    latent_shape: tuple[int, int, int]
    psnr: float
    autoencoder_hash: str


def precompute(
    episodes_dir: str | pathlib.Path,
    output: str | pathlib.Path,
    *,
    width: int = 64,
    height: int = 48,
    spatial_ratio: int = 16,
    channels: int = 96,
    text_dim: int = 64,
    autoencoder: str | pathlib.Path | None = None,
    seed: int = 0,
    console: rich.console.Console | None = None,
) -> Summary:
    """Write the records of all episodes to `output`, which must not exist yet.

    `autoencoder` is a saved codec to use as it is; without one a codec with `channels` channels is fitted on the
    training episodes. Bad input ends in a `UserError` and leaves nothing behind.
    """
    episodes_dir, output = pathlib.Path(episodes_dir), pathlib.Path(output)
    manifest = episodes.read_manifest(episodes_dir)
    _check_episodes(episodes_dir, manifest)
    if output.exists():
        raise UserError(f"output folder {output} exists already: remove it or give another --output")
    config = linear.LinearConfig(channels=channels, spatial_ratio=spatial_ratio)
    codec = None
    if autoencoder is not None:
        codec = _load_codec(autoencoder, config)
        config = codec.config
    _check_sizes(episodes_dir, manifest, config, width=width, height=height)

    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        reader = _Reader(episodes_dir, manifest, width=width, height=height, console=console)
        if codec is None:
            clips = (episode.frames for episode in reader.read("train", "fitting the codec"))
            codec = linear.fit(clips, config, seed=seed)
        codec.save(partial / records.AUTOENCODER_FILE)
        summary = _write_records(reader, codec, partial, text_dim=text_dim)
        partial.rename(output)
    except OSError as error:
        raise UserError(f"{output} could not be written ({error}): free some space or give another --output") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dataclasses.replace(summary, output=output)


def encode_episode(episode: episodes.Episode, codec: linear.LinearAutoencoder, *, prompt: int) -> records.Record:
    """One record of an episode whose frames have the model's size."""
    latent = codec.encode(episode.frames).astype(ml_dtypes.bfloat16)
    every = slice(None, None, codec.config.temporal_ratio)
    w2c = episode.w2c[every]
    return {
        "latent": latent,
        # The codec is causal: the first frame encoded alone is the first latent.
        "image_cond": latent[:1],
        "w2c": w2c.astype(np.float32),
        "intrinsics": poses.intrinsics_matrices(episode.intrinsics[every]).astype(np.float32),
        "action": actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION),
        "vision_states": images.thumbnail_tokens(episode.frames[0]).astype(ml_dtypes.bfloat16),
        "prompt": np.array(prompt, np.int32),
    }


class _Reader:
    """Reads the episodes of a split, resized, with a progress bar."""

    def __init__(
        self,
        directory: pathlib.Path,
        manifest: dict[str, Any],
        *,
        width: int,
        height: int,
        console: rich.console.Console | None,
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.width, self.height = width, height
        self._console = console

    def entries(self, split: str) -> list[dict[str, Any]]:
        return [entry for entry in self.manifest["episodes"] if entry["split"] == split]

    def read(self, split: str, title: str) -> Iterator[episodes.Episode]:
        entries = self.entries(split)
        for entry in rich.progress.track(entries, f"{title} ({split})", console=self._console):
            episode = episodes.read_episode(self.directory, entry["name"])
            if len(episode.frames) != entry["frames"]:
                raise UserError(
                    f"{self.directory}: episode '{entry['name']}' has {len(episode.frames)} frames, its manifest says "
                    f"{entry['frames']}: record the episodes again"
                )
            frames = images.resize(episode.frames, width=self.width, height=self.height)
            yield dataclasses.replace(episode, frames=frames)


def _write_records(
    reader: _Reader, codec: linear.LinearAutoencoder, directory: pathlib.Path, *, text_dim: int
) -> Summary:
    """Shards, text store and manifest into `directory`; measures the reconstruction on the held-out split."""
    prompts: dict[str, int] = {"": 0}
    splits: dict[str, list[dict[str, Any]]] = {}
    clips: dict[str, list[int]] = collections.defaultdict(list)
    quality = []
    for split in records.SPLITS:
        with records.RecordWriter(directory, split) as writer:
            for episode in reader.read(split, "encoding"):
                record = encode_episode(episode, codec, prompt=prompts.setdefault(episode.caption, len(prompts)))
                writer.write(record)
                clips[split].append(len(record["latent"]))
                if split == "val":
                    decoded = codec.decode(record["latent"].astype(np.float32))
                    quality.append(linear.psnr(episode.frames, linear.to_uint8(decoded)))
        splits[split] = writer.shards
    with records.RecordWriter(directory, "text") as text_writer:
        for prompt in prompts:
            states = text.hashed_words(prompt, dim=text_dim)
            text_writer.write(text.prompt_record(states, np.zeros((0, GLYPH_DIM), np.float32)))
    latent_shape = codec.latent_shape(1, reader.height, reader.width)[1:]
    manifest = {
        "source": reader.manifest["source"],
        "autoencoder": codec.manifest_entry(),
        "latent_shape": list(latent_shape),
        "temporal_ratio": codec.config.temporal_ratio,
        "fps": reader.manifest["fps"],
        "image_size": [reader.width, reader.height],
        "camera_convention": records.CAMERA_CONVENTION,
        "text_encoder": {"family": text.HASHED_WORDS_FAMILY, "dim": text_dim, "glyph_dim": GLYPH_DIM},
        "vision_encoder": {
            "family": images.THUMBNAIL_FAMILY,
            "tokens": images.THUMBNAIL_TOKENS,
            "dim": images.THUMBNAIL_DIM,
        },
        "reconstruction_psnr": round(float(np.mean(quality)), 3),
        "prompts": list(prompts),
        "text": text_writer.shards,
        "splits": splits,
        "clips": clips,
        "episodes": {split: [entry["name"] for entry in reader.entries(split)] for split in records.SPLITS},
    }
    records.write_manifest(directory, manifest)
    counts = {split: len(lengths) for split, lengths in clips.items()}
    return Summary(directory, counts, latent_shape, float(np.mean(quality)), codec.hash())


def _load_codec(path: str | pathlib.Path, config: linear.LinearConfig) -> linear.LinearAutoencoder:
    codec = linear.LinearAutoencoder.load(path)
    if codec.config != config:
        found, expected = codec.config, config
        raise UserError(
            f"codec file {path} has spatial_ratio {found.spatial_ratio} and {found.channels} channels, expected "
            f"{expected.spatial_ratio} and {expected.channels}: give --spatial-ratio {found.spatial_ratio} "
            f"--channels {found.channels}, or another codec"
        )
    return codec


def _check_episodes(directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    path = directory / episodes.MANIFEST
    found = collections.Counter(entry["split"] for entry in manifest["episodes"])
    for split in records.SPLITS:
        if not found[split]:
            raise UserError(f"{path}: no episode has split '{split}', expected at least one: record more episodes")
    if unknown := sorted(found.keys() - set(records.SPLITS)):
        raise UserError(f"{path}: split '{unknown[0]}' is unknown, expected train or val: correct the manifest")


def _check_sizes(
    directory: pathlib.Path, manifest: dict[str, Any], config: linear.LinearConfig, *, width: int, height: int
) -> None:
    ratio, step = config.spatial_ratio, config.temporal_ratio
    if width < ratio or height < ratio or width % ratio or height % ratio:
        raise UserError(
            f"image size is {width}x{height}, expected multiples of the spatial ratio {ratio}: change --width, "
            "--height or --spatial-ratio"
        )
    for entry in manifest["episodes"]:
        if entry["frames"] < step + 1 or entry["frames"] % step != 1:
            raise UserError(
                f"{directory / episodes.MANIFEST}: episode '{entry['name']}' has {entry['frames']} frames, expected "
                f"{step}k+1 (at least {step + 1}): record episodes of such a length"
            )


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jworld.precompute",
        description="Encode recorded episodes into training records (latents, cameras, action labels, text).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--episodes", required=True, metavar="DIR", help="folder of scripts/record_episodes.py")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create for the records")
    parser.add_argument("--width", type=int, default=64, help="image width of the model, in pixels")
    parser.add_argument("--height", type=int, default=48, help="image height of the model, in pixels")
    parser.add_argument("--spatial-ratio", type=int, default=16, choices=(8, 16), help="pixels per latent, each way")
    parser.add_argument("--channels", type=int, default=96, help="channels of a latent")
    parser.add_argument("--text-dim", type=int, default=64, help="width of the text states")
    parser.add_argument("--autoencoder", metavar="FILE", help="use this autoencoder.safetensors instead of fitting one")
    parser.add_argument("--seed", type=int, default=0, help="chooses the patches that the codec is fitted on")
    arguments = parser.parse_args(argv)
    console = rich.console.Console()
    summary = precompute(
        arguments.episodes,
        arguments.output,
        width=arguments.width,
        height=arguments.height,
        spatial_ratio=arguments.spatial_ratio,
        channels=arguments.channels,
        text_dim=arguments.text_dim,
        autoencoder=arguments.autoencoder,
        seed=arguments.seed,
        console=console,
    )
    clips = ", ".join(f"{count} {split}" for split, count in summary.clips.items())
    height, width, channels = summary.latent_shape
    console.print(
        f"wrote {clips} clips of {width}x{height} latents with {channels} channels to {summary.output}", soft_wrap=True
    )
    console.print(f"reconstruction of the held-out episodes: {summary.psnr:.1f} dB")
    console.print(
        "next: python -m jworld.train --config=configs/ar_mem.py:rooms --config.data.recording.source= "
        f"--config.data.records={summary.output}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
