"""The linear autoencoder of the training videos: what networks are compared with, and where some start.

It is fitted once and kept in the folder of the decoded frames.
"""

import numpy as np
import rich.console
import rich.progress

from jworld.models.autoencoders import linear, network
from jworld.systems.autoencoder import data
from jworld.utils import errors, folder_lock

#: Patches of the fit are drawn from this seed.
SEED = 0


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
