"""Small runs of autoencoders."""

from cases import Case

CASE = Case(
    "autoencoder.py",
    (
        "--config.model.latent_channels=4",
        "--config.model.widths=(4,8)",
        "--config.model.spatial_ratio=2",
        "--config.model.temporal_ratio=2",
        "--config.data.recording.episodes=8",
        "--config.data.recording.frames=17",
        "--config.data.recording.image_size=(32,24)",
        "--config.data.videos.image_size=(32,24)",
        "--config.data.clip.size=(16,16)",
        "--config.sample.frames=5",
    ),
)
