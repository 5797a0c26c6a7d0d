"""The runtime is a ring, imports are a line: the layer table, and the proof that the package keeps to it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Rooms: one may import those of the rows above its own, and nothing else of the package. Rooms of one row do not import
# one another. A room is a file or a folder directly under amago_ray/; replay/ has rooms of its own.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"atomic_files", "config", "cuda_graphs", "pending", "specs", "warned"}),
    frozenset({"messages", "nets", "run_directory"}),
    frozenset({"agent", "envs", "replay/storage"}),
    frozenset({"replay/sampling"}),
    frozenset({"replay/datasets"}),
    frozenset({"rollout", "replay", "learner"}),
    frozenset({"single_process", "watch"}),
    frozenset({"settings"}),
    frozenset({"driver"}),
    frozenset({"experiment"}),
    frozenset({"__init__"}),
    frozenset({"cli_utils", "tune"}),
    frozenset({"commands"}),
    frozenset({"train"}),
)

# Third-party packages that only the named rooms may import.
ONLY_IN: dict[str, frozenset[str]] = {
    "aiohttp": frozenset({"watch"}),
    "ray": frozenset({"driver", "tune"}),
    "tensorboard": frozenset({"watch"}),
    "wandb": frozenset({"watch"}),
}

# What has to import where neither Ray nor wandb is installed.
WITHOUT_RAY = ("amago_ray.agent", "amago_ray.nets.traj_encoders", "amago_ray.agent.losses", "amago_ray.learner")

PACKAGE = Path(__file__).parents[1] / "amago_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYER_OF = {module: i for i, layer in enumerate(LAYERS) for module in layer}


def room(path: Path) -> str:
    """The entry of the layer table that a file or folder of the package belongs to."""
    parts = path.relative_to(PACKAGE).parts
    name = "/".join(parts[:2]) if "/".join(parts[:2]) in LAYER_OF else parts[0]
    return name.removesuffix(".py")


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
    """(root, room) of each import: ("amago_ray", "nets"), ("ray", ""); ("amago_ray", "__init__") for public names."""
    package = ".".join(file.relative_to(PACKAGE.parent).parent.parts)
    pairs = []
    for name in imported_names(file.read_text(encoding="utf-8"), package):
        root, *parts = name.split(".")
        if root != PACKAGE.name:
            pairs.append((root, ""))
            continue
        while parts and not (
            PACKAGE.joinpath(*parts).is_dir() or PACKAGE.joinpath(*parts).with_suffix(".py").is_file()
        ):
            parts.pop()
        pairs.append((root, room(PACKAGE.joinpath(*parts)) if parts else "__init__"))
    return pairs


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_only_go_one_way(file: Path) -> None:
    own = room(file)
    assert own in LAYER_OF, f"{own} has no place in the layer table at the top of this test: give it one"
    for root, imported in imports_of(file):
        if root == PACKAGE.name and imported != own:
            assert imported in LAYER_OF, f"{file.name} imports {imported}, which has no place in the layer table"
            assert LAYER_OF[imported] < LAYER_OF[own], f"{own} may not import {imported}"


def test_the_front_door_is_small() -> None:
    """So that a newcomer sees the story and not its parts: everything else has a room."""
    assert len([file for file in PACKAGE.glob("*.py") if file.name != "__init__.py"]) <= 12


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_ray_and_wandb_stay_in_their_rooms(file: Path) -> None:
    own = room(file)
    for root, _ in imports_of(file):
        assert own in ONLY_IN.get(root, {own}), f"{own} may not import {root}; only {sorted(ONLY_IN[root])} may"


def test_the_checker_sees_every_way_to_import() -> None:
    source = "import ray.util\nfrom . import losses\nfrom ..nets import critics\ndef f():\n    from wandb import init\n"
    expected = {"ray.util", "amago_ray.learner.losses", "amago_ray.nets.critics", "wandb.init"}
    assert set(imported_names(source, "amago_ray.learner")) == expected


@pytest.mark.processes
def test_the_algorithm_imports_without_ray_and_wandb() -> None:
    paths = {name: PACKAGE.parent.joinpath(*name.split(".")) for name in WITHOUT_RAY}
    present = [n for n, path in paths.items() if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()]
    assert len(present) == len(WITHOUT_RAY)
    # None in sys.modules makes an import of that name fail as it does where the package is not installed.
    code = f"import sys; sys.modules['ray'] = sys.modules['wandb'] = None; import {', '.join(present)}"
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.processes
def test_a_shard_starts_without_pytorch() -> None:
    """It would cost every shard a second and 200 MB; what a configuration says of networks is passed over there."""
    config = "Agent.gamma = 0.9\nExperiment.traj_encoder_type = @GRUTrajEncoder\nMixtureOfDatasets.weights = [1.0]\n"
    code = (
        "import sys; sys.modules['torch'] = None; from amago_ray.driver import shard_actor;"
        "from amago_ray.replay.shard import ReplayConfig;"
        f"shard_actor.ShardActor(ReplayConfig(8), 0, 1, (), None, {config!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.processes
def test_a_driver_starts_without_pytorchs_compiler() -> None:
    """Which is imported wherever an optimiser is made, and would cost it a second and 70 MB."""
    code = (
        "import sys; from amago_ray import Experiment; from amago_ray.driver.probe import probe;"
        "from amago_ray.envs.builtin import Counting;"
        "probe(Experiment(run_name='a', make_train_env=Counting, max_seq_len=4));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
