"""Comparison of the motion in generated videos with the recorded controls, part by part."""

import collections
import dataclasses
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np

from jworld.cameras import actions
from jworld.evaluation import held_out, results
from jworld.evaluation.measures import Spans, Values
from jworld.evaluation.motion import Found, MotionMeter, frechet_distance, true_numbers
from jworld.utils import resources

#: Measure -> what a plot calls it.
CONTROL = {
    "control": "control accuracy (%)",
    "turns": "error of turns (degrees per latent)",
    "steps": "error of steps (world units per latent)",
    "frechet": "Frechet distance of features of motion",
}
#: Meters that come with jworld, one per source of recordings.
SHIPPED = "assets/motion/{source}.safetensors"
#: The recording itself: errors of the meter.
RECORDED = "recording"


def load_meter(config: ml_collections.ConfigDict, file: str | None) -> MotionMeter | None:
    """Return the meter of a file, or the shipped one of the source that the run's data were recorded from.

    None if there is none: the motion of other videos has other units and looks different.
    """
    if file is not None:
        return MotionMeter.load(resources.find(file))
    shipped = resources.find(SHIPPED.format(source=held_out.recording_config(config).source))
    return MotionMeter.load(shipped) if shipped.is_file() else None


class ControlMeasure:
    """Measurements of many clips; add clips that have cameras, then read the results.

    The motion of every latent is compared with the recorded one: its action, as named by the controls of the system,
    the angle of its turn and the length of its step. Errors of the camera are means over latents. The Frechet distance
    is that between the features of the recorded and of the generated videos, in the same part.
    """

    def __init__(self, meter: MotionMeter, name: Callable[[int], str] = actions.label_name) -> None:
        """Keep the meter, and the name of each action label in the system's controls."""
        self._meter, self._name = meter, name
        self._true_names: list[list[np.ndarray]] = []
        self._found: dict[str, list[list[Found]]] = collections.defaultdict(list)
        self._numbers: list[list[np.ndarray]] = []

    def add(self, clip: held_out.Clip, videos: Mapping[str, np.ndarray], spans: Spans) -> None:
        """Measure videos uint8 [T, H, W, 3] of a clip, by name, in the parts `spans` (first frame and end)."""
        recorded = clip.camera_controls
        ranges = [_latents(start, stop) for start, stop in spans]
        names = self._names(recorded.action[1:])
        numbers = true_numbers(recorded.w2c)
        self._true_names.append([names[a:b] for a, b in ranges])
        self._numbers.append([numbers[a:b] for a, b in ranges])
        for name, video in {RECORDED: clip.frames, **videos}.items():
            found = self._meter(video[: 1 + held_out.STRIDE * ranges[-1][1]])
            self._found[name].append([found.part(a, b) for a, b in ranges])

    def _names(self, labels: np.ndarray) -> np.ndarray:
        return np.array([self._name(int(label)) for label in labels])

    def curves(self) -> dict[str, Values]:
        """Return the values of every part, by measure of `CONTROL` and by name of the videos."""
        return {
            "control": {name: [100 * float(part.mean()) for part in self._hits(name)] for name in self._found},
            "turns": {name: self._errors(name, slice(2, 3)) for name in self._found},
            "steps": {name: self._errors(name, slice(0, 2)) for name in self._found},
            "frechet": {name: self._distances(name) for name in self._found},
        }

    def per_key(self) -> dict[str, dict[str, list[float | None] | int]]:
        """Return for every recorded action its number of latents, and the model's accuracy (%) in every part."""
        parts = [np.concatenate(part) for part in zip(*self._true_names, strict=True)]
        hits = self._hits(held_out.MODEL)
        keys = sorted(set(np.concatenate(parts).tolist()))
        return {
            key: {
                "latents": int(sum((part == key).sum() for part in parts)),
                "control": [
                    100 * float(hit[part == key].mean()) if (part == key).any() else None
                    for part, hit in zip(parts, hits, strict=True)
                ],
            }
            for key in keys
        }

    def _hits(self, name: str) -> list[np.ndarray]:
        """Return for every part whether each latent of all clips moves as recorded, bool [N]."""
        rows = [
            [self._names(found.labels) == true for found, true in zip(clip, names, strict=True)]
            for clip, names in zip(self._found[name], self._true_names, strict=True)
        ]
        return [np.concatenate(part) for part in zip(*rows, strict=True)]

    def _errors(self, name: str, chosen: slice) -> list[float]:
        rows = [
            [
                np.linalg.norm((found.numbers - true)[:, chosen], axis=1)
                for found, true in zip(clip, numbers, strict=True)
            ]
            for clip, numbers in zip(self._found[name], self._numbers, strict=True)
        ]
        return [float(np.concatenate(part).mean()) for part in zip(*rows, strict=True)]

    def _distances(self, name: str) -> list[float]:
        both = [
            [np.concatenate([found.features for found in part]) for part in zip(*self._found[which], strict=True)]
            for which in (RECORDED, name)
        ]
        return [frechet_distance(*pair) for pair in zip(*both, strict=True)]


def open_measure(
    config: ml_collections.ConfigDict, options: results.Options, name: Callable[[int], str] = actions.label_name
) -> ControlMeasure | None:
    """Return a measure that names actions with `name`; None without a meter, see `load_meter`."""
    meter = load_meter(config, options.motion)
    return None if meter is None else ControlMeasure(meter, name)


def add_to(report: results.Report, measure: ControlMeasure | None) -> results.Report:
    """Return a report with the results of a measure; without one, the report itself."""
    if measure is None:
        return report
    curves = measure.curves()
    numbers = {**report.numbers, "control_per_part": curves, "control_per_key": measure.per_key()}
    return dataclasses.replace(
        report, numbers=numbers, images={**report.images, **curves}, summary=[*report.summary, *_summary(curves)]
    )


def _summary(curves: Mapping[str, Values]) -> list[tuple[str, str]]:
    """Return lines for the user about the model in the first and in the last part."""
    found = {measure: values[held_out.MODEL] for measure, values in curves.items()}
    limit = curves["control"][RECORDED]
    return [
        (
            f"control in part {i + 1}",
            f"{found['control'][i]:.1f} % of latents move as they should (the recording: {limit[i]:.1f} %), turns "
            f"{found['turns'][i]:.2f} degrees and steps {found['steps'][i]:.3f} off",
        )
        for i in dict.fromkeys((0, len(limit) - 1))
    ]


def _latents(start: int, stop: int) -> tuple[int, int]:
    """Return first and end of the motions within frames `start` to `stop`; motion i ends at frame 4 (i + 1)."""
    return -(-(start - 1) // held_out.STRIDE), (stop - 1) // held_out.STRIDE
