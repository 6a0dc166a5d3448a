"""Ids of hub repositories in place of folders."""

import pathlib
from collections.abc import Iterator

import fake_hub
import pytest

from jworld.utils import errors, hub_folders


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[fake_hub.Hub]:
    monkeypatch.chdir(tmp_path)
    hub_folders._download.cache_clear()
    with fake_hub.serving(monkeypatch, tmp_path / "cache") as served:
        yield served
    hub_folders._download.cache_clear()


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_repository_without_weights_in_other_formats(hub: fake_hub.Hub) -> None:
    files = ("model.safetensors", "config.json", "pytorch_model.bin", "vae/config.json", "figure.png")
    hub.repositories["you/model"] = {name: name.encode() for name in files}
    found = hub_folders.find("you/model")
    assert names(found) == ["config.json", "model.safetensors", "vae/config.json"]
    assert (found / "config.json").read_text() == "config.json"
    assert names(hub_folders.find("you/model/vae")) == ["config.json"]
    assert hub_folders.find("you/model/vae").name == "vae"
    assert hub_folders.find(pathlib.Path("you/model@main")).is_dir()


def test_only_the_files_of_a_tokenizer(hub: fake_hub.Hub) -> None:
    hub.repositories["you/model"] = {"model.safetensors": b"x", "tokenizer.json": b"{}"}
    assert names(hub_folders.find("you/model", weights=False)) == ["tokenizer.json"]


def test_an_uploaded_run(hub: fake_hub.Hub) -> None:
    hub.repositories["me/run"] = {"model.safetensors": b"x", "config.json": b"{}", "jworld/config.json": b"{1}"}
    found = hub_folders.find("me/run")
    assert names(found) == ["config.json"]
    assert (found / "config.json").read_bytes() == b"{1}"


def test_other_paths_are_not_looked_up(hub: fake_hub.Hub, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    for path in (
        "mine/model",
        "mine/absent",
        "runs/absent",
        "checkpoints/absent",
        "model",
        "./a/b",
        "/a/b",
        "a/b/../c",
    ):
        assert hub_folders.find(path) == pathlib.Path(path)
    assert hub.requests == []


def test_mistakes_are_named(hub: fake_hub.Hub) -> None:
    with pytest.raises(errors.UserError, match=r"^you/none is neither a folder here nor could it be downloaded"):
        hub_folders.find("you/none")
    hub.repositories["you/model"] = {"model.safetensors": b"x"}
    with pytest.raises(errors.UserError, match=r"you/model/vae: nothing of the repository is in 'vae'.*model.safete"):
        hub_folders.find("you/model/vae")


def test_earlier_downloads_without_a_network(hub: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["you/model"] = {"config.json": b"{}"}
    found = hub_folders.find("you/model")
    hub_folders._download.cache_clear()
    hub.shutdown()
    hub.server_close()
    assert hub_folders.find("you/model") == found
