"""What a run shows of its model: what it makes beside the recorded truth, as a video and as a contact sheet."""

import pathlib

import rich.console

from jworld.data.recording import episodes
from jworld.evaluation import contact_sheets
from jworld.systems import runs


def sample_run(workdir: pathlib.Path, console: rich.console.Console) -> None:
    """Sample the newest checkpoint of a run and write `workdir`/samples/<name>.mp4 and .png, or .json of answers.

    The name is the system's word for what it makes, such as rollout.

    Raises:
      UserError: the run's folder is incomplete, or `config.sample` or the data do not allow it.
    """
    run = runs.load(workdir)
    if run.system.makes_text:
        run.system.sample_answers(run.model, run.encoders, workdir / runs.SAMPLES, console)
        return
    comparison = run.system.sample_rollout(run.model, run.encoders, run.config)
    folder = workdir / runs.SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    name = run.system.sample_name
    video, sheet = folder / f"{name}.mp4", folder / f"{name}.png"
    episodes.write_video(video, contact_sheets.video(comparison), fps=run.encoders.fps)
    contact_sheets.contact_sheet([comparison]).save(sheet)
    for chunk in comparison.chunks:
        value = "" if chunk.psnr is None else f": {chunk.psnr:.1f} dB"
        console.print(f"{name}, frames {chunk.start}-{chunk.stop - 1} ({chunk.action}){value}")
    console.print(f"wrote {video} and {sheet}: recorded truth above, prediction below")
