"""The pages of docs/: they build without a warning, their code runs, their commands and names exist."""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gin
import pytest
from acting_cases import SETTINGS as SMALL_NETWORKS
from acting_cases import make_run
from conftest import TESTS

from amago_ray import Experiment, config, train
from amago_ray.config import shipped
from amago_ray.config.registry import matching, parameters_of

ROOT = TESTS.parent
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))} | {
    path.parent.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "README.md", ROOT / "README.md")
}
TRAINING = ("quickstart", "stable_baselines3", "rllib")  # pages of whole runs; the others' code trains nothing
OWN_TEST = ("extending", "using_a_policy", "sweeps", ROOT.name)  # whose code other files run
ELSEWHERE = ("FILE", "mine.gin", "my.gin", "a.gin", "runs/first/config.txt", "runs/tmaze/config.txt")  # of the reader
SMALL = {"epochs": 1, "parallel_actors": 4, "train_timesteps_per_epoch": 24, "num_rollout_workers": 1}
SMALL_UNLESS_GIVEN = ("train_batches_per_epoch = 2", "batch_size = 4", "replay_capacity_gb = 0.02", "verbose = False")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command of `amago-ray` that is written on lines of its own, comments left out."""
    lines = re.findall(r"^ {4}(amago-ray(?:[^\n]*\\\n)*[^\n]*)$", text, re.MULTILINE)
    for line in [*lines, *re.findall(r"^(amago-ray [^\n]*)$", "\n".join(blocks("", text)), re.MULTILINE)]:
        if not line.startswith("amago-ray:"):  # what it answers
            words = shlex.split(line.replace("\\\n", " "), comments=True)
            yield words[: words.index(">")] if ">" in words else words


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    """Without the page that docstrings make up: `make docs` builds that, too."""
    from sphinx.application import Sphinx

    warnings = io.StringIO()
    Sphinx(ROOT, DOCS, tmp_path, tmp_path, "html", status=None, warning=warnings, tags=["pages"]).build()
    assert warnings.getvalue() == ""
    assert (tmp_path / "index.html").read_text() == (tmp_path / "README.html").read_text()
    assert 'href="docs/api.html"' in (tmp_path / "index.html").read_text()


def test_the_api_names_what_there_is() -> None:
    named = re.findall(r"\.\. auto(\w+):: ([\w.]+)", PAGES["api"])
    assert len(named) > 25
    for kind, name in named:
        module, _, attribute = name.rpartition(".")
        exec(f"import {name}" if kind == "module" else f"from {module} import {attribute}", {})


@pytest.mark.parametrize("page", [name for name in PAGES if name not in (*TRAINING, *OWN_TEST)])
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec("\n".join(blocks("python", PAGES[page])), {})


@pytest.mark.usefixtures("ray_instance", "shared_processes")
@pytest.mark.parametrize("page", TRAINING)
def test_runs_train_and_leave_a_policy(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, "amago_ray/MetaFrozenLake-v0", "GRUTrajEncoder")  # the one that quickstart has trained before
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "meta_frozen_lake")
    gin.clear_config()
    bindings = [f"Experiment.{name} = {value}" for name, value in SMALL.items()]
    for block in blocks("python", PAGES[page]):
        config.load([], [*SMALL_NETWORKS, *bindings, *(f"Experiment.{setting}" for setting in SMALL_UNLESS_GIVEN)])
        code = block
        for name, value in SMALL.items():
            code = re.sub(rf"\b{name}=\d+", f"{name}={value}", code)
        exec(code, {})
        gin.clear_config()
    runs = {path.parents[2].name for path in (tmp_path / "runs").glob("*/ckpts/latest/policy.pt")}
    assert len(runs) == 2


@pytest.mark.parametrize("page", [name for name in PAGES if name != "extending" and blocks("gin", PAGES[name])])
def test_settings_are_such(page: str, tmp_path: Path) -> None:
    for block in blocks("gin", PAGES[page]):
        gin.clear_config()
        (tmp_path / "page.gin").write_text(block)
        config.load([tmp_path / "page.gin"])
        required = {"run_name": "a", "make_train_env": "CartPole-v1", "max_seq_len": 32}
        Experiment(**{name: value for name, value in required.items() if not config.is_bound("Experiment", name)})


@pytest.mark.parametrize("page", [name for name in PAGES if any(commands(PAGES[name]))])
def test_commands_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _, *words in commands(PAGES[page]):
        name = words[0] if words and not words[0].startswith("-") else None
        assert name is None or name in train.COMMANDS, words
        with pytest.raises(SystemExit):
            train.main([*([name] if name else []), "--help"])
        known = capsys.readouterr().out
        for word in words:
            if word.startswith("--"):
                assert re.search(rf"{word}\b", known), words
        files = [file for option, file in pairwise(words) if option == "--config" and file not in ELSEWHERE]
        gin.clear_config()
        if files or "--set" in words:
            config.load(files, [value for option, value in pairwise(words) if option == "--set"])


def test_the_table_of_commands_is_complete() -> None:
    assert set(re.findall(r"^\| `amago-ray ([a-z][a-z-]+)", PAGES["commands"], re.MULTILINE)) == set(train.COMMANDS)


def test_the_table_of_configurations_is_complete() -> None:
    named = set(re.findall(r"^\| `configs/(\w+)\.gin`", PAGES["configurations"], re.MULTILINE))
    assert named == {name for name in shipped.names() if "/" not in name}


def messages() -> Iterator[str]:
    """Every text in the package's code, with "..." where something is put in."""
    for path in sorted((ROOT / "amago_ray").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_messages_are_what_the_code_says() -> None:
    said = [" ".join(text.split()) for text in messages()]
    quoted = re.findall(r"^\| `([^`]+)` \|", PAGES["troubleshooting"], re.MULTILINE)
    assert len(quoted) > 25
    for message in quoted:
        assert any(message in text for text in said), message


def test_logged_numbers_are_what_the_code_logs() -> None:
    patterns = {re.escape(text).replace(r"\.\.\.", ".+") for text in messages() if re.match(r"[A-Z]", text)}
    for page in ("watching", "performance", "failures"):
        for name in re.findall(r"`(?:collect|train|val|replay)/([A-Z][^`]*)`", PAGES[page]):
            name = name.replace(" in NAME", " in CartPole-v1")
            assert any(re.fullmatch(pattern, name) for pattern in patterns), name


@pytest.mark.parametrize("page", ["stable_baselines3", "rllib"])
def test_names_of_others_are_theirs_and_ours_are_ours(page: str) -> None:
    """Their arguments are recorded in a file, read off those versions, because the libraries are not installed here."""
    others = json.loads((Path(__file__).parent / "arguments_of_others.json").read_text())[page]
    assert others["version"] in PAGES[page]
    config.load([])
    rows = [line.split(" | ") for line in PAGES[page].splitlines() if line.startswith("| `")]
    theirs = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])]
    assert len(theirs) == len(set(theirs)) > 30
    for name in theirs:
        owner, argument = name.split(".")
        assert argument in others["arguments"][owner], name
    for name in (name for row in rows for name in re.findall(r"`([\w.]+)`", row[1])):
        assert_is_ours(name)
    for owner in ("SAC", "RecurrentPPO") if page == "stable_baselines3" else ():
        named = {name.split(".")[1] for name in theirs}
        assert set(others["arguments"][owner]) <= named, owner


def assert_is_ours(name: str) -> None:
    import inspect

    from amago_ray.rollout.acting import ActingPolicy, load_policy

    owner, argument = name.rsplit(".", 1)
    functions: dict[str, Any] = {"ActingPolicy.act": ActingPolicy.act, "load_policy": load_policy}
    if owner in functions:
        assert argument in inspect.signature(functions[owner]).parameters, name
    else:
        assert matching(owner) and argument in parameters_of(owner), name
