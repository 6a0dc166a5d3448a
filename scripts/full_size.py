"""Run the commands on checkpoints of published size with random weights, and write docs/full_size.md.

    python scripts/full_size.py --system cosmos
    python scripts/full_size.py --system cosmos --scale tiny --page page.md

For one system it makes a folder in the published layout with a class of diffusers or transformers, and runs inspect,
import, verify, generate (8x8 latents, one chunk), three training steps of LoRA adapters, and export. It then compares
the exported bytes with the folder and loads the export with the class. Time and peak memory of every stage go into the
page; the rows of other runs stay. The other programs have an environment of their own, which the first run makes with
pip.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence

import numpy as np
from PIL import Image

from conversion import sources
from jworld.data import video_stream
from jworld.utils import arguments, errors, files

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "full_size.md"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "torchvision")
#: Lines of the page before and after the table.
BEGIN, END = "<!-- stages: begin -->", "<!-- stages: end -->"
STAGES = ("make", "inspect", "import", "verify", "generate", "train", "export", "bytes", "load")
NOT_TRAINED = "no recipe trains adapters of it alone in 24 GiB"
#: Stages whose files the later ones read.
NEEDED = ("make", "import", "export")
_BLOCK = 16 << 20


@dataclasses.dataclass(frozen=True)
class System:
    """A published network and how to sample from it.

    Attributes:
      title: name in the table.
      network: key of `MODELS` in full_size_folders.py.
      autoencoder: key of the small autoencoder that generation uses; "" without one.
      generate: further arguments of `jworld.generate`; None for a network that generates nothing alone.
      tiny_generate: those that replace them at the tiny size.
      train: recipe of LoRA adapters and values for it; empty for a network whose training is not part of this.
      tiny_train: further values at the tiny size.
    """

    title: str
    network: str
    autoencoder: str = ""
    generate: Sequence[str] | None = None
    tiny_generate: Sequence[str] = ()
    train: Sequence[str] = ()
    tiny_train: Sequence[str] = ()


_VIDEO = ("--steps", "2", "--size", "64x64", "--windows", "1")
#: One chunk of 4 latents. Empty states fill no more tokens, so the KV cache has little padding.
_WORLDPLAY = (
    *("--steps", "2", "--size", "128x128", "--prompt", "a", "--image", "{image}", "--pose", "w-3"),
    *("--guidance", "1", "--config.model.param_dtype=bfloat16", "--glyph-encoder", "none:1472"),
    *("--config.data.clip.text_tokens=16", "--config.data.clip.glyph_tokens=16", "--config.data.clip.vision_tokens=0"),
)
#: One clip of 13 frames per step, three steps, without a mesh.
_TRAIN = (
    *("--config.steps=3", "--config.global_batch=1", "--config.mesh.sequence=1", "--config.log.interval=1"),
    *("--config.data.clip.latent_size=(8,8)", "--config.data.clip.window_frames=4"),
)
_GEMMA = ("--prompt", "What is this?", "--image", "{image}", "--encoders", "{tokenizer}", "--max-tokens", "4")
SYSTEMS = {
    "cogvideox": System(
        "CogVideoX-2B",
        "cogvideox",
        "small-cogvideox-vae",
        (*_VIDEO, "--prompt", "a", "--text-encoder", "none:4096"),
        (*_VIDEO, "--prompt", "a", "--text-encoder", "none:32"),
        ("configs/matrix_lora.py:2b", *_TRAIN),
        (
            *("--config.model.width=32", "--config.model.num_heads=2", "--config.model.num_layers=2"),
            "--config.model.text_dim=32",
        ),
    ),
    "cosmos": System(
        "Cosmos-Predict2-2B",
        "cosmos",
        "small-wan-vae",
        (*_VIDEO, "--prompt", "a", "--image", "{image}", "--text-encoder", "none:1024"),
        (*_VIDEO, "--prompt", "a", "--image", "{image}", "--text-encoder", "none:32"),
        ("configs/cosmos_video2world.py:2b_lora", *_TRAIN),
        (
            *("--config.model.width=48", "--config.model.num_heads=2", "--config.model.num_layers=2"),
            *("--config.model.text_dim=32", "--config.model.text_width=32", "--config.model.modulation_rank=8"),
        ),
    ),
    "gemma": System(
        "Gemma-3-4b",
        "gemma",
        "",
        _GEMMA,
        _GEMMA,
    ),
    "worldplay": System(
        "WorldPlay 8.56B",
        "worldplay",
        "small-hunyuan15-vae",
        (*_WORLDPLAY, "--text-encoder", "none:3584", "--image-encoder", "none:1152"),
        (*_WORLDPLAY, "--text-encoder", "none:32", "--image-encoder", "none:24"),
    ),
    "hunyuan15": System("HunyuanVideo-1.5 8.3B", "hunyuan15"),
    "hunyuan15-vae": System("the autoencoder of HunyuanVideo-1.5", "hunyuan15-vae"),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the page."""

    system: str
    stage: str
    seconds: str = ""
    peak: str = ""
    outcome: str = "not run"

    def line(self) -> str:
        return f"| {self.system} | {self.stage} | {self.seconds} | {self.peak} | {self.outcome} |"


class Runner:
    """The stages of one system in a folder; `results` has those that were run."""

    def __init__(self, system: System, scale: str, folder: pathlib.Path, python: pathlib.Path) -> None:
        self.system, self.scale, self.folder, self.python = system, scale, folder, python
        self.source, self.ours, self.theirs = (folder / name for name in ("published", "imported", "exported"))
        self.results: list[Result] = []

    def run_all(self, stages: Sequence[str]) -> bool:
        """Run stages; return whether all were good. None follows a failed `NEEDED` one."""
        good = True
        for stage in stages:
            done = self._run(stage)
            good = good and done
            if not done and stage in NEEDED:
                break
        return good

    def _run(self, stage: str) -> bool:
        if reason := self._left_out(stage):
            self.results.append(Result(self.system.title, stage, outcome=f"not run: {reason}"))
            return True
        command = getattr(self, f"_{stage}")()
        planned = self._planned() if stage == "train" else ""
        return self._measure(stage, command, planned)

    def _left_out(self, stage: str) -> str:
        """Return why the system has no such stage, or ""."""
        if stage == "generate" and self.system.generate is None:
            return "the network generates nothing alone"
        return NOT_TRAINED if stage == "train" and not self.system.train else ""

    def _measure(self, stage: str, command: Sequence[str | pathlib.Path], planned: str) -> bool:
        """Run a command and add its row; `planned` follows a good outcome."""
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        print(f"{stage}:\n{printed}", flush=True)
        outcome = f"good{planned}" if process.returncode == 0 else f"failed: exit {process.returncode}"
        seconds, peak = time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9
        self.results.append(Result(self.system.title, stage, f"{seconds:.1f}", f"{peak:.2f}", outcome))
        return process.returncode == 0

    def _folders(self, *words: str | pathlib.Path) -> list[str | pathlib.Path]:
        return [self.python, ROOT / "scripts" / "full_size_folders.py", *words]

    def _conversion(self, *words: str | pathlib.Path) -> list[str | pathlib.Path]:
        return [sys.executable, "-m", "conversion", *words]

    def _make(self) -> list[str | pathlib.Path]:
        return self._folders("make", self.system.network, self.scale, self.source)

    def _inspect(self) -> list[str | pathlib.Path]:
        return self._conversion("inspect", self.source)

    def _import(self) -> list[str | pathlib.Path]:
        return self._conversion("import", self.source, "--output", self.ours)

    def _verify(self) -> list[str | pathlib.Path]:
        return self._conversion("verify", self.ours, self.source)

    def _export(self) -> list[str | pathlib.Path]:
        return self._conversion("export", self.ours, "--output", self.theirs)

    def _bytes(self) -> list[str | pathlib.Path]:
        return [sys.executable, __file__, "--compare", self.source, "--with", self.theirs]

    def _load(self) -> list[str | pathlib.Path]:
        return self._folders("load", self.system.network, self.theirs)

    def _generate(self) -> list[str | pathlib.Path]:
        """Return the command that samples one chunk."""
        given = self.system.generate if self.scale == "full" else self.system.tiny_generate
        image = self.folder / "image.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(image)
        places = {"image": image, "tokenizer": ROOT / "assets" / "tokenizer"}
        words = [word.format(**places) for word in given or ()]
        out = self.folder / ("out.mp4" if self.system.autoencoder else "out.json")
        if self.system.autoencoder:
            words += ["--autoencoder", str(self._autoencoder())]
        return [sys.executable, "-m", "jworld.generate", "--checkpoint", self.ours, "--out", out, *words]

    def _autoencoder(self) -> pathlib.Path:
        """Return the folder of the small autoencoder, which is made and imported if it is absent."""
        theirs, ours = self.folder / "small", self.folder / "autoencoder"
        if not ours.exists():
            shutil.rmtree(theirs, ignore_errors=True)
            subprocess.run(self._folders("make", self.system.autoencoder, "full", theirs), check=True, cwd=ROOT)
            subprocess.run(self._conversion("import", theirs, "--output", ours), check=True, cwd=ROOT)
        return ours

    def _recipe(self) -> list[str | pathlib.Path]:
        """Return the recipe of the training stage with its values."""
        recipe, *words = self.system.train
        words += self.system.tiny_train if self.scale == "tiny" else ()
        return ["--config", recipe, f"--config.init_from={self.ours}", *words]

    def _planned(self) -> str:
        """Return the memory that the planner expects from launch to the second step, as an end of the outcome."""
        answer = self.folder / "plan.json"
        command = [sys.executable, "-m", "jworld.plan", *self._recipe(), "--topology", "cpu:1", "--json", answer]
        subprocess.run(command, check=True, cwd=ROOT)
        plan = json.loads(answer.read_text())
        return f"; planned {max(plan['peak'], plan['start'] or 0) / 1e9:.2f} GB"

    def _train(self) -> list[str | pathlib.Path]:
        """Return the command that trains adapters; its records, of two videos of noise, are encoded before."""
        records, videos = self.folder / "records", self.folder / "videos"
        if not records.exists():
            videos.mkdir(exist_ok=True)
            for seed in range(2):
                noise = np.random.default_rng(seed).integers(0, 256, (13, 64, 64, 3), np.uint8)
                with video_stream.VideoStream(videos / f"{seed}.mp4", fps=16) as stream:
                    stream.write(noise)
            given = self.system.generate if self.scale == "full" else self.system.tiny_generate
            text = (given or ())[-1]
            command: list[str | pathlib.Path] = [sys.executable, "-m", "jworld.precompute", "--input", videos]
            command += ["--format", "videos", "--prompt", "a", "--output", records, "--keep-posterior"]
            command += ["--fps", "16", "--frames", "13", "--width", "64", "--height", "64", "--val-share", "0"]
            command += ["--autoencoder", self._autoencoder(), "--text-encoder", text, "--image-encoder", "none"]
            subprocess.run(command, check=True, cwd=ROOT)
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words = (f"--config.data.records={records}", f"--workdir={run}")
        return [sys.executable, "-m", "jworld.train", *self._recipe(), *words]


def compare(first: pathlib.Path, second: pathlib.Path) -> None:
    """Raise a `UserError` unless two folders have the same tensors, byte by byte."""
    with sources.open_source(first, unwrap=False) as ours, sources.open_source(second, unwrap=False) as theirs:
        different = sorted(ours.tensors.keys() ^ theirs.tensors.keys())
        different += [name for name in ours.tensors.keys() & theirs.tensors.keys() if not _equal(name, ours, theirs)]
        count = len(ours.tensors)
    if different:
        raise errors.UserError(f"{len(different)} tensors of {second} differ from {first}: {', '.join(different[:5])}")
    print(f"{count:,} tensors are equal, byte by byte")


def _equal(name: str, first: sources.Source, second: sources.Source) -> bool:
    """Return whether a tensor of two sources is equal, reading a block of its rows at a time."""
    info = first.tensors[name]
    if second.tensors[name] != info:
        return False
    if not info.shape:
        return first.read(name).tobytes() == second.read(name).tobytes()
    rows = max(1, _BLOCK // max(math.prod(info.shape[1:]) * info.dtype.itemsize, 1))
    spans = [(slice(start, start + rows),) for start in range(0, info.shape[0], rows)]
    return all(
        np.array_equal(*(source.read(name, span).view(np.uint8) for source in (first, second))) for span in spans
    )


def environment(folder: pathlib.Path) -> pathlib.Path:
    """Return the Python of the environment with the other programs, which is made if it is absent."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def read_rows(page: pathlib.Path) -> dict[tuple[str, str], Result]:
    """Return the rows of a page by system and stage."""
    if not page.is_file():
        return {}
    table = page.read_text().partition(BEGIN)[2].partition(END)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {(row[0], row[1]): Result(*row) for row in cells[2:]}


def write_page(page: pathlib.Path, results: Sequence[Result]) -> None:
    """Replace the rows of `results`; stages without a row are "not run"."""
    rows = read_rows(page) | {(row.system, row.stage): row for row in results}
    lines = [BEGIN, "| system | stage | seconds | peak, GB | result |", "| --- | --- | --- | --- | --- |"]
    for system in SYSTEMS.values():
        lines += [rows.get((system.title, stage), Result(system.title, stage)).line() for stage in STAGES]
    table = "\n".join([*lines, END])
    text = page.read_text() if page.is_file() else f"{BEGIN}{END}\n"
    with files.replacing(page) as temporary:
        temporary.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL))


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser("python scripts/full_size.py", (__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--system", choices=list(SYSTEMS), help="network to run (default: none)")
    add("--scale", choices=("full", "tiny"), default="full", help="published size, or one for tests (default: full)")
    add("--stages", default=",".join(STAGES), help=f"stages to run, separated by commas (default: {','.join(STAGES)})")
    add(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("build/full_size"),
        help="folder of the files (default: build/full_size)",
    )
    add("--page", type=pathlib.Path, default=PAGE, help="page to write (default: docs/full_size.md)")
    add(
        "--python",
        type=pathlib.Path,
        help="Python with diffusers and transformers (default: an environment in --workdir)",
    )
    add("--keep", action="store_true", help="keep the files of the run")
    add(
        "--compare",
        type=pathlib.Path,
        help="compare the tensors of this folder with those of --with, and exit (default: none)",
    )
    add("--with", dest="other", type=pathlib.Path, help="folder to compare with (default: none)")
    options = parser.parse(argv)
    if options.compare is not None:
        compare(options.compare, options.other)
        return
    if options.system is None:
        raise errors.UserError(f"--system is missing: give one of {', '.join(SYSTEMS)}")
    stages = options.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise errors.UserError(f"--stages: found {unknown[0]!r}, expected some of {', '.join(STAGES)}")
    python = options.python or environment(options.workdir.absolute() / "environment")
    folder = options.workdir.absolute() / options.system
    runner = Runner(SYSTEMS[options.system], options.scale, folder, python)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        good = runner.run_all(stages)
    finally:
        write_page(options.page, runner.results)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"wrote {options.page}; {platform.machine()}, {os.cpu_count()} cores")
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    errors.exit_on_user_error(main)()
