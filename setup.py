"""What pyproject.toml cannot say: wheels have the repository's `configs/` in the package, as `amago_ray/configs`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies them beside the modules that are built. An editable install finds them in the repository."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "amago_ray", "configs")
            shutil.rmtree(target, ignore_errors=True)  # a build folder may hold those of a build before
            shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


setup(cmdclass={"build_py": BuildWithConfigs})
