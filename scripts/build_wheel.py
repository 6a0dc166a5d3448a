"""Build step of the wheel, which copies recipes, tokenizer and starter weights into the package as jworld/shipped.

pyproject.toml registers `BuildPackage` as setuptools' `build_py` command.
"""

import pathlib
import shutil

from setuptools.command import build_py

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Folders of the checkout to ship; `jworld.utils.resources` finds them in both places.
FOLDERS = ("assets", "configs")
SUFFIXES = (".json", ".py", ".safetensors")


class BuildPackage(build_py.build_py):
    """Command `build_py` that also copies the shipped folders of the checkout."""

    def run(self) -> None:
        """Copy packages and shipped files; an editable installation uses those of the checkout."""
        super().run()
        for source, target in self._shipped().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def _shipped(self) -> dict[pathlib.Path, pathlib.Path]:
        if self.editable_mode:
            return {}
        shipped = pathlib.Path(self.build_lib) / "jworld" / "shipped"
        files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
        return {path: shipped / path.relative_to(ROOT) for path in files}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that `run` writes."""
        return [*super().get_outputs(include_bytecode), *map(str, self._shipped().values())]

    def get_output_mapping(self) -> dict[str, str]:
        """Return the source of each file that `run` writes."""
        shipped = {str(target): str(source.relative_to(ROOT)) for source, target in self._shipped().items()}
        return super().get_output_mapping() | shipped

    def get_source_files(self) -> list[str]:
        """Return the files that a source distribution needs for this build."""
        own = [path.relative_to(ROOT) for path in (*self._shipped(), pathlib.Path(__file__).resolve())]
        return [*super().get_source_files(), *map(str, own)]
