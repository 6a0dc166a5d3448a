"""Small runs of TheWorld."""

from cases import Case

CASE = Case(
    "theworld.py",
    (
        "--config.data.recording.episodes=4",
        "--config.data.recording.frames=121",
        "--config.data.recording.image_size=(64,48)",
        "--config.global_batch=4",
        "--config.data.questions.per_answer=3",
        "--config.data.questions.view_size=(32,24)",
        "--config.model.num_layers=1",
        "--config.model.vision_layers=1",
    ),
    ("--image", "IMAGE", "--prompt", "Which way?"),
    ("--limit=2",),
)
