"""Small runs of WorldPlay."""

import commands

from cases import Case

CASE = Case(
    "ar_mem.py:rooms",
    (
        *commands.MODEL,
        "--config.data.recording.episodes=4",
        "--config.data.recording.frames=97",
        "--config.data.recording.image_size=(64,48)",
        "--config.global_batch=4",
        "--config.data.clip.memory_points=200",
        "--config.sample.rollout.num_steps=1",
    ),
    ("--image", "IMAGE", "--pose", "w-3", "--out", "OUT.mp4"),
)
