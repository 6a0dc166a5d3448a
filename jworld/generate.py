"""python -m jworld.generate --checkpoint DIR --image first.png --prompt "..." --pose "w-3, right-4" --out out.mp4

Generates a video from a first image along a path of actions. Writes the video, its settings and timings (out.json), and
with --sheet the images of every chunk with its action (out.png). With --stream the video file can be watched while it
grows, and at most one chunk is in memory.

A model that answers in text prints its answer to --prompt about --image token by token.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld import systems
from jworld.cameras import lengths
from jworld.data import media, video_stream
from jworld.data.recording import episodes
from jworld.encoders import model_encoders as encoders_lib
from jworld.evaluation import contact_sheets, results
from jworld.parallel import mesh as mesh_lib
from jworld.parallel import startup
from jworld.systems import generation, recipes, runs
from jworld.systems.base import TextSystem
from jworld.utils import arguments, compilation, errors, files
from jworld.utils import config as run_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request for a video or an answer.

    Attributes:
      checkpoint: folder of a run, of released or of imported weights.
      step: training step of the checkpoint; None for the newest.
      image: first image, or a video whose last frames are continued; None for a model that needs a caption only.
      prompt: caption of the video, or question.
      pose: camera path, for models steered by --pose.
      actions: control tokens, for models steered by --actions.
      windows: length of the video, for models without actions.
      length: what to do with a path that ends within a chunk: "pad", "cut", or None to refuse it.
      seed: random seed for the noise.
      encoders: folder with the encoders; None for those of the checkpoint.
      given: encoders that replace those of the folder.
      changes: new values for keys of the saved config, as text by dotted key.
      mesh: sizes of the mesh by axis.
      out: file to write.
      sheet: also write the images of every chunk.
      stream: write frames as soon as they are ready.
    """

    checkpoint: pathlib.Path
    prompt: str
    out: pathlib.Path = pathlib.Path()
    image: pathlib.Path | None = None
    pose: str | None = None
    actions: str | None = None
    windows: int | None = None
    length: str | None = None
    seed: int = 0
    step: int | None = None
    encoders: pathlib.Path | None = None
    given: encoders_lib.EncoderOverrides = dataclasses.field(default_factory=encoders_lib.EncoderOverrides)
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: tuple[tuple[str, int], ...] = ()
    sheet: bool = False
    stream: bool = False


def generate(request: Request, config: ml_collections.ConfigDict, console: rich.console.Console) -> dict[str, Any]:
    """Generate a video with the resolved config, and write it.

    Returns:
      Contents of the JSON file.

    Raises:
      UserError: an input is missing, damaged, or does not fit the model.
    """
    system = generation.video_system(systems.create(config), config)
    if request.out.suffix.lower() != ".mp4":
        found = "missing" if request.out == Request.out else request.out
        raise errors.UserError(f"--out is {found}, expected a name that ends in .mp4")
    if request.stream and request.sheet:
        raise errors.UserError("--sheet needs all frames at the end, but --stream stores none: leave one of them out")
    image = generation.find_start(request.image, needed=system.needs_image)
    steering = generation.steering(system, pose=request.pose, actions=request.actions)
    actions = system.controls(steering, request.windows, request.length)
    mesh = make_mesh(config)
    system.check_sampling(mesh)
    began = time.time()
    run = runs.load(
        request.checkpoint, request.step, config=config, mesh=mesh, encoders=request.encoders, given=request.given
    )
    loaded = time.time() - began
    frames: list[np.ndarray] = []
    with rich.progress.Progress(console=console) as progress, frame_sink(request, run, frames) as take:
        bar = progress.add_task("generating", total=len(actions))
        counts, timings = generation.roll_out(
            run.session(),
            actions,
            mesh=mesh,
            image=image,
            prompt=request.prompt,
            seed=request.seed,
            take=take,
            advance=lambda: progress.advance(bar),
        )
    stops = np.cumsum(counts).tolist()
    chunks = [
        results.Chunk(start=start, stop=stop, action=action.name)
        for start, stop, action in zip([0, *stops], stops, actions, strict=False)
    ]
    facts = {
        "checkpoint": str(request.checkpoint),
        "step": run.step,
        "image": None if request.image is None else str(request.image),
        "prompt": request.prompt,
        "pose": request.pose,
        "actions": request.actions,
        "windows": request.windows,
        "seed": request.seed,
        "chunks": [{"start": x.start, "stop": x.stop, "action": x.action} for x in chunks],
        "fps": run.encoders.fps,
        "device": f"{len(mesh.devices.flat)} x {jax.devices()[0].device_kind}",
        "timings": {"load_seconds": loaded, **timings},
        "config": config.to_dict(),
    }
    rollout = None
    if not request.stream:
        rollout = results.Comparison(title=request.prompt, prediction=np.concatenate(frames), chunks=chunks)
    for path in write(request, rollout, facts):
        console.print(f"wrote {path}")
    return facts


def answer(request: Request, config: ml_collections.ConfigDict, console: rich.console.Console) -> dict[str, Any]:
    """Answer in text: print the answer token by token, and write it to `request.out` if given.

    Returns:
      Contents of the JSON file.

    Raises:
      UserError: there is no question, a flag is for models that generate videos, or the files do not fit.
    """
    for flag, value in (("--pose", request.pose), ("--actions", request.actions), ("--windows", request.windows)):
        if value is not None:
            raise errors.UserError(f"{flag} {value}: the model answers in text: leave it out")
    if not request.prompt:
        raise errors.UserError("--prompt is missing: ask something, such as --prompt 'What is to the left?'")
    out = None if request.out == Request.out else request.out
    if out is not None and out.suffix != ".json":
        raise errors.UserError(f"--out is {out}, expected a name that ends in .json: the model answers in text")
    images = [] if request.image is None else [media.read_image(request.image)]
    run = runs.load(request.checkpoint, request.step, config=config, mesh=make_mesh(config), given=request.given)
    session = generation.text_system(run.system, config).session(run.model, run.encoders)
    printer = TokenPrinter(session.decode, console)
    tokens, timings = generation.answer(session, images, request.prompt, mesh=run.mesh, take=printer)
    console.print()
    facts = {"prompt": request.prompt, "answer": session.decode(tokens), "tokens": tokens, "timings": timings}
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(out, facts)
        except OSError as error:
            raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
        console.print(f"wrote {out}")
    return facts


class TokenPrinter:
    """A printer of the text that each token adds; a letter may need more than one token."""

    def __init__(self, decode: Callable[[Sequence[int]], str], console: rich.console.Console):
        self._decode, self._console, self._tokens = decode, console, list[int]()

    def __call__(self, token: int) -> None:
        before = self._decode(self._tokens)
        self._tokens.append(token)
        after = self._decode(self._tokens)
        if after.startswith(before) and not after.endswith("\N{REPLACEMENT CHARACTER}"):
            self._console.print(after[len(before) :], end="", markup=False)


@contextlib.contextmanager
def frame_sink(request: Request, run: runs.Run, frames: list[np.ndarray]) -> Iterator[Callable[[np.ndarray], None]]:
    """Open the destination of a chunk's frames: a growing video file, or the list `frames`."""
    if not request.stream:
        yield frames.append
        return
    try:
        request.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(f"--out {request.out} could not be written ({error}): give another name") from error
    with video_stream.VideoStream(request.out, fps=run.encoders.fps) as stream:
        yield stream.write


def resolve(request: Request) -> ml_collections.ConfigDict:
    """Return the saved config with all defaults, the mesh of the request (one device by default) and its changes."""
    config = run_config.load(request.checkpoint)
    values = config.to_dict()
    for name, section in systems.create(config).sections().items():
        node = values
        for key in name.split("."):
            node = node.setdefault(key, {})
        node.update({key: _plain(value) for key, value in dataclasses.asdict(section).items()})
    values["mesh"] = dict.fromkeys(mesh_lib.AXIS_NAMES, 1) | dict(request.mesh)
    return recipes.change(ml_collections.ConfigDict(values), request.changes)


def _plain(value: Any) -> Any:
    """Return a dtype as its name, everything else as it is."""
    return value if isinstance(value, str | int | float | tuple | None) else jnp.dtype(value).name


def make_mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """Make the mesh of the config on the first devices; the others stay idle."""
    sizes = dict(config.mesh)
    count = int(np.prod(list(sizes.values())))
    return mesh_lib.make_mesh(**sizes, devices=jax.devices()[: count if count > 0 else None])


def write(request: Request, rollout: results.Comparison | None, facts: dict[str, Any]) -> list[pathlib.Path]:
    """Write video, numbers and images, or only the numbers without a rollout; return their names.

    Each file is complete or absent.
    """
    out = request.out
    # The video encoder chooses the format by the suffix.
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    paths = [out, out.with_suffix(".json")]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if rollout is not None:
                episodes.write_video(partial, rollout.prediction, fps=facts["fps"])
                partial.replace(out)
            partial.write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
            partial.replace(paths[1])
            if rollout is not None and request.sheet:
                paths.append(out.with_suffix(".png"))
                contact_sheets.contact_sheet([rollout]).save(partial, format="png")
                partial.replace(paths[2])
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
    return paths


def parse_mesh(text: str) -> tuple[tuple[str, int], ...]:
    """Parse "data=1,sequence=2" into pairs of axis and size."""
    pairs = [item.partition("=") for item in text.split(",")]
    for name, _, size in pairs:
        if name.strip() not in mesh_lib.AXIS_NAMES or not size.strip().isdecimal():
            raise ValueError(text)
    return tuple((name.strip(), int(size)) for name, _, size in pairs)


DESCRIPTION = """Generate a video with a trained model from an image, a caption and, for some models, a path of actions.

A model that answers in text prints its answer to --prompt about --image, token by token."""
EPILOG = """The model's system defines how a path is written.

--pose 'w-3, right-4' moves 3 latents forward and turns right for 4 (a latent is 4 frames): w, s, a and d move; right,
left, up and down turn; none stands still; keys held together are joined as in w+right-4. The first image is a latent
of its own, and all latents together must fill whole chunks; --length pads or cuts them. A JSON file has camera poses,
or for a robot its actions.

--actions 'D*3,DR*2,N' gives a control token for every latent frame, with repeats: D drives, B reverses, N stays, each
also with L or R for a turn (D, DL, DR, B, BL, BR, N, NL, NR). 'random*32' or 'random:SEED*32' draws 32 tokens."""


def make_parser() -> arguments.Parser:
    """Return the parser of this command's options."""
    parser = arguments.Parser("python -m jworld.generate", DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--checkpoint", required=True, type=pathlib.Path, metavar="DIR", help="folder of a run, or one with weights")
    add(
        "--image",
        type=pathlib.Path,
        metavar="FILE",
        help="first image, whose middle is taken; models that continue videos also take an .mp4 and continue its last "
        "frames (default: none, for models that need a caption only)",
    )
    add("--prompt", default="", help="caption of the video, or the question")
    add("--pose", metavar="PATH", help="pose string or JSON file of poses, see below (default: none)")
    add("--actions", metavar="TOKENS", help="control tokens, see below (default: none)")
    add("--windows", type=arguments.positive, help="windows of a model without actions (default: 1)")
    add(
        "--length",
        choices=lengths.LENGTHS,
        help="for a path that ends within a chunk: pad it (cameras stand still, the last token is held) or cut its end "
        "(default: refuse it)",
    )
    add(
        "--out",
        type=pathlib.Path,
        default=Request.out,
        metavar="FILE",
        help="video to write, FILE.mp4; FILE.json records how it was made. For a model that answers in text, FILE.json "
        "(required for videos)",
    )
    add("--sheet", action="store_true", help="also write FILE.png: the images of every chunk under its action")
    add(
        "--stream",
        action="store_true",
        help="write frames as soon as they are ready, in constant memory; FILE.mp4 can be watched while it grows",
    )
    add("--seed", type=int, default=Request.seed, help="random seed for the noise")
    add("--step", type=arguments.positive, help="training step of the checkpoint (default: the newest)")
    add(
        "--encoders",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of records with the model's autoencoder and encoders (default: those of the checkpoint)",
    )
    add(
        "--mesh",
        type=arguments.checked("AXIS=INT,...", f"axis=size with axes {', '.join(mesh_lib.AXIS_NAMES)}", parse_mesh),
        default=(),
        help="devices: sequence=2 splits a video over two, fsdp=2 only the weights (default: one device)",
    )
    arguments.add_changes(parser, default="as saved with the checkpoint", alias=True)
    encoders_lib.add_arguments(parser, defaults=dict.fromkeys(encoders_lib.FLAGS, "that of --encoders"))
    return parser


def parse_arguments(argv: Sequence[str] | None) -> Request:
    options = make_parser().parse(argv)
    names = {field.name for field in dataclasses.fields(Request)} - {"given"}
    return Request(
        **{name: getattr(options, name) for name in names},
        given=encoders_lib.EncoderOverrides.from_arguments(options),
    )


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    request = parse_arguments(argv)
    startup.require_alone("python -m jworld.generate")
    compilation.use_cache()
    console = rich.console.Console(highlight=False, soft_wrap=True)
    config = resolve(request)
    if isinstance(systems.create(config), TextSystem):
        timings = answer(request, config, console)["timings"]
        console.print(
            f"{timings['tokens_per_second']:.1f} tokens per second; the prompt took {timings['start_seconds']:.2f} s, "
            f"compiling {timings['compile_seconds']:.1f} s"
        )
        console.print(f"next: another --prompt, or python -m jworld.evaluate --checkpoint {request.checkpoint}")
        return
    facts = generate(request, config, console)
    timings = facts["timings"]
    console.print(
        f"{facts['chunks'][-1]['stop']} frames, {timings['frames_per_second']:.1f} per second; a chunk takes "
        f"{timings['chunk_p50_seconds']:.2f} s (p95 {timings['chunk_p95_seconds']:.2f} s), after "
        f"{timings['compile_seconds']:.1f} s of compiling on {facts['device']}"
    )
    console.print(f"next: another path or --seed, or python -m jworld.evaluate --checkpoint {request.checkpoint}")


if __name__ == "__main__":
    main()
