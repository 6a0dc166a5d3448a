"""python -m jworld.play --checkpoint DIR

Serves a trained model to a browser, where it is steered by keys while it generates. docs/play.md describes the page,
the protocol and the limits.
"""

import argparse
import asyncio
import concurrent.futures
import dataclasses
import importlib.util
import pathlib
import socket
import time
import webbrowser
from collections.abc import Sequence

import ml_collections
import numpy as np
import rich.console

from jworld import systems
from jworld.data.recording import recorder
from jworld.encoders import choices, preview_decoders
from jworld.parallel import mesh as mesh_lib
from jworld.parallel import startup
from jworld.play import answers, images, worker
from jworld.systems import generation, key_logs, live, options, runs
from jworld.utils import arguments, compilation, errors, limits, outputs

DESCRIPTION = """Serve a trained model to a browser, where it is steered by keys while it generates.

Only models that are steered by actions can be played. The server listens on this machine alone unless --host is given;
then its address has a token, without which nobody gets in."""
EPILOG = """Recordings with cameras are episodes, which python -m jworld.precompute reads: --input DIR/episodes.

A saved key log makes the same video again, bit for bit on the same device: python -m jworld.generate --keys FILE."""


def make_parser() -> arguments.Parser:
    """Return the parser of this command's options."""
    parser = arguments.Parser("python -m jworld.play", DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    arguments.add_checkpoint(parser)
    _add_server_flags(parser)
    add(
        "--image",
        dest="images",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="FILE",
        help="first image that can be chosen; may be repeated (default: views of the world that the model was trained "
        "on)",
    )
    add(
        "--world",
        choices=recorder.WORLDS,
        help="simulated world that the first images show; doom needs ViZDoom (default: that of the model's data)",
    )
    parser.not_with("--world", "--image")
    add("--prompt", help="caption (default: that of the first image, if it has one)")
    add(
        "--seed",
        type=arguments.seed,
        default=0,
        help="random seed for the noise",
    )
    add("--steps", type=arguments.positive, help="denoising steps (default: as saved with the checkpoint)")
    add("--guidance", type=float, help="scale of classifier-free guidance (default: as saved with the checkpoint)")
    add(
        "--recordings",
        type=pathlib.Path,
        default=pathlib.Path("runs/play"),
        metavar="DIR",
        help="folder of recorded episodes and videos",
    )
    add(
        "--ask",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of a second model, such as TheWorld, which answers questions about the present frame in text "
        "(default: no questions)",
    )
    add("--open", action="store_true", help="open the page in a browser")
    add(
        "--encoders",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of records with the model's autoencoder and encoders (default: those of the checkpoint)",
    )
    arguments.add_changes(parser, default="as saved with the checkpoint")
    choices.add_arguments(parser, defaults=dict.fromkeys(choices.FLAGS, "that of --encoders"))
    preview_decoders.add_argument(parser)
    options.add_quantize(parser)
    return parser


def _add_server_flags(parser: arguments.Parser) -> None:
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; another one than the default needs a token",
    )
    add(
        "--port",
        type=arguments.integer(0, 65535),
        default=8000,
        help="port to listen on; 0 for any free one",
    )
    add(
        "--players",
        type=arguments.integer(1, limits.PLAY_CONNECTIONS),
        default=1,
        help="players at the same time, each with a session of its own; others wait",
    )
    add(
        "--devices",
        type=arguments.integer(1, 2, "1 or 2"),
        default=1,
        help="devices of the model; with 2, a step is decoded on the second one while the next step is generated",
    )


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A warm model: what a server needs."""

    world: worker.World
    games: list[worker.Game]
    first: list[images.FirstImage]
    start: key_logs.Start
    answerer: answers.Answerer | None


def load(found: argparse.Namespace, console: rich.console.Console) -> Loaded:
    """Open the model of a command line, compile it, and print its size; it runs on the model's thread."""
    flags = options.Flags(steps=found.steps, guidance=found.guidance)
    config = runs.resolve(found.checkpoint, encoders=found.encoders, flags=flags, changes=found.changes)
    decoder = worker.second_device(found.devices, live.live_system(systems.create(config), config))
    asked = None if found.ask is None else _text_config(found.ask)
    given = images.given(found.images, found.prompt or "")
    world_shown = recorder.resolve_source(found.world) if found.world else ""
    outputs.check_folder("--recordings", found.recordings)
    began = time.monotonic()
    console.print(f"loading {found.checkpoint}, then compiling")
    run = runs.load(
        found.checkpoint,
        found.step,
        config=config,
        encoders=found.encoders,
        given=choices.EncoderOverrides.from_arguments(found),
        quantize=found.quantize,
    )
    world = worker.World(run, decoder=decoder)
    first = given or images.rendered(config, world.size, source=world_shown)
    prompt = first[0].caption if found.prompt is None else found.prompt
    start = key_logs.Start(image=first[0].image, prompt=prompt, seed=found.seed)
    games = [worker.Game(world) for _ in range(found.players)]
    world.warm(games, start)
    console.print(
        f"{world.identity[:12]}: {world.size[0]}x{world.size[1]} pixels at {world.fps:g} frames per second, "
        f"{world.new_frames} frames per step; ready after {time.monotonic() - began:.0f} s"
    )
    players = f"{len(games)} player{'s' if len(games) > 1 else ''}"
    answerer = None
    if asked is not None:
        console.print(f"loading {found.ask}, which answers questions")
        mesh = None if decoder is None else mesh_lib.make_mesh(devices=[decoder])
        answerer = answers.Answerer(runs.load(found.ask, config=asked, mesh=mesh))
        try:
            answerer.warm(np.zeros((world.size[1], world.size[0], 3), np.uint8))
        except errors.UserError as error:
            raise errors.UserError(f"--ask {found.ask}: {error}") from error
    console.print(f"{players}, with {world.session_bytes / 1e6:.1f} MB on the device for each session")
    return Loaded(world, games, first, start, answerer)


def _text_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the config of the model of --ask; a `UserError` if it does not answer questions about images."""
    try:
        config = runs.resolve(directory)
        generation.text_system(systems.create(config), config)
    except errors.UserError as error:
        raise errors.UserError(f"--ask {directory}: {error}") from error
    return config


async def serve(
    found: argparse.Namespace, loaded: Loaded, thread: concurrent.futures.Executor, console: rich.console.Console
) -> None:
    """Serve until interrupted."""
    # Not at the top: these need the extra `play`, which the help of this command does not.
    from jworld.play.director import Director
    from jworld.play.server import Server

    director = Director(
        loaded.world,
        loaded.first,
        loaded.games,
        start=loaded.start,
        model_thread=thread,
        recordings=found.recordings,
        answerer=loaded.answerer,
    )
    server = Server(director, host=found.host, port=found.port)
    try:
        async with server.listening() as address:
            console.print(f"play at {address} (Ctrl-C ends)")
            if found.open:
                webbrowser.open(address)
            await asyncio.Event().wait()
    except OSError as error:
        raise _no_port(found, error) from error


def _check_port(found: argparse.Namespace) -> None:
    """Raise a `UserError` if the port cannot be used: found before a model is loaded and compiled."""
    try:
        family, _, _, _, address = socket.getaddrinfo(found.host, found.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the server does it: a port whose last connections still end can be used.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except (OSError, UnicodeError) as error:
        raise _no_port(found, error) from error


def _no_port(found: argparse.Namespace, error: OSError | UnicodeError) -> errors.UserError:
    reason = getattr(error, "strerror", None) or errors.one_line(error)
    return errors.UserError(f"--port {found.port} of --host {found.host} cannot be used ({reason}): choose another one")


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    found = make_parser().parse(argv)
    if importlib.util.find_spec("aiohttp") is None:
        raise errors.UserError("aiohttp is not installed, which the server needs: pip install 'jworld[play]'")
    startup.require_alone("python -m jworld.play")
    _check_port(found)
    compilation.use_cache()
    console = rich.console.Console(highlight=False, soft_wrap=True)
    thread = concurrent.futures.ThreadPoolExecutor(1, "model")
    try:
        loaded = thread.submit(load, found, console).result()
        asyncio.run(serve(found, loaded, thread, console))
    finally:
        # Ctrl-C does not wait for a compilation.
        thread.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
