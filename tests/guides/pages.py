"""Files of a reader before each page, and values of the placeholders in its commands.

A page without an entry needs nothing.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Page:
    """Needs of one page.

    Attributes:
      prepare: functions of `downloads.py` and `own_data.py`, which make what the reader has.
      values: text in commands -> the text that replaces it, in the order of the page.
      python: Python code that defines the names which the Python blocks expect.
      follow: whether the training command that `precompute` prints is run, too.
    """

    prepare: tuple[str, ...] = ()
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str = ""
    follow: bool = False

    def bind(self, text: str) -> str:
        for name, value in self.values.items():
            text = text.replace(name, value)
        return text


_LAUNCHERS = ("tpu_vm", "gke", "slurm", "ssh")
_PUBLISHED = {"<published>": "published"}

PAGES = {
    "README.md": Page(
        prepare=("downloads.worldplay", "own_data.own_episodes"),
        values={"<folder as downloaded>": "HY-WorldPlay/ar_model", "runs/mine": "runs/ar_mem-rooms"},
        follow=True,
    ),
    "docs/array_records.md": Page(prepare=("own_data.coinrun", "own_data.robot")),
    "docs/autoencoder.md": Page(
        prepare=("own_data.clips",),
        python='from jworld.utils import config as c\nconfig = c.load_recipe("configs/autoencoder.py").unlock()\n',
    ),
    "docs/convert.md": Page(
        prepare=(
            "downloads.worldplay",
            "downloads.cosmos",
            "downloads.cosmos_training_checkpoint",
            "downloads.cogvideox_2b",
            "downloads.matrix_adapters",
            "downloads.trained_runs",
            "downloads.gemma",
            "downloads.theworld_checkpoint",
            "downloads.cosmos_diffusers_autoencoder",
            "downloads.hunyuan_autoencoder",
            "downloads.wan",
        ),
        values={"<download>": "HY-WorldPlay/ar_model"},
    ),
    "docs/cosmos.md": Page(
        prepare=(
            *("downloads.cosmos", "downloads.cosmos_14b", "downloads.cosmos_posttrained", "downloads.t5"),
            *("own_data.cosmos_assets", "own_data.first_image", "own_data.frame", "own_data.start_videos"),
            *("downloads.cosmos_multiview", "own_data.waymo", "own_data.camera_images"),
        ),
        values={
            "<folder>": "checkpoints/nvidia/Cosmos-Predict2-2B-Video2World",
            "<folder-14b>": "checkpoints/nvidia/Cosmos-Predict2-14B-Video2World",
        },
        python=(
            "import jworld, numpy as np\n"
            'run = jworld.load("runs/cosmos_video2world-2b")\n'
            'image, prompt = np.zeros((16, 32, 3), np.uint8), "a room"\n'
            "prompt_is_fine = blur_faces = lambda value: value\n"
        ),
    ),
    "docs/distill.md": Page(prepare=("own_data.first_image",)),
    "docs/generate.md": Page(prepare=("own_data.first_image",)),
    "docs/data.md": Page(
        prepare=(
            *("downloads.imported_hunyuan_autoencoder", "downloads.worldplay_encoders", "downloads.imported_wan"),
            *("downloads.t5", "downloads.imported_cosmos"),
            *(
                "own_data.frame",
                "own_data.clips",
                "own_data.cosmos_assets",
                "own_data.bridge",
                "own_data.worldplay_published",
            ),
        ),
        values=_PUBLISHED,
    ),
    "docs/extend.md": Page(prepare=("own_data.golden_case",), values={"<recipe>": "ar_mem", "<folder>": "$PWD/cases"}),
    "docs/matrix.md": Page(
        prepare=(
            *("downloads.cogvideox_2b", "downloads.matrix_stage_2", "downloads.clip"),
            *("own_data.first_image", "own_data.driving_videos"),
        ),
    ),
    "docs/pods.md": Page(
        values={
            # The launchers print what they would run on other machines.
            **{f"scripts/launch_{name}.sh ": f"scripts/launch_{name}.sh --dry-run " for name in _LAUNCHERS},
            # Both processes on this machine, at the same time.
            "--config=... --workdir=...": "--config=configs/ar_mem.py:rooms --workdir=runs/two",
            "gpu1:8476": "localhost:8476",
            "# on gpu1": "& first=$!",
            "# on gpu2": "& wait $first && wait $!",
        }
    ),
    "docs/quickstart.md": Page(prepare=("own_data.first_image", "own_data.own_episodes")),
    "docs/starter.md": Page(values={"--step 4000": "--step 2", "--output assets/starter": "--output released/starter"}),
    "docs/theworld.md": Page(
        prepare=(
            *("downloads.gemma", "downloads.cosmos_diffusers_autoencoder", "downloads.imported_cosmos"),
            *("own_data.chat", "own_data.views", "own_data.benchmarks", "own_data.original_config"),
        ),
    ),
    "docs/theworld_inference.md": Page(prepare=("own_data.views", "own_data.frame")),
    "docs/train.md": Page(values={"<workdir>": "runs/ar_mem"}),
    "docs/worldplay.md": Page(
        prepare=(
            *("downloads.worldplay", "downloads.imported_hunyuan_autoencoder", "downloads.worldplay_encoders"),
            *("own_data.first_image", "own_data.own_episodes", "own_data.worldplay_published"),
        ),
        values={"<base>": "HY-WorldPlay/ar_model", **_PUBLISHED},
        python="import numpy as np\nfirst_frame = np.zeros((48, 64, 3), np.uint8)\n",
    ),
}
