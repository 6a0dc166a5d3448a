"""Layouts in both directions and by slices, and key tables applied to a file's tensors."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from conversion import engine
from conversion.engine import Layout, Rule

#: Layout, shape of the tensor, and an independent conversion to our array.
LAYOUTS = {
    "identity": (engine.IDENTITY, (6, 4), lambda x: x),
    "vector": (engine.IDENTITY, (8,), lambda x: x),
    "transposed": (engine.TRANSPOSED, (6, 4), lambda x: x.T),
    "conv1d": (engine.CONV1D, (4, 6, 3), lambda x: np.einsum("oil->lio", x)),
    "conv2d": (engine.CONV2D, (4, 6, 3, 2), lambda x: np.einsum("oihw->hwio", x)),
    "conv3d": (engine.CONV3D, (4, 6, 3, 2, 2), lambda x: np.einsum("oithw->thwio", x)),
    "gamma2d": (engine.GAMMA2D, (6, 1, 1), lambda x: x[:, 0, 0]),
    "gamma3d": (engine.GAMMA3D, (6, 1, 1, 1), lambda x: x[:, 0, 0, 0]),
    "patch": (engine.patch_kernel((1, 2, 3)), (4, 5, 1, 2, 3), lambda x: x.reshape(4, 30).T),
    "swapped": (engine.SWAPPED, (8,), lambda x: np.concatenate([x[4:], x[:4]])),
    "transposed swapped": (
        engine.TRANSPOSED_SWAPPED,
        (8, 3),
        lambda x: np.concatenate([x[4:], x[:4]]).T,
    ),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def case(request: pytest.FixtureRequest) -> tuple[Layout, np.ndarray, np.ndarray]:
    layout, shape, convert = request.param
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return layout, tensor, convert(tensor)


def test_layout_round_trip(case: tuple[Layout, np.ndarray, np.ndarray]) -> None:
    layout, tensor, ours = case
    assert layout.source_shape(ours.shape) == tensor.shape
    np.testing.assert_array_equal(layout.to_target(tensor), ours)
    np.testing.assert_array_equal(layout.to_source(ours), tensor)


def test_any_slice_is_read_from_the_slices_that_hold_it(case: tuple[Layout, np.ndarray, np.ndarray]) -> None:
    """Any part of a small array is exact; no more of the tensor is read than the rows of the part need."""
    layout, tensor, ours = case
    spans = [[slice(a, b) for a, b in itertools.combinations(range(size + 1), 2)] for size in ours.shape]
    boxes = list(itertools.product(*spans))
    for index in [boxes[i] for i in np.random.default_rng(0).permutation(len(boxes))[:300]]:
        read: list[int] = []

        def box(where: engine.Index, read: list[int] = read) -> np.ndarray:
            read.append(tensor[where].size)
            return tensor[where]

        np.testing.assert_array_equal(layout.read(box, ours.shape, index), ours[index])
        if not layout.inner:
            assert sum(read) == ours[index].size


def test_transposing_copies_are_exact() -> None:
    tensor = np.arange(70 * 33, dtype=np.uint16).reshape(70, 33).view(ml_dtypes.bfloat16)
    target = np.empty((33, 70), ml_dtypes.bfloat16)
    engine.copy(target, tensor.T)
    np.testing.assert_array_equal(target.view(np.uint16), tensor.view(np.uint16).T)


# Key tables

SHAPES = {"blocks/qkv/kernel": (3, 4, 12), "blocks/norm/scale": (3, 4), "head/1/kernel": (4, 2), "scalar": ()}
RULES = (
    *(
        Rule(f"blocks.{{layer}}.{name}.weight", "blocks/qkv/kernel", engine.TRANSPOSED, (i, 3))
        for i, name in enumerate("qkv")
    ),
    Rule("blocks.{layer}.norm.weight", "blocks/norm/scale"),
    Rule("head.{index}.weight", "head/{index}/kernel", engine.TRANSPOSED),
    Rule("scalar", "scalar"),
    Rule("other.weight", "not/in/this/model"),
)


def tensors() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    places = engine.plan(SHAPES, RULES)
    return {name: noise.standard_normal(place.source_shape).astype(np.float32) for name, place in places.items()}


def test_plan_names_every_tensor_of_a_model() -> None:
    places = engine.plan(SHAPES, RULES)
    layers = [f"blocks.{i}.{name}.weight" for name in ("q", "k", "v", "norm") for i in range(3)]
    assert set(places) == {*layers, "head.1.weight", "scalar"}
    assert places["blocks.2.k.weight"] == engine.TensorPlacement("blocks/qkv/kernel", 2, engine.TRANSPOSED, (4, 4), 4)


def test_parameters_are_made_of_their_tensors_and_give_them_back() -> None:
    found, places = tensors(), engine.plan(SHAPES, RULES)

    def block(path: str, *index: slice) -> np.ndarray:
        own = engine.places_of(places, path)
        return engine.read_block(own, index, np.dtype(np.float32), lambda name, box: found[name][box])

    whole = block("blocks/qkv/kernel", *engine.whole(SHAPES["blocks/qkv/kernel"]))
    expected = [np.concatenate([found[f"blocks.{i}.{name}.weight"].T for name in "qkv"], axis=1) for i in range(3)]
    np.testing.assert_array_equal(whole, expected)
    # A shard: some inputs of two layers, and only outputs of q and k.
    part = (slice(1, 3), slice(1, 3), slice(2, 7))
    np.testing.assert_array_equal(block("blocks/qkv/kernel", *part), whole[part])
    assert block("scalar") == found["scalar"]
    for name in ("blocks.0.v.weight", "blocks.2.q.weight"):
        np.testing.assert_array_equal(places[name].take(whole), found[name])


@pytest.mark.parametrize(
    "extra",
    [Rule("blocks.{layer}.q.weight", "head/1/kernel"), Rule("again.weight", "head/1/kernel", engine.TRANSPOSED)],
    ids=["one tensor for two parameters", "two tensors for one parameter"],
)
def test_ambiguous_tables_are_refused(extra: Rule) -> None:
    with pytest.raises(ValueError, match="ambiguous"):
        engine.plan(SHAPES, (*RULES, extra))


def test_problems_name_every_tensor_and_every_parameter_without_a_key() -> None:
    places = engine.plan(SHAPES, RULES)
    shapes = {name: place.source_shape for name, place in places.items()}
    assert engine.problems(shapes, SHAPES, places) == []
    shapes["blocks.3.q.weight"] = shapes.pop("blocks.2.q.weight")
    shapes["scalar"] = (1,)
    listed = [str(problem) for problem in engine.problems(shapes, {**SHAPES, "lonely": (5,)}, places)]
    assert sorted(listed) == [
        "misshapen scalar: [1], for scalar []",
        "missing blocks.2.q.weight (for blocks/qkv/kernel)",
        "missing lonely: this layout has no key for it",
        "unexpected blocks.3.q.weight",
    ]
