"""Small runs of Cosmos-Predict2."""

from cases import FEW_EPISODES, Case

CASE = Case(
    "cosmos_video2world.py:base",
    (
        *FEW_EPISODES,
        "--config.data.encoding.clip_frames=13",
        "--config.data.clip.window_frames=4",
        "--config.model.width=48",
        "--config.model.num_layers=1",
        "--config.model.num_heads=4",
        "--config.sample.rollout.num_steps=1",
    ),
    ("--image", "IMAGE", "--out", "OUT.mp4"),
)
