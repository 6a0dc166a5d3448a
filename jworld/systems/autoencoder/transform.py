"""The linear autoencoder of the training videos, and its overlap: what networks are compared with or start from.

Both are fitted once and kept in the folder of the decoded frames.
"""

from collections.abc import Iterator

import numpy as np
import rich.console
import rich.progress

from jworld.models.autoencoders import linear, network, patch
from jworld.systems.autoencoder import data, overlap
from jworld.utils import errors, folder_lock

#: Patches of the fit are drawn from this seed.
SEED = 0
#: Groups of frames of every training video on which the overlap is fitted.
GROUPS = 6


def settings(config: network.AutoencoderConfig) -> linear.LinearConfig | None:
    """Return the linear autoencoder with latents of the same size, None if there is none with these ratios."""
    try:
        return linear.LinearConfig(
            channels=config.latent_channels, spatial_ratio=config.spatial_ratio, temporal_ratio=config.temporal_ratio
        )
    except errors.UserError:
        return None


def load_or_fit(
    files: data.FrameFiles, config: linear.LinearConfig, *, console: rich.console.Console
) -> linear.LinearAutoencoder:
    """Return the linear autoencoder of the training videos, all of whose channels have deviation 1."""
    path = files.directory / file_name(config)
    if not path.is_file():
        with folder_lock.making(path):
            # Another process may have made it in the meantime.
            if not path.is_file():
                _fit(files, config, console).save(path)
    return linear.LinearAutoencoder.load(path)


def load_or_fit_overlap(
    files: data.FrameFiles,
    autoencoder: linear.LinearAutoencoder,
    config: patch.PatchConfig,
    *,
    console: rich.console.Console,
) -> overlap.Overlap:
    """Return the correction of the linear autoencoder of the training videos, of the rank that `config` has."""
    path = files.directory / overlap_name(config)
    if not path.is_file():
        with folder_lock.making(path):
            if not path.is_file():
                overlap.fit(_groups(files, config.temporal_ratio, console), autoencoder, rank=config.rank).save(path)
    return overlap.Overlap.load(path)


def overlap_name(config: patch.PatchConfig) -> str:
    """Return the name of the overlap's file in the folder of the frames."""
    return f"overlap-{config.latent_channels}x{config.temporal_ratio}x{config.spatial_ratio}-{config.rank}.safetensors"


def _groups(files: data.FrameFiles, frames: int, console: rich.console.Console) -> Iterator[np.ndarray]:
    """Yield groups of every training video, uint8 [GROUPS, frames, H, W, 3], at places drawn from `SEED`."""
    generator = np.random.default_rng(SEED)
    lengths = files.lengths("train")
    for i in rich.progress.track(range(len(lengths)), "fitting the overlap of patches", console=console):
        video = files.read("train", i)
        starts = generator.integers(lengths[i] - frames + 1, size=GROUPS)
        yield np.stack([video[start : start + frames] for start in starts])


def file_name(config: linear.LinearConfig) -> str:
    """Return the name of the file in the folder of the frames."""
    return f"linear-{config.channels}x{config.temporal_ratio}x{config.spatial_ratio}.safetensors"


def _fit(
    files: data.FrameFiles, config: linear.LinearConfig, console: rich.console.Console
) -> linear.LinearAutoencoder:
    step = config.temporal_ratio
    lengths = [(length - 1) // step * step + 1 for length in files.lengths("train")]
    videos = rich.progress.track(range(len(lengths)), "fitting the linear autoencoder", console=console)
    clips = (np.asarray(files.read("train", i)[: lengths[i]]) for i in videos)
    return linear.fit(clips, config, seed=SEED, whitening=1.0)
