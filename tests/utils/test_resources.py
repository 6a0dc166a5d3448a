"""Files that come with jworld: the current folder first, then those shipped."""

import pathlib

import pytest

from jworld.utils import resources


def test_the_current_folder_comes_first(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = resources.find("configs/ar_mem.py")
    assert shipped == resources.root() / "configs" / "ar_mem.py"
    assert "get_config" in shipped.read_text()
    own = tmp_path / "configs" / "ar_mem.py"
    own.parent.mkdir()
    own.write_text("")
    assert resources.find("configs/ar_mem.py").resolve() == own


def test_an_installed_package_is_its_own_root(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "site" / "jworld")
    assert resources.root() == tmp_path / "site"
    starter = tmp_path / "site" / "jworld" / "shipped" / "assets" / "starter"
    starter.mkdir(parents=True)
    assert resources.find("assets/starter") == starter


@pytest.mark.parametrize("name", ["assets/none", "runs/ar_mem", "pyproject.toml", "/assets/starter", "", "."])
def test_other_names_stay_as_they_are(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resources.find(name) == pathlib.Path(name)
