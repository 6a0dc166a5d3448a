"""Records of videos of the user, and settings of a tiny model that fits them."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders import linear
from jworld.precompute import job
from jworld.precompute.settings import Settings

LINEAR = linear.LinearConfig(channels=16, spatial_ratio=8)
#: `train` with Cosmos-Predict2 on the records of `encode`.
COSMOS = (
    "--config=configs/cosmos_video2world.py:base",
    "--config.data.recording.source=",
    "--config.data.clip.latent_size=(2,4)",
    "--config.data.clip.window_frames=3",
    "--config.model.channels=16",
    "--config.model.text_dim=6",
    "--config.model.width=48",
    "--config.model.num_heads=4",
    "--config.model.num_layers=1",
    "--config.global_batch=2",
    "--config.optimizer.warmup_steps=0",
)


def encode(
    raw: pathlib.Path, entries: Sequence[dict[str, Any]], *, val_share: float, autoencoder: str | None = None
) -> pathlib.Path:
    """Write The Matrix's index of the videos in `raw`, and encode them into clips of 9 frames; -> the records."""
    (raw / "index.json").write_text(json.dumps({"list": list(entries)}))
    settings = Settings(
        input=raw,
        format="matrix",
        fps=10,
        frames=9,
        val_share=val_share,
        linear=LINEAR,
        given=EncoderOverrides(text_encoder="hashed-words:6", image_encoder="none", autoencoder=autoencoder),
        width=32,
        height=16,
    )
    assert job.precompute(settings, raw / "records") is not None
    return raw / "records"
