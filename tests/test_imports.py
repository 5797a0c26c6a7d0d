"""The runtime is a ring, imports are a line: the layer table, and the proof that the package keeps to it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A module may import modules of the layers above its own, and nothing else of the package. Modules of one layer do not
# import one another. Names are the files and folders directly under amago_ray/.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"data"}),
    frozenset({"allocator", "config", "futures", "weights"}),
    frozenset({"nets"}),
    frozenset({"losses", "policy"}),
    frozenset({"agent"}),
    frozenset({"amago_weights", "envs", "checkpoint", "metrics", "sweep"}),
    frozenset({"rollout", "replay", "learner"}),
    frozenset({"settings", "evaluation", "calls", "display", "placement", "plotting"}),
    frozenset({"cluster", "population", "presence", "replay_plotting", "sweep_results", "topology"}),
    frozenset({"jobs", "plan", "preflight"}),
    frozenset({"schedule"}),
    frozenset({"experiment"}),
    frozenset({"__init__"}),
    frozenset({"data_commands", "replay_command", "tune"}),
    frozenset({"tune_command"}),
    frozenset({"train"}),
)

# Third-party packages that only the named modules may import.
ONLY_IN: dict[str, frozenset[str]] = {
    "ray": frozenset({"calls", "cluster", "population", "topology", "tune"}),
    "wandb": frozenset({"metrics"}),
}

# What has to import where neither Ray nor wandb is installed.
WITHOUT_RAY = ("amago_ray.agent", "amago_ray.nets.traj_encoders", "amago_ray.losses", "amago_ray.learner")

PACKAGE = Path(__file__).parents[1] / "amago_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYER_OF = {module: i for i, layer in enumerate(LAYERS) for module in layer}


def top_level(file: Path) -> str:
    """The entry of the layer table that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(source: str, package: str) -> Iterator[str]:
    """The dotted name of everything that a file imports, wherever in the file, with relative imports made absolute.

    package: dotted name of the package that the file lies in.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(file: Path) -> list[tuple[str, str]]:
    """(root, second) of each import: ("amago_ray", "nets"), ("ray", ""); ("amago_ray", "__init__") for public names."""
    package = ".".join(file.relative_to(PACKAGE.parent).parent.parts)
    pairs = []
    for name in imported_names(file.read_text(encoding="utf-8"), package):
        root, _, rest = name.partition(".")
        second = rest.partition(".")[0]
        if root == PACKAGE.name:
            is_module = (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file()
            pairs.append((root, second if second and is_module else "__init__"))
        else:
            pairs.append((root, ""))
    return pairs


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_go_one_way(file: Path) -> None:
    own = top_level(file)
    assert own in LAYER_OF, f"{own} has no place in the layer table at the top of this test: give it one"
    for root, module in imports_of(file):
        if root == PACKAGE.name and module != own:
            assert module in LAYER_OF, f"{file.name} imports {module}, which has no place in the layer table"
            assert LAYER_OF[module] < LAYER_OF[own], f"{own} may not import {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_ray_and_wandb_stay_in_their_files(file: Path) -> None:
    own = top_level(file)
    for root, _ in imports_of(file):
        assert own in ONLY_IN.get(root, {own}), f"{own} may not import {root}; only {sorted(ONLY_IN[root])} may"


def test_the_checker_sees_every_way_to_import() -> None:
    source = "import ray.util\nfrom . import losses\nfrom ..nets import heads\ndef f():\n    from wandb import init\n"
    expected = {"ray.util", "amago_ray.learner.losses", "amago_ray.nets.heads", "wandb.init"}
    assert set(imported_names(source, "amago_ray.learner")) == expected


def test_the_algorithm_imports_without_ray_and_wandb() -> None:
    paths = {name: PACKAGE.parent.joinpath(*name.split(".")) for name in WITHOUT_RAY}
    present = [n for n, path in paths.items() if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()]
    assert len(present) == len(WITHOUT_RAY)
    # None in sys.modules makes an import of that name fail as it does where the package is not installed.
    code = f"import sys; sys.modules['ray'] = sys.modules['wandb'] = None; import {', '.join(present)}"
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
