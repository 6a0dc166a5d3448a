"""A backend is added by one registry entry: it is chosen, checked, described and run without any other change."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld import doctor
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.layers import stack
from jworld.models.layers.attention import Backend, Causal, Intervals, Mask, Request, attention, backends, cudnn, xla
from jworld.parallel import mesh
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "ar_mem.py"
PRIMITIVE = "sin"


def refusal(request: Request) -> str | None:
    return "dummy does not support Causal" if isinstance(request.mask, Causal) else None


def minus_reference(
    q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask | Intervals | None, key_mask: jax.Array | None
) -> jax.Array:
    """Return an output that no other backend returns."""
    return -xla.attention(q, k, v, mask=mask, key_mask=key_mask)


DUMMY = Backend(
    name="dummy", platforms=("cpu",), refusal=refusal, attention=minus_reference, saved_primitives=(PRIMITIVE,)
)


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend for CPUs, present in the registry only."""
    monkeypatch.setitem(backends.BACKENDS, DUMMY.name, DUMMY)
    return DUMMY


def qkv(length: int, heads: int = 2) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    return tuple(jax.random.normal(key, (2, length, heads, 8)) for key in keys)


def request(**changes: Any) -> Request:
    facts: dict[str, Any] = {"mask": None, "key_mask": False, "lengths": (512, 512), "heads": 2, "head_dim": 8}
    return Request(**facts | {"dtype": jnp.dtype("float32")} | changes)


@pytest.mark.parametrize("implementation", [None, "auto", "dummy"])
def test_attention_runs_it(dummy: Backend, implementation: str | None) -> None:
    arrays = qkv(backends.MIN_LENGTH)
    expected = -attention(*arrays, implementation="xla")
    np.testing.assert_allclose(attention(*arrays, implementation=implementation), expected, atol=1e-6)
    with jax.set_mesh(mesh.make_mesh(data=2, sequence=2, devices=jax.devices()[:4])):
        on_mesh = jax.jit(lambda *x: attention(*x, implementation=implementation))(*arrays)
    np.testing.assert_allclose(on_mesh, expected, atol=1e-5)


def test_its_refusal_and_platforms_count(dummy: Backend) -> None:
    assert backends.choose("auto", request(mask=Causal()), platform="cpu") == (
        backends.REFERENCE,
        "dummy does not support Causal",
    )
    assert backends.choose("dummy", request(), platform="tpu").reason == "dummy does not run on the platform 'tpu'"
    arrays = qkv(backends.MIN_LENGTH)
    causal = attention(*arrays, mask=Causal())
    np.testing.assert_array_equal(causal, attention(*arrays, mask=Causal(), implementation="xla"))


def test_auto_takes_the_next_kernel_of_a_platform_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN refuses float32; a second kernel for GPUs serves it, and cuDNN keeps what it accepts."""
    second = Backend(name="second", platforms=("gpu",), refusal=refusal, attention=minus_reference)
    monkeypatch.setitem(backends.BACKENDS, second.name, second)
    assert backends.choose("auto", request(), platform="gpu").backend is second
    assert backends.choose("auto", request(dtype=jnp.dtype("bfloat16")), platform="gpu").backend is cudnn.BACKEND
    both = backends.choose("auto", request(mask=Causal()), platform="gpu")
    assert both.backend is backends.REFERENCE
    assert both.reason == "cuDNN supports bfloat16 and float16, not float32; dummy does not support Causal"


def test_a_config_may_name_it(dummy: Backend) -> None:
    assert run_config.section(HunyuanConfig, {"attention": "dummy"}, "model").attention == "dummy"


def test_a_config_may_name_nothing_else() -> None:
    expected = r"^config\.model: attention is 'dummy', expected one of auto, xla, cudnn, splash$"
    with pytest.raises(UserError, match=expected):
        run_config.section(HunyuanConfig, {"attention": "dummy"}, "model")
    with pytest.raises(ValueError, match="attention is 'flash'"):
        attention(*qkv(4), implementation="flash")


def test_doctor_describes_it(dummy: Backend) -> None:
    config = run_config.load_recipe(str(RECIPE))
    with config.unlocked():
        config.model.attention = "dummy"
    rows, problems = doctor.examine(config)
    described = [text for name, text in rows if name.startswith("attention")]
    assert "dummy, because the config asks for it" in described
    assert problems == []


def test_remat_policies_save_its_primitives(dummy: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of f(sin(x)) needs the sine once if it is saved and twice if it is recomputed."""

    def count() -> int:
        layer = jax.checkpoint(
            lambda x: jnp.square(jnp.sin(x)), policy=stack.REMAT_POLICIES["attention"], prevent_cse=False
        )
        return str(jax.make_jaxpr(jax.grad(lambda x: layer(x).sum()))(jnp.ones(3))).count(f" {PRIMITIVE} ")

    saved = count()
    monkeypatch.delitem(backends.BACKENDS, dummy.name)
    jax.clear_caches()
    assert (saved, count()) == (1, 2)
