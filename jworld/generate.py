"""python -m jworld.generate --checkpoint DIR --image first.png --prompt "..." --pose "w-3, right-4" --out out.mp4

Generates a video from a first image along a path of actions. Writes the video, its settings and timings (out.json), and
with --sheet the images of every chunk with its action (out.png). With --stream the video file can be watched while it
grows, and at most one chunk is in memory. --batch FILE.jsonl generates many videos with one load of the model.

A model that answers in text prints its answer to --prompt about --image token by token, converses with --chat, and
answers the questions of --batch FILE.jsonl.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld import systems
from jworld.cameras import lengths
from jworld.data import media
from jworld.encoders import choices, preview_decoders
from jworld.evaluation import results
from jworld.parallel import mesh as mesh_lib
from jworld.parallel import startup
from jworld.systems import (
    frame_sizes,
    generation,
    key_logs,
    opening,
    options,
    question_files,
    requests,
    runs,
    text_answers,
    video_files,
)
from jworld.systems.base import TextSystem, VideoSystem
from jworld.systems.requests import Request, Video
from jworld.utils import arguments, compilation, errors, files, hub_folders, outputs


@dataclasses.dataclass(frozen=True)
class Job:
    """A video to generate, its first image, and its actions, one per chunk; `log` is a key log that they come from."""

    video: Video
    actions: list[results.Action]
    image: np.ndarray | pathlib.Path | tuple[pathlib.Path, ...] | None
    log: key_logs.KeyLog | None = None


def generate(
    request: Request, config: ml_collections.ConfigDict, console: rich.console.Console
) -> list[dict[str, Any]]:
    """Generate the videos of a request with the resolved config, and write them.

    The finished videos of an interrupted batch are left as they are.

    Returns:
      Contents of the JSON files, in the order of the videos; only those that were generated.

    Raises:
      UserError: an input is missing, damaged, or does not fit the model; then nothing has been generated.
    """
    system = generation.video_system(systems.create(config), config)
    for flag, value in (("--chat", request.chat), ("--system", request.system), ("--batch-size", request.batch_size)):
        if value:
            raise errors.UserError(f"{flag}: the model generates videos: leave it out")
    if request.stream and request.sheet:
        raise errors.UserError("--sheet needs all frames at the end, but --stream stores none: leave one of them out")
    kept = hub_folders.find(request.checkpoint) / runs.ENCODERS if request.encoders is None else request.encoders
    jobs = prepare(request, system, config, fps=system.frame_rate(kept))
    mesh = make_mesh(config)
    system.check_sampling(mesh)
    waiting = [job for job in jobs if request.batch is None or not job.video.is_finished(config)]
    if len(waiting) < len(jobs):
        console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} videos are finished")
    if not waiting:
        return []
    for job in waiting:
        outputs.check_file("--out", job.video.out)
    began, opened = time.time(), opening.Opening(system)
    run = runs.load(
        request.checkpoint,
        request.step,
        config=config,
        mesh=mesh,
        encoders=request.encoders,
        given=request.given,
        quantize=request.quantize,
        meanwhile=opened,
    )
    options.check_size(run.config, request.flags, run.encoders)
    loaded = time.time() - began
    written: list[dict[str, Any]] = []
    for job in waiting:
        rollout, facts = make_video(request, job, run, opened, console)
        facts["timings"]["load_seconds"] = 0.0 if written else loaded
        if not written:
            console.print(opened.describe(loaded, facts["timings"]))
        for path in video_files.write(job.video, rollout, facts, sheet=request.sheet, cameras=system.cameras):
            console.print(f"wrote {path}")
        written.append(facts)
    return written


def prepare(
    request: Request, system: VideoSystem[Any, Any], config: ml_collections.ConfigDict, *, fps: float | None
) -> list[Job]:
    """Check all videos of a request, and return them with their actions.

    Raises:
      UserError: an input is missing, damaged, or does not fit the model; for a batch with its line.
    """
    if request.keys is not None:
        log, (video,) = key_logs.read(request.keys), request.videos()
        generation.find_start(log.start.image, system, fps=fps)
        return [Job(video, log.actions(system, config, f"--keys {request.keys}"), log.start.image, log)]
    jobs: list[Job] = []
    checked: set[pathlib.Path | tuple[pathlib.Path, ...] | None] = set()
    for video in request.videos():
        try:
            steering = generation.steering(system, pose=video.pose, actions=video.actions)
            options.check_negative_prompt(system, video.negative_prompt)
            if video.start not in checked or video.start is None:
                generation.note_start(video.start, generation.find_start(video.start, system, fps=fps), system)
                checked.add(video.start)
            jobs.append(Job(video, system.controls(steering, video.windows, video.length), video.start))
        except errors.UserError as error:
            raise errors.UserError(f"{video.where}{error}") from error
    return jobs


def make_video(
    request: Request, job: Job, run: runs.Run, opened: opening.Opening, console: rich.console.Console
) -> tuple[results.Comparison | None, dict[str, Any]]:
    """Generate a video; return it with its settings and timings. With `request.stream` it is written and None."""
    video = job.video
    start = generation.find_start(job.image, generation.video_system(run.system, run.config), fps=run.encoders.fps)
    frames: list[np.ndarray] = []
    check = key_logs.Check(job.log)
    with (
        rich.progress.Progress(console=console) as progress,
        video_files.frame_sink(video, frames, console, stream=request.stream, fps=run.encoders.fps) as take,
    ):
        opened.bar = bar = video_files.ProgressBar(progress, chunks=len(job.actions))
        counts, timings = generation.roll_out(
            opened.session,
            job.actions,
            mesh=run.mesh,
            image=start,
            prompt=video.prompt,
            seed=video.seed,
            negative_prompt=video.negative_prompt,
            take=check.before(take),
            advance=bar.advance,
            watch=opened.listener,
        )
    if job.log is not None:
        console.print(check.describe(run))
    stops = np.cumsum(counts).tolist()
    chunks = [
        results.Chunk(start=start, stop=stop, action=action.name)
        for start, stop, action in zip([0, *stops], stops, job.actions, strict=False)
    ]
    facts = {
        "checkpoint": str(request.checkpoint),
        "step": run.step,
        **video.facts(),
        **({} if request.keys is None else {"keys": str(request.keys), "same_steps": check.same}),
        "chunks": [{"start": x.start, "stop": x.stop, "action": x.action} for x in chunks],
        "fps": run.encoders.fps,
        "device": f"{len(run.mesh.devices.flat)} x {jax.devices()[0].device_kind}",
        "timings": timings,
        "config": run.config.to_dict(),
    }
    if request.stream:
        return None, facts
    return results.Comparison(title=video.prompt, prediction=np.concatenate(frames), chunks=chunks), facts


def answer(request: Request, config: ml_collections.ConfigDict, console: rich.console.Console) -> dict[str, Any]:
    """Answer in text: one question, a conversation with `request.chat`, or the questions of `request.batch`.

    Returns:
      Contents of the JSON file of one question or of a conversation; for a batch its timings.

    Raises:
      UserError: there is no question, a flag is for models that generate videos, or the files do not fit.
    """
    requests.check_text(request)
    system = generation.text_system(systems.create(config), config)
    sampling = system.sampling(request.seeds[0])
    entries = []
    if request.batch is not None:
        entries = question_files.read(request.batch, sampling=sampling, system=request.system)
    if request.out != Request.out:
        outputs.check_file("--out", request.out)
    images = [media.read_image(path) for path in request.images]
    began = time.time()
    opened = opening.TextOpening(
        system,
        request.prompt,
        images,
        sampling=sampling,
        text=request.system,
        questions=[entry.question for entry in entries],
        batch=request.batch_size or requests.BATCH_SIZE,
    )
    run = runs.load(
        request.checkpoint,
        request.step,
        config=config,
        mesh=make_mesh(config),
        encoders=request.encoders,
        given=request.given,
        meanwhile=opened,
    )
    loaded = time.time() - began
    if request.batch is not None:
        console.print(opened.describe_loading(loaded))
        found = text_answers.many(
            run, entries, request.out, batch=request.batch_size or requests.BATCH_SIZE, console=console
        )
        console.print(
            f"{found['tokens_per_second']:.1f} tokens per second, after {found['compile_seconds']:.1f} s of further "
            "compiling"
        )
        return dict(found)
    chosen = text_answers.converse if request.chat else text_answers.one
    facts = chosen(
        run,
        request.prompt,
        images,
        sampling=sampling,
        system=request.system,
        console=console,
        session=opened.session,
    )
    if request.out != Request.out:
        try:
            request.out.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(request.out, facts)
        except OSError as error:
            raise errors.UserError(f"--out {request.out} could not be written ({error}): give another name") from error
        console.print(f"wrote {request.out}")
    if not request.chat:
        timings = facts["timings"]
        console.print(opened.describe(loaded, timings))
        console.print(f"{timings['tokens_per_second']:.1f} tokens per second")
    return facts


def make_mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """Make the mesh of the config on the first devices; the others stay idle."""
    sizes = dict(config.mesh)
    count = int(np.prod(list(sizes.values())))
    return mesh_lib.make_mesh(**sizes, devices=jax.devices()[: count if count > 0 else None])


DESCRIPTION = """Generate a video with a trained model from an image, a caption and, for some models, a path of actions.

Several seeds, or a file with --batch, make many videos with one load of the model.

A model that answers in text prints its answer to --prompt about any number of --image, token by token; it converses
with --chat, and answers a file of questions with --batch."""
EPILOG = """The model's system defines how a path is written.

--pose 'w-3, right-4' moves 3 latents forward and turns right for 4 (a latent is 4 frames): w, s, a and d move; right,
left, up and down turn; none stands still; keys held together are joined as in w+right-4. The first image is a latent
of its own, and all latents together must fill whole chunks; --length pads or cuts them. A JSON file has camera poses,
or for a robot its actions.

--actions 'D*3,DR*2,N' gives a control token for every latent frame, with repeats: D drives, B reverses, N stays, each
also with L or R for a turn (D, DL, DR, B, BL, BR, N, NL, NR). 'random*32' or 'random:SEED*32' draws 32 tokens.

--batch takes one JSON object per line, or a JSON list of them, with the keys prompt, image, pose, actions, windows,
length, seed, out and negative_prompt; what an entry lacks comes from the options. Names of files are relative to the
current folder, and those of videos to --out. All entries are checked before anything is generated. The same command
again leaves finished videos as they are and continues with the next.

For a model that answers in text, --batch takes objects with the keys prompt or messages, image or images, system,
max_tokens, temperature, top_k, top_p, stop and seed. The answers are written to --out, in the same order, as the same
objects with the key answer. Questions of similar length are answered together.

--chat reads a question per line: /image FILE adds an image to the next one, /reset starts again, /quit ends."""


def make_parser() -> arguments.Parser:
    """Return the parser of this command's options."""
    parser = arguments.Parser("python -m jworld.generate", DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    arguments.add_checkpoint(parser)
    _add_input_flags(parser)
    _add_output_flags(parser)
    _add_flags(parser)
    _add_text_flags(parser)
    add(
        "--encoders",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of records with the model's autoencoder and encoders, or for a model that answers in text a "
        "folder with its tokenizer (default: those of the checkpoint)",
    )
    add(
        "--mesh",
        type=arguments.checked(
            "AXIS=INT,...", f"axis=size with axes {', '.join(mesh_lib.AXIS_NAMES)}", mesh_lib.parse_sizes
        ),
        default=(),
        help="devices: sequence=2 splits a video over two, fsdp=2 only the weights (default: one device)",
    )
    arguments.add_changes(parser, default="as saved with the checkpoint", alias=True)
    choices.add_arguments(parser, defaults=dict.fromkeys(choices.FLAGS, "that of --encoders"))
    preview_decoders.add_argument(parser)
    options.add_quantize(parser)
    parser.only_with("--batch-size", "--batch")
    parser.only_with("--length", "--pose", "--actions", "--batch")
    return parser


def _add_input_flags(parser: arguments.Parser) -> None:
    add = parser.add_argument
    add(
        "--image",
        dest="images",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="FILE",
        help="first image, whose middle is taken; models that continue videos also take a video and continue its last "
        "frames; models of several cameras take one --image for each, in their order, and models that answer in text "
        "any number (default: none)",
    )
    add("--prompt", default="", help="caption of the video, or the question")
    add("--pose", metavar="PATH", help="pose string or JSON file of poses, see below (default: none)")
    add("--actions", metavar="TOKENS", help="control tokens, see below (default: none)")
    add(
        "--keys",
        type=pathlib.Path,
        metavar="FILE",
        help="key log that python -m jworld.play saved, whose video is made again bit for bit on the same device "
        "(default: none)",
    )
    add("--windows", type=arguments.positive, help="windows of a model without actions (default: 1)")
    add(
        "--length",
        choices=lengths.LENGTHS,
        help="for a path that ends within a chunk: pad it (cameras stand still, the last token is held) or cut its end "
        "(default: refuse it)",
    )


def _add_output_flags(parser: arguments.Parser) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=pathlib.Path,
        default=Request.out,
        metavar="FILE",
        help="video to write, FILE.mp4; FILE.json records how it was made. With several cameras FILE.mp4 is their grid "
        "and FILE.CAMERA.mp4 each of them, unless --stream is given. With several seeds FILE_SEED.mp4, with "
        "--batch a folder. For answers in text FILE.json, or with --batch FILE.jsonl (required for videos and --batch)",
    )
    add("--sheet", action="store_true", help="also write FILE.png: the images of every chunk under its action")
    add(
        "--stream",
        action="store_true",
        help="write frames as soon as they are ready, in constant memory; FILE.mp4 can be watched while it grows",
    )
    add(
        "--batch",
        type=pathlib.Path,
        metavar="FILE",
        help="file of videos to generate or of questions, FILE.jsonl or FILE.json, see below (default: none)",
    )
    add(
        "--seed",
        dest="seeds",
        type=arguments.checked("INT,...", "different integers of 32 bits such as 0 or 0,1,2", requests.parse_seeds),
        default=Request.seeds,
        help="random seed for the noise, or for the draws of an answer; several seeds make a video each (default: 0)",
    )


def _add_flags(parser: arguments.Parser) -> None:
    """Add the plain flags of `options.Flags`."""
    group = parser.add_argument_group("settings of the saved config")
    saved = "(default: as saved with the checkpoint)"
    group.add_argument(
        "--size",
        type=arguments.checked("WxH", "WxH in pixels such as 832x480, or a name such as 480p", parse_size),
        help=f"width and height of the video in pixels, or a published set of sizes, 480p or 720p {saved}",
    )
    group.add_argument(
        "--aspect",
        type=arguments.checked("W:H", "W:H, such as 16:9", lambda text: frame_sizes.parse(text, ":")),
        help="ratio of width and height, which chooses one of the published sizes, or for other models the nearest "
        f"size with as many tokens {saved}",
    )
    group.add_argument(
        "--fps",
        type=arguments.finite,
        help="frame rate of the video, in frames per second (default: that of the model's videos)",
    )
    group.add_argument("--steps", type=arguments.positive, help=f"denoising steps {saved}")
    group.add_argument(
        "--guidance",
        type=arguments.finite,
        help=f"scale of classifier-free guidance, as in config.sample.rollout.guidance {saved}",
    )
    group.add_argument("--negative-prompt", help=f"text of the guidance's negative branch {saved}")


def _add_text_flags(parser: arguments.Parser) -> None:
    """Add the options of models that answer in text."""
    add = parser.add_argument_group("models that answer in text").add_argument
    saved = "(default: as saved with the checkpoint)"
    add("--chat", action="store_true", help="converse in the terminal; --prompt, if given, is the first question")
    add("--system", default="", metavar="TEXT", help="text that precedes the conversation (default: none)")
    add("--max-tokens", type=arguments.positive, help=f"largest number of tokens of an answer {saved}")
    add("--temperature", type=arguments.finite, help=f"divisor of the logits; 0 takes the most likely token {saved}")
    add("--top-k", type=int, help=f"draw from this number of most likely tokens; 0 for all {saved}")
    add(
        "--top-p",
        type=arguments.finite,
        help=f"draw from the most likely tokens that have this probability together {saved}",
    )
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help=f"text that ends an answer; may be given several times {saved}",
    )
    add(
        "--batch-size",
        type=arguments.positive,
        help=f"questions of --batch that are answered at once (default: {requests.BATCH_SIZE})",
    )


def parse_size(text: str) -> frame_sizes.Size | str:
    """Parse "832x480" to a size; a name such as "480p" stays as it is."""
    return text if text.endswith("p") and text[:-1].isdecimal() else frame_sizes.parse(text, "x")


def parse_arguments(argv: Sequence[str] | None) -> Request:
    found = make_parser().parse(argv)
    names = {field.name for field in dataclasses.fields(Request)} - {"given", "flags"}
    flags = {field.name: getattr(found, field.name) for field in dataclasses.fields(options.Flags)}
    flags["stop"] = None if found.stop is None else tuple(found.stop)
    found.images = tuple(found.images)
    return Request(
        **{name: getattr(found, name) for name in names},
        given=choices.EncoderOverrides.from_arguments(found),
        flags=options.Flags(**flags),
    )


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    request = key_logs.applied(parse_arguments(argv))
    startup.require_alone("python -m jworld.generate")
    compilation.use_cache()
    console = rich.console.Console(highlight=False, soft_wrap=True)
    config = runs.resolve(
        request.checkpoint, encoders=request.encoders, flags=request.flags, changes=request.changes, mesh=request.mesh
    )
    if isinstance(systems.create(config), TextSystem):
        answer(request, config, console)
        console.print(f"next: another --prompt, or python -m jworld.evaluate --checkpoint {request.checkpoint}")
        return
    for facts in generate(request, config, console):
        timings = facts["timings"]
        console.print(
            f"{facts['chunks'][-1]['stop']} frames, {timings['frames_per_second']:.1f} per second; a chunk takes "
            f"{timings['chunk_p50_seconds']:.2f} s (p95 {timings['chunk_p95_seconds']:.2f} s), after "
            f"{timings['compile_seconds']:.1f} s of compiling on {facts['device']}"
        )
    console.print(f"next: another path or --seed, or python -m jworld.evaluate --checkpoint {request.checkpoint}")


if __name__ == "__main__":
    main()
