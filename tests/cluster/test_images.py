"""The container images and the compose file agree with pyproject.toml, with constraints.txt and with one another."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
# Dockerfile reference, "Overview": every instruction but ONBUILD, which is for images that others build on.
INSTRUCTIONS = frozenset(
    "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split()
)


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, in order, with continued lines joined. Raises ValueError for others."""
    lines = [line for line in (ROOT / "docker" / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps = []
    for line in filter(None, joined.splitlines()):
        word, _, arguments = line.partition(" ")
        if word not in INSTRUCTIONS:
            raise ValueError(f"docker/{name}: {word} is no instruction")
        steps.append((word, arguments.strip()))
    return steps


def arguments_of(name: str, word: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(name) if instruction == word]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_install_is_pinned(name: str) -> None:
    installs = [step for step in arguments_of(name, "RUN") if re.search(r"pip (install|wheel)", step)]
    assert installs
    assert all("-c constraints.txt" in step for step in installs)
    assert any(step.endswith("-c constraints.txt torch") for step in installs), "by itself, so that its build is kept"
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0] for line in lines if re.match(r"[\w-]+==", line)}
    assert {"torch", "ray", "mamba-ssm"} <= pins
    for base in arguments_of(name, "FROM"):
        image = base.split(" AS ")[0]
        assert re.search(r":\d+\.\d+\.\d+-", image), f"{image} must name an exact version"
    text = (ROOT / "docker" / name).read_text()
    assert not re.search(r"torch==|ray==|https?://", text), "versions are in constraints.txt alone"


def test_both_images_have_one_python() -> None:
    bases = {arguments_of(name, "FROM")[-1] for name in DOCKERFILES}
    (base,) = bases
    version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-bookworm", base)
    assert version
    assert tuple(map(int, version[1].split("."))) >= (3, 11) and PROJECT["requires-python"] == ">=3.11"
    compiler = " ".join(arguments_of("Dockerfile.gpu", "RUN"))
    assert f"python{version[1]}-dev" in compiler, "the kernels must be compiled for the Python that loads them"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_extras_and_files_exist(name: str) -> None:
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(arguments_of(name, "RUN")))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    ignored = (ROOT / "docker" / f"{name}.dockerignore").read_text().split()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    for step in arguments_of(name, "COPY"):
        *sources, _ = [word for word in step.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), f"{source} is not sent to the builder"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_nobody_is_root_and_health_is_checked(name: str) -> None:
    steps = instructions(name)
    (user,) = arguments_of(name, "USER")
    assert int(user) > 0
    after = [word for word, _ in steps[steps.index(("USER", user)) :]]
    assert "RUN" not in after
    (health,) = arguments_of(name, "HEALTHCHECK")
    assert json.loads(health[health.index("CMD ") + 4 :]) == ["ray", "health-check"]
    assert any("RAY_AUTH_MODE=token" in step for step in arguments_of(name, "ENV"))
    assert arguments_of(name, "WORKDIR")[-1] == "/workspace"


def test_compose_starts_a_head_and_two_workers_with_one_token() -> None:
    services = compose()["services"]
    head, worker = services["head"], services["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert worker["depends_on"]["head"]["condition"] == "service_healthy"
    assert head["build"] == {"context": "..", "dockerfile": "docker/Dockerfile"} | {"args": head["build"]["args"]}
    assert set(head["build"]["args"]) <= set(arguments_of("Dockerfile", "ARG"))
    port = next(word.split("=")[1] for word in head["command"] if word.startswith("--port="))
    assert f"--address=head:{port}" in worker["command"]
    assert head["environment"]["RAY_ADDRESS"] == f"head:{port}"
    for service in (head, worker):
        assert service["image"] == f"amago-ray:{PROJECT['version']}"
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert service["volumes"] == ["runs:/workspace/runs"]
        assert "ports" not in service, "nothing outside the containers' network can reach the cluster"
        options = dict(word.split("=") for word in service["command"] if "=" in word)
        assert service["shm_size"] == "1gb" and int(options["--object-store-memory"]) < 1 << 30
    assert "runs" in compose()["volumes"]


def test_kubernetes_uses_these_images() -> None:
    spec = yaml.safe_load((ROOT / "cluster" / "kuberay-raycluster.yaml").read_text())["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    tag = f"amago-ray:{PROJECT['version']}"
    assert images == {tag, f"{tag}-gpu"}
    for name, image in zip(DOCKERFILES, sorted(images), strict=True):
        assert f"-t {image} ." in (ROOT / "docker" / name).read_text()


def test_an_unknown_instruction_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "Dockerfile").write_text("FROM x\nRUM \\\n  y\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    with pytest.raises(ValueError, match="RUM"):
        instructions("Dockerfile")
