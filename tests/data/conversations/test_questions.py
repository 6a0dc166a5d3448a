"""Generated questions about episodes: correct for hand-made cameras, balanced and deterministic."""

import math

import numpy as np

from jworld.data.conversations import questions
from jworld.data.recording import explorer, rooms


def cameras(*poses: tuple[float, float, float]) -> np.ndarray:
    """Convert (x, z, yaw in degrees to the right) to w2c."""
    return np.stack([explorer.world_to_camera(x, 0.0, z, math.radians(yaw)) for x, z, yaw in poses])


def found(*poses: tuple[float, float, float]) -> dict[tuple[str, str], list[list[int]]]:
    return {key: pairs.tolist() for key, pairs in questions.find(cameras(*poses)).items() if len(pairs)}


def test_a_turn_to_the_right() -> None:
    assert found((1, 2, 170), (1, 2, -160)) == {
        ("turn", "right"): [[0, 1]],
        ("side", "first"): [[0, 1]],
        ("side", "second"): [[1, 0]],
    }


def test_a_turn_to_the_left() -> None:
    assert found((1, 2, 30), (1, 2, 10)) == {
        ("turn", "left"): [[0, 1]],
        ("side", "first"): [[1, 0]],
        ("side", "second"): [[0, 1]],
    }


def test_steps_ahead_and_back() -> None:
    # Looking along +x: a larger x is ahead.
    assert found((0, 0, 90), (1, 0, 90)) == {("distance", "nearer"): [[0, 1]], ("distance", "farther"): [[1, 0]]}
    assert found((0, 0, 90), (-1, 0, 90)) == {("distance", "farther"): [[0, 1]], ("distance", "nearer"): [[1, 0]]}


def test_ambiguous_pairs_give_no_questions() -> None:
    assert found((0, 0, 0), (0.1, 1, 0)) == {}  # also moved sideways
    assert found((0, 0, 0), (0, 1, 3)) == {}  # also turned
    assert found((0, 0, 0), (0, 0, 5)) == {}  # turned too little
    assert found((0, 0, 0), (0, 0, 100)) == {}  # no overlap
    assert found((0, 0, 0), (2, 0, 30)) == {}  # from another position


def test_answers_agree_with_the_distances_of_walls() -> None:
    """Compare answers with the ray-cast distance of the wall ahead."""
    world = rooms.Rooms([1, 2], width=16, height=12)
    poses, _ = explorer.Explorer(world, np.random.default_rng(0), blocks=60).explore()
    _, w2c, _ = world.render(poses)
    counts = {"nearer": 0, "farther": 0}
    for question in questions.choose(w2c, per_answer=40, rng=np.random.default_rng(0)):
        if question.kind == "distance":
            first, second = (world._cast(poses[i])[0] for i in (question.first, question.second))
            ahead = len(first) // 2
            assert (second[ahead] < first[ahead]) == (question.answer == "nearer")
            counts[question.answer] += 1
        else:
            turned = math.degrees((poses[question.second, 2] - poses[question.first, 2] + math.pi) % math.tau - math.pi)
            right = {"right": True, "left": False, "first": True, "second": False}[question.answer]
            assert (turned > 0) == right
    assert counts["nearer"] == counts["farther"] > 0


def test_answers_are_balanced_and_drawn_once() -> None:
    world = rooms.Rooms([1, 3], width=16, height=12)
    poses, _ = explorer.Explorer(world, np.random.default_rng(1), blocks=60).explore()
    _, w2c, _ = world.render(poses)
    chosen = questions.choose(w2c, per_answer=7, rng=np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen)
    for kind, answers in questions.ANSWERS.items():
        counts = [sum(q.kind == kind and q.answer == answer for q in chosen) for answer in answers]
        assert counts[0] == counts[1] > 0
    assert chosen == questions.choose(w2c, per_answer=7, rng=np.random.default_rng(0))


def test_two_views_in_one_image() -> None:
    first, second = np.full((12, 16, 3), 10, np.uint8), np.full((12, 16, 3), 20, np.uint8)
    image = questions.side_by_side(first, second, size=(8, 6))
    assert image.shape == (6, 20, 3)
    assert image[:, :8].tolist() == np.full((6, 8, 3), 10).tolist()
    assert image[:, -8:].tolist() == np.full((6, 8, 3), 20).tolist()
