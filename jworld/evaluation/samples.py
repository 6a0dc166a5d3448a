"""Writer of samples of a run: files, and what the writers of its log show."""

import pathlib

from jworld.data.recording import episodes
from jworld.evaluation import answer_pages, contact_sheets, results
from jworld.training import writers
from jworld.utils import files


def write(samples: results.Comparison | results.Answers, folder: pathlib.Path, name: str, *, fps: float) -> list[str]:
    """Write `folder`/`name`.mp4 and .png, or .json and .html for answers in text.

    Args:
      samples: what to write.
      folder: output folder, created if absent.
      name: file name without suffix.
      fps: frame rate of the video, in frames per second.

    Returns:
      Lines for the user about the samples and the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(samples, results.Answers):
        path, page = folder / f"{name}.json", folder / f"{name}.html"
        files.write_json(path, samples.rows)
        answer_pages.write(page, name, _entries(samples))
        return [*_answer_lines(samples), f"wrote {path} and {page}"]
    video, sheet = folder / f"{name}.mp4", folder / f"{name}.png"
    episodes.write_video(video, contact_sheets.video(samples), fps=fps)
    contact_sheets.contact_sheet([samples]).save(sheet)
    lines = []
    for chunk in samples.chunks:
        value = "" if chunk.psnr is None else f": {chunk.psnr:.1f} dB"
        lines.append(f"{name}, frames {chunk.start}-{chunk.stop - 1} ({chunk.action}){value}")
    order = "" if samples.truth is None else ": recorded truth above, prediction below"
    return [*lines, f"wrote {video} and {sheet}{order}"]


def media(samples: results.Comparison | results.Answers, name: str, *, fps: float) -> writers.Media:
    """Return the same samples for the writers of a run's log."""
    if isinstance(samples, results.Answers):
        return writers.Media(name=name, text="\n\n".join(_answer_lines(samples)))
    return writers.Media(name=name, frames=contact_sheets.video(samples), fps=fps)


def _entries(answers: results.Answers) -> list[answer_pages.Entry]:
    images = answers.images or [[] for _ in answers.rows]
    return [
        answer_pages.Entry(
            question=row["question"], answers={"answer": row["answer"]}, truth=row.get("truth"), images=own
        )
        for row, own in zip(answers.rows, images, strict=True)
    ]


def _answer_lines(answers: results.Answers) -> list[str]:
    lines = []
    for row in answers.rows:
        truth = f" (truth: {row['truth']})" if "truth" in row else ""
        lines.append(f"{row['question']} -> {row['answer']}{truth}")
    return lines
