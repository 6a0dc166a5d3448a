"""Control accuracy and errors of the camera, with a meter that reads the motion from the frames' numbers."""

import numpy as np
import pytest

from jworld.cameras import actions, driving
from jworld.data.recording import explorer
from jworld.evaluation import control, held_out, motion, results

SCRIPT = ("forward", "yaw_right", "yaw_right", "none", "left", "forward+yaw_left", "yaw_left")
MOTION = explorer.Motion(step=0.1, turn=2.0, margin=0.0)


class Meter:
    """Reads each latent's motion from an index into `SCRIPT` that its last frame is painted with."""

    def __call__(self, frames: np.ndarray) -> motion.Found:
        painted = frames[4::4, 0, 0, 0]
        labels = np.array([actions.label_from_name(SCRIPT[i]) for i in painted], np.int32)
        paths = [explorer.follow(np.zeros(3), SCRIPT[i], MOTION)[-1] for i in painted]
        numbers = np.stack([motion.true_numbers(cameras([np.zeros(3), end]))[0] for end in paths])
        return motion.Found(labels, numbers, numbers)


def cameras(path: list[np.ndarray]) -> np.ndarray:
    return np.stack([explorer.world_to_camera(x, 0.0, z, yaw) for x, z, yaw in path])


def make_clip(order: list[int]) -> held_out.Clip:
    """Return a clip that holds the actions `order` of `SCRIPT`, each latent's frames painted with its index."""
    path = [np.zeros(3)]
    for i in order:
        path.append(explorer.follow(path[-1], SCRIPT[i], MOTION)[-1])
    w2c = cameras(path)
    labels = np.array([0, *(actions.label_from_name(SCRIPT[i]) for i in order)], np.int32)
    controls = held_out.Controls(labels, w2c, np.tile(np.eye(3), (len(w2c), 1, 1)))
    return held_out.Clip(name="painted", frames=painted(order), prompt="", controls=controls)


def painted(order: list[int]) -> np.ndarray:
    values = np.array([0, *np.repeat(order, 4)], np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(values), 2, 2, 3)).copy()


def measured(name: object = actions.label_name) -> control.ControlMeasure:
    measure = control.ControlMeasure(Meter(), name)  # type: ignore[arg-type]
    clip = make_clip(list(range(7)))
    # The model turns left instead of right in latent 2, and walks instead of stepping aside in latent 5.
    measure.add(clip, {held_out.MODEL: painted([0, 6, 2, 3, 0, 5, 6])}, held_out.generated_frames(8, 4))
    return measure


def test_accuracy_per_part_and_per_key() -> None:
    measure = measured()
    curves = measure.curves()
    assert curves["control"][held_out.MODEL] == pytest.approx([100 * 2 / 3, 75])
    assert curves["control"][control.RECORDED] == [100, 100]
    keys = measure.per_key()
    assert keys["yaw_right"] == {"latents": 2, "control": [50, None]}
    assert keys["left"] == {"latents": 1, "control": [None, 0]}
    assert keys["none"] == {"latents": 1, "control": [None, 100]}


def test_errors_of_turns_and_steps() -> None:
    curves = measured().curves()
    # Chunk 1: 16 degrees between a turn of 8 to the right and one to the left, in one of three latents.
    assert curves["turns"][held_out.MODEL] == pytest.approx([16 / 3, 0], abs=1e-9)
    # Chunk 2: 0.4 forward instead of 0.4 to the left, in one of four latents.
    assert curves["steps"][held_out.MODEL] == pytest.approx([0, 0.4 * 2**0.5 / 4], abs=1e-9)
    assert curves["turns"][control.RECORDED] == pytest.approx([0, 0], abs=1e-9)
    assert curves["steps"][control.RECORDED] == pytest.approx([0, 0], abs=1e-9)


def test_frechet_distance_is_zero_for_the_recording() -> None:
    curves = measured().curves()["frechet"]
    assert curves[control.RECORDED] == pytest.approx([0, 0], abs=1e-6)
    assert all(value > 1e-3 for value in curves[held_out.MODEL])


def test_driving_tokens_know_no_steps_to_a_side() -> None:
    measure = control.ControlMeasure(Meter(), driving.of_label)
    clip = make_clip(list(range(7)))
    # Standing instead of a step to the left is the same token.
    measure.add(clip, {held_out.MODEL: painted([0, 1, 2, 3, 3, 5, 6])}, held_out.generated_frames(8, 4))
    assert measure.curves()["control"][held_out.MODEL] == [100, 100]


def test_a_report_gets_curves_numbers_and_lines() -> None:
    report = results.Report(numbers={"clips": 1}, summary=[("a", "b")], curves={held_out.MODEL: [1.0, 2.0]})
    assert control.add_to(report, None) is report
    added = control.add_to(report, measured())
    assert set(added.images) == set(control.CONTROL)
    assert added.numbers["control_per_key"]["left"]["latents"] == 1
    assert added.summary[1:] == [
        (
            "control in part 1",
            "66.7 % of latents move as they should (the recording: 100.0 %), turns 5.33 degrees and steps 0.000 off",
        ),
        (
            "control in part 2",
            "75.0 % of latents move as they should (the recording: 100.0 %), turns 0.00 degrees and steps 0.141 off",
        ),
    ]
