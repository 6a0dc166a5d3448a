"""Small runs of The Matrix."""

from cases import FEW_EPISODES, Case

CASE = Case(
    "matrix_lora.py:base",
    (
        *FEW_EPISODES,
        "--config.data.encoding.clip_frames=13",
        "--config.data.clip.window_frames=4",
        "--config.model.width=48",
        "--config.model.num_layers=1",
        "--config.sample.rollout.num_steps=2",
    ),
    ("--prompt", "a room", "--out", "OUT.mp4"),
)
