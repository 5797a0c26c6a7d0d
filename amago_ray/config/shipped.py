"""The configurations that come along, by name: `--config tmaze`, with or without the repository."""

from __future__ import annotations

from pathlib import Path

from amago_ray.config.mistakes import closest

PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Where they lie: in an installed package inside it, in the repository beside it."""
    installed, repository = PACKAGE / "configs", PACKAGE.parent
    return installed if installed.is_dir() or not (repository / "pyproject.toml").is_file() else repository / "configs"


def names() -> list[str]:
    """Of all of them, in order: "cartpole", "tmaze/passive_50"."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.gin"))


def named(config: str | Path) -> Path | None:
    """The one that comes along as `config`, which may be written as in the repository, "configs/tmaze.gin"; or None."""
    name = _name(config)
    return folder() / f"{name}.gin" if name in names() else None


def find(config: str | Path) -> Path:
    """The file that `config` means: that file; else `config`.gin; else the one of that name that comes along.

    Raises ValueError, with the nearest name, where there is none.
    """
    for path in (Path(config), Path(f"{config}.gin"), named(config)):
        if path is not None and is_readable(path):
            return path
    if Path(config).is_absolute() or Path(config).suffix not in ("", ".gin"):  # meant as a file, and not as a name
        raise ValueError(f"--config {config}: there is no such file")
    raise ValueError(f"--config {config}: there is no such file, nor does one of that name come along{_advice(config)}")


def get(name: str) -> Path:
    """The one that comes along as `name`, whatever files there are. Raises ValueError, with the nearest name."""
    found = named(name)
    if found is None:
        raise ValueError(f"{name}: no configuration of that name comes along{_advice(name)}")
    return found


def _advice(config: str | Path) -> str:
    close = closest(_name(config), names())
    return f"; did you mean {close!r}?" if close else "; `amago-ray configs` lists those that do"


def is_readable(path: Path) -> bool:
    """Whether there is something to read: a file, or what a shell gives in place of one, as `--config <(command)`."""
    return path.exists() and not path.is_dir()


def _name(config: str | Path) -> str:
    return Path(config).as_posix().removeprefix("configs/").removesuffix(".gin")


def introduction(file: Path) -> str:
    """The comment that a configuration begins with, in one line, as far as its first blank line or command."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#   "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines)
