"""Trained worlds as environments of gymnasium."""

import pathlib

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

import jworld
from jworld import envs
from jworld.systems import runs
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run() -> runs.Run:
    return jworld.load(ROOT / "assets" / "starter")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_it(run: runs.Run, image: np.ndarray) -> None:
    env = gymnasium.make("jworld/World-v0", world=run, image=image, render_mode="rgb_array")
    env_checker.check_env(env.unwrapped)
    assert env.unwrapped.metadata["render_fps"] == 16


def test_episodes(run: runs.Run, image: np.ndarray) -> None:
    env = envs.WorldEnv(
        run, image=image, prompt="a room", actions=["none", "w+right"], episode_steps=2, reward=lambda x: len(x)
    )
    assert env.action_space == gymnasium.spaces.Discrete(2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    first, info = env.reset(seed=3)
    assert info["frames"].shape == (13, *env.observation_space.shape)
    found = [env.step(1), env.step(0)]
    observation, reward, terminated, truncated, info = found[0]
    assert (reward, terminated, truncated, info["action"]) == (16.0, False, False, "w+right")
    np.testing.assert_array_equal(observation, info["frames"][-1])
    assert found[1][3] is True
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(env.step(1)[0], observation)
    assert (env.step(1)[0] != found[1][0]).any()
    assert env.render() is None
    other, _ = env.reset(seed=3, options={"image": 255 - image})
    assert (other != first).any()


def test_actions_by_default(run: runs.Run) -> None:
    actions = envs.WorldEnv(run).actions
    assert actions[:4] == ["none", "w", "s", "d"]
    assert "w+right" in actions
    assert not {"w+s", "right+left"} & set(actions)
    assert len(actions) == len(set(actions)) == 1 + 8 + 28 - 4


def test_mistakes(run: runs.Run, tmp_path: pathlib.Path) -> None:
    for options, message in (
        ({"actions": ["jump"]}, "'jump' is not an action"),
        ({"render_mode": "human"}, "expected None or 'rgb_array'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            envs.WorldEnv(run, **options)
    with pytest.raises(errors.UserError, match="--image is missing"):
        envs.WorldEnv(run).reset(seed=0)
