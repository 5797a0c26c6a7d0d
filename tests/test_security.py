"""Files are data and not code, secrets stay where they are, and names stay in their folders: see SECURITY.md."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from conftest import TESTS
from error_scene import MACHINE, Scene, forget_finished_run
from fake_topology import FakeTopology
from ring_cases import trajectory

from amago_ray.driver.cluster import connect
from amago_ray.learner.snapshot import OPTIMIZER, Snapshot
from amago_ray.replay.export import _file_name

PACKAGE = TESTS.parent / "amago_ray"
PIPES = PACKAGE / "envs" / "processes"  # speaks with processes of its own, over pipes that nobody else has
# Calls that run, or may run, what they read. cloudpickle.dumps only writes.
RUN_CODE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load",
    "eval", "exec", "pandas.read_pickle", "torch.jit.load",
}  # fmt: skip


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place, function, keyword arguments that are plain) of every call in the package."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and PIPES not in file.parents:
                given = {k.arg or "**": k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                yield f"{file.name}:{node.lineno}", ast.unparse(node.func), given


def test_nothing_is_unpickled_from_files() -> None:
    found = list(calls())
    loads = [(place, given) for place, name, given in found if name == "torch.load"]
    assert loads and all(given.get("weights_only") is True for _, given in loads), loads
    assert not [place for place, name, _ in found if name in RUN_CODE]
    assert not [place for place, _, given in found if given.get("allow_pickle") or given.get("weights_only") is False]


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    yield Scene(tmp_path, monkeypatch)
    forget_finished_run()


@pytest.mark.parametrize("name", [OPTIMIZER, "learner_counters.pt", "custom_checkpoint_0.pkl"])
def test_code_in_a_training_state_is_not_run(scene: Scene, name: str) -> None:
    state, mark = scene.run / "ckpts" / "training_states" / "run_epoch_0", scene.folder / "it was run"
    assert (state / name).is_file()
    torch.save({"state": Code(mark)}, state / name)
    with pytest.raises(Exception, match="[Ww]eights.only"):
        Snapshot.read(state, 0, 1)
    assert not mark.exists()
    torch.load(state / name, weights_only=False)
    assert mark.exists(), "so it would have been"


def test_secrets_are_nowhere_in_a_run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"WANDB_API_KEY": "s3cret-wandb", "RAY_AUTH_TOKEN": "s3cret-ray", "AWS_SECRET_ACCESS_KEY": "s3cret-aws"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    scene.cluster, scene.topology = MACHINE, FakeTopology
    nothing = SimpleNamespace(episodes=[], summary=lambda: {})
    monkeypatch.setattr("amago_ray.driver.ring.Ring.validate", lambda self: nothing)
    config = scene.config(
        "Experiment.make_train_env = @with_key",
        "with_key.api_key = 's3cret-bound'",
        "Experiment.make_val_env = (@with_key, {'api_key': 's3cret-given', 'other': 3})",
        "Experiment.verbose = True",
        "Experiment.ckpt_interval = 1",
    )
    outcome = scene.command("--config", config)
    assert outcome.status == 0, outcome.err
    assert "s3cret" not in outcome.out + outcome.err
    written = [path for path in scene.runs.rglob("*") if path.is_file()]
    assert {"config.txt", "run_state.json", "metrics.jsonl"} <= {path.name for path in written}
    for path in written:
        assert b"s3cret" not in path.read_bytes(), path
    text = (scene.runs / "run" / "config.txt").read_text(encoding="utf-8")
    assert "# with_key.api_key is left out: it is a secret" in text and "'other': 3" in text


def test_a_password_is_not_repeated(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = scene.command("--config", scene.config("Experiment.ray_address = 'ray://me:hunter2@head:10001'"))
    assert outcome.status == 2 and "hunter2" not in outcome.err
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:hunter2@127.0.0.1:9")  # nobody listens at 9
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match="no Ray cluster answers") as refused:
        connect(None, lambda cluster: 1.0)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "..", "a\0b", "a\nb", "é" * 300, "plain-v0"])
def test_an_environment_cannot_leave_the_folder_of_its_files(name: str, tmp_path: Path) -> None:
    made = _file_name(name)
    path = tmp_path / f"{made}_0_1.npz"
    np.savez(path, x=np.zeros(1))
    assert path.parent == tmp_path and [path.name] == os.listdir(tmp_path)
    assert made.isprintable() and (made == name) == (name in ("plain-v0", ".."))
    assert trajectory(env_name=name).env_name == name, "what is stored keeps its name"


def test_the_dashboard_of_a_local_ray_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Enough(BaseException):
        """Not one that is tried again."""

    def init(**options: Any) -> None:
        asked.update(options)
        raise Enough

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Enough):
        connect(None, lambda cluster: 1.0)
    assert asked["include_dashboard"] is False and asked["address"] == "local"
    assert "dashboard_host" not in asked


def test_the_board_is_on_loopback_unless_asked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = []

    async def serve(board: Any, host: str, *_: Any) -> None:
        hosts.append(host)

    monkeypatch.setattr("amago_ray.watch.board.server.serve", serve)
    assert (
        scene.command("board", scene.run).status == scene.command("board", scene.run, "--host", "0.0.0.0").status == 0
    )
    assert hosts == ["127.0.0.1", "0.0.0.0"]
