"""Record the page of `jworld play` as an animated WebP: the image, and the keys that are held.

A server of the checkpoint runs in this process, and headless Chromium shows its page. The keys are pressed on the page,
step by step, and every frame is drawn when the screenshot of the one before is taken. So the same settings give the
same screenshots on any machine, however slow it is.
"""

import asyncio
import base64
import concurrent.futures
import io
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import PIL.Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jworld  # noqa: E402
from jworld.play import director, images, server, worker  # noqa: E402
from jworld.systems import key_logs, live  # noqa: E402
from jworld.utils import arguments, compilation, errors, outputs  # noqa: E402
from scripts import chromium  # noqa: E402

#: Pixels of the tab: wide enough for one row of eight keys.
TAB = (720, 900)
#: Keeps frames back until `take` draws the next one.
HOLD = """(() => {
  const { handlers } = play.connection, { frame } = handlers, waiting = play.waiting = [];
  handlers.frame = (each) => waiting.push(each);
  play.connection.send("pace", { on: false });
  play.take = async () => {
    const next = waiting.shift();
    if (!next) return false;
    frame(next);
    while (play.state.last !== next.frame) await new Promise((done) => setTimeout(done));
    return true;
  };
})()"""
#: Qualities that are tried, from the best one.
QUALITIES = range(90, 20, -5)


def parse_keys(text: str) -> list[tuple[str, int]]:
    """Parse "w*3,w+right*2" to pairs of an action and its number of steps."""
    runs = []
    for part in text.split(","):
        name, _, count = part.strip().partition("*")
        if not (count or "1").isdecimal() or int(count or 1) < 1:
            raise errors.UserError(f"--keys is {text!r}, expected actions with their steps, such as w*3,w+right*2,none")
        runs.append((name, int(count or 1)))
    return runs


def load(checkpoint: pathlib.Path, view: int, seed: int) -> tuple[worker.World, list[images.FirstImage], worker.Game]:
    """Open and compile a model; the session of the page starts from the first image with the number `view`."""
    run = jworld.load(str(checkpoint))
    world = worker.World(run)
    found = images.rendered(run.config, world.size)
    if not 1 <= view <= len(found):
        raise errors.UserError(f"--view is {view}, expected a number from 1 to {len(found)}")
    first = [found[view - 1]]
    game = worker.Game(world)
    world.warm([game], key_logs.Start(image=first[0].image, prompt=first[0].caption, seed=seed))
    return world, first, game


async def record(
    world: worker.World,
    first: list[images.FirstImage],
    game: worker.Game,
    thread: concurrent.futures.Executor,
    *,
    keys: Sequence[tuple[str, int]],
    seed: int,
    every: int,
    width: int,
) -> list[PIL.Image.Image]:
    """Play the keys on the page, and return a screenshot of every `every`-th frame, `width` pixels wide."""
    start = key_logs.Start(image=first[0].image, prompt=first[0].caption, seed=seed)
    codes = {key.name: key.codes[0] for key in world.keys}
    held: list[str] = []
    found: list[PIL.Image.Image] = []
    with tempfile.TemporaryDirectory() as folder:
        directing = director.Director(
            world, first, [game], start=start, model_thread=thread, recordings=pathlib.Path(folder)
        )
        async with (
            server.Server(directing, host="127.0.0.1", port=0).listening() as address,
            chromium.opened(address) as page,
        ):
            await page.call(
                "Emulation.setDeviceMetricsOverride", width=TAB[0], height=TAB[1], deviceScaleFactor=1, mobile=False
            )
            await page.until("play.state.count > 0")
            await page.value("document.getElementById('pause').click()")
            await page.until("play.state.paused")
            await page.value(HOLD)
            await page.value("document.getElementById('reset').click()")
            await page.until("play.state.actions.length === 0")
            # Frames of the start before.
            await page.value("play.waiting.length = 0")
            steps, drawn = 0, 0
            for name, count in keys:
                wanted = live.split(world.keys, name)
                for key in [key for key in held if key not in wanted]:
                    await page.key(codes[key], False)
                for key in [key for key in wanted if key not in held]:
                    await page.key(codes[key], True)
                held = wanted
                for _ in range(count):
                    await page.value("document.getElementById('step').click()")
                    await page.until(f"play.state.steps.at(-1)?.step === {steps}")
                    frames = await page.until("play.state.steps.at(-1).frames")
                    for _ in range(frames):
                        while not await page.value("play.take()"):
                            await asyncio.sleep(0.02)
                        if drawn % every == 0:
                            found.append(await screenshot(page, width))
                        drawn += 1
                    steps += 1
                    print(f"step {steps}, {name}: {len(found)} screenshots", flush=True)
    return found


async def screenshot(page: chromium.Page, width: int) -> PIL.Image.Image:
    """Return the image and the keys of the page as they are now."""
    box = await page.value(
        "(([a, b]) => ({ x: a.left, y: a.top, width: a.width, height: b.bottom - a.top + 6 }))"
        "(['stage', 'keys'].map((id) => document.getElementById(id).getBoundingClientRect()))"
    )
    shot = await page.call("Page.captureScreenshot", format="png", clip={**box, "scale": 1})
    image = PIL.Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
    return image.resize((width, round(image.height * width / image.width)), PIL.Image.Resampling.LANCZOS)


def encode(screenshots: Sequence[PIL.Image.Image], *, fps: float, most: int) -> tuple[bytes, int]:
    """Return an animated WebP of at most `most` bytes, and its quality; a `UserError` if none is small enough."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        screenshots[0].save(
            stream,
            "webp",
            save_all=True,
            append_images=screenshots[1:],
            duration=round(1000 / fps),
            loop=0,
            quality=quality,
            method=4,
        )
        if len(stream.getvalue()) <= most:
            return stream.getvalue(), quality
    raise errors.UserError(
        f"--bytes is {most}, but {len(screenshots)} screenshots need {len(stream.getvalue())} at the lowest quality: "
        "give fewer --keys, a smaller --width or a larger --every"
    )


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Record as set on the command line."""
    parser = arguments.Parser("python scripts/record_play.py", str(__doc__))
    add = parser.add_argument
    add("--checkpoint", type=pathlib.Path, default=ROOT / "assets" / "starter", metavar="DIR", help="folder of a run")
    add("--output", type=pathlib.Path, default=pathlib.Path("out/play.webp"), metavar="FILE", help="file to write")
    add("--keys", default="w*2,w+right,right*2,w*2,w+left,left", help="actions and their steps")
    add("--view", type=int, default=1, help="number of the first image")
    add("--seed", type=arguments.seed, default=0, help="random seed for the noise")
    add("--every", type=arguments.positive, default=2, help="frames of the model per screenshot")
    add("--width", type=arguments.positive, default=480, help="width in pixels")
    add("--bytes", type=arguments.positive, default=300_000, help="largest size of the file")
    options = parser.parse(argv)
    keys = parse_keys(options.keys)
    if chromium.find() is None:
        raise errors.UserError("Chromium is not installed, which draws the page: apt-get install chromium")
    outputs.check_file("--output", options.output)
    compilation.use_cache()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        world, first, game = thread.submit(load, options.checkpoint, options.view, options.seed).result()
        try:
            for name, _ in keys:
                live.split(world.keys, name)
        except ValueError as error:
            raise errors.UserError(f"--keys: {error}") from error
        screenshots = asyncio.run(
            record(
                world,
                first,
                game,
                thread,
                keys=keys,
                seed=options.seed,
                every=options.every,
                width=options.width,
            )
        )
    fps = world.fps / options.every
    content, quality = encode(screenshots, fps=fps, most=options.bytes)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content)
    width, height = screenshots[0].size
    print(
        f"wrote {options.output}: {len(screenshots)} screenshots of {width}x{height} at {fps:g} per second, "
        f"quality {quality}, {len(content) / 1e3:.0f} kB; weights {world.identity[:12]}, view {options.view}, "
        f"seed {options.seed}, keys {options.keys}"
    )


if __name__ == "__main__":
    main()
