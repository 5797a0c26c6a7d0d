"""The run directory: where everything is, and writing it so that a crash leaves only whole files.

{ckpt_base_dir}/{run_name}/
    config.txt  spaces.json  metrics.jsonl  events.jsonl  wandb_logs/  replay/
    ckpts/training_states/{run_name}_epoch_{n}/   ckpts/latest/policy.pt   ckpts/policy_weights/policy_epoch_{n}.pt
and, where they are asked for, tensorboard/  ckpts/best/  videos/  progress.json; stopped.json where it ended
before its last epoch
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from amago_ray.atomic_files import LineFile, _sync, read_json, without_empty_parents, write_atomically

RUN_STATE = "run_state.json"
LOOKS, LOOK_S = 3, 0.05  # at a lock that somebody has
# In a run state: what another run's data and processes do not have, and settings that a sweep may change on the way.
OF_ONE_FOLDER = ("marks", "workers", "ahead", "values")


class RunDirectory:
    """Paths and atomic writes of one run."""

    def __init__(self, ckpt_base_dir: str | os.PathLike[str], run_name: str):
        self.run_name = run_name
        self.root = Path(ckpt_base_dir).expanduser().resolve() / run_name
        self.config = self.root / "config.txt"
        self.spaces = self.root / "spaces.json"
        self.replay = self.root / "replay"
        self.wandb_logs = self.root / "wandb_logs"
        self.training_states = self.root / "ckpts" / "training_states"
        self.latest_policy = self.root / "ckpts" / "latest" / "policy.pt"
        self.best_policy = self.root / "ckpts" / "best" / "policy.pt"
        self.policy_weights = self.root / "ckpts" / "policy_weights"
        self.events = self.root / "events.jsonl"  # what became of processes
        self._lock = self.root.with_name(f".{run_name}.lock")  # beside the folder, which may be removed
        self._is_held = False  # the lock, by this process
        self._notes: LineFile | None = None
        self.stopped = self.root / "stopped.json"  # of a run that was ended or failed, and why: see `record_stop`

    def check_writable(self) -> None:
        """Raises ValueError, naming the setting, where the run's folder cannot be made or written. Leaves nothing."""
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        try:
            with tempfile.TemporaryDirectory(dir=there):
                pass
        except OSError as error:
            raise self.not_writable(error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within, the run is this process's own. Raises ValueError where another one has it."""
        self.check_writable()
        with without_empty_parents(self.root):
            file = self._lock_file()
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False
                with suppress(OSError):  # what ends the run is to be told, and one that is left behind holds nobody up
                    self._lock.unlink(missing_ok=True)
                file.close()

    def was_killed(self) -> bool:
        """Whether the process that had the run is gone and left its lock. Of another machine's nothing is known."""
        try:
            with open(self._lock, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return file.read() == _this_machine()
        except OSError:  # none is there, or a process has it
            return False

    def _lock_file(self) -> BinaryIO:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        looks = iter(range(LOOKS))  # at one that `was_killed` may have just then
        while True:
            file = open(self._lock, "ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_ino == os.stat(self._lock).st_ino:
                    file.truncate(0)
                    file.write(_this_machine())
                    file.flush()
                    return file
            except BlockingIOError as error:
                if next(looks, None) is None:
                    file.close()
                    raise ValueError(
                        f"{self.root}: this run is at work already; end it, or choose another run_name"
                    ) from error
                time.sleep(LOOK_S)
            except FileNotFoundError:
                pass
            file.close()  # whoever had it has just removed it

    def create(self) -> None:
        """Make the directories. Raises ValueError, naming the setting, where that is not possible."""
        self._forget_notes()
        try:
            for folder in (self.wandb_logs, self.training_states, self.latest_policy.parent, self.policy_weights):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.not_writable(error) from error

    def not_writable(self, error: OSError) -> ValueError:
        """What to raise where the folder cannot be written, because of `error`."""
        return ValueError(f"ckpt_base_dir={str(self.root.parent)!r} cannot be written: {error.strerror or error}")

    def exists(self) -> bool:
        """Whether a run has already trained here."""
        return (self.root / "metrics.jsonl").is_file() or bool(self._saved_by_name())

    def record_stop(self, epoch: int, reason: str, failed: bool = False) -> None:
        """Why the run came to no end of its own: a callback's reason, a signal; the error that it `failed` with.

        Raises OSError.
        """
        text = json.dumps({"epoch": epoch, "reason": reason, "failed": failed}) + "\n"
        write_atomically(self.stopped, lambda path: path.write_text(text))

    def record_stop_at_start(self, reason: str) -> None:
        """As `record_stop`, before this process has trained. Nothing is written where it does not have the run, or none
        is there."""
        if self._is_held and self.config.is_file():
            with suppress(OSError):  # it ends all the same
                self.record_stop(max(self.saved_epochs(), default=-1), reason)

    def remove(self) -> None:
        """Delete the run, where there is one."""
        self._forget_notes()
        if self.root.exists():
            shutil.rmtree(self.root)

    def _forget_notes(self) -> None:
        """A run that is begun in the place of another one has notes of its own."""
        if self._notes is not None:
            self._notes.close()
            self._notes = None

    def note(self, text: str, epoch: int) -> None:
        """Keep a word of what happened, for who looks at the run: a row of `events.jsonl` with the time (s since 1970).

        epoch: the newest finished one, from 0; -1 before the first.
        """
        row = json.dumps({"time": round(time.time(), 3), "epoch": epoch, "text": text})
        with suppress(OSError):  # the user was told, and what a run cannot do without says so itself
            if self._notes is None:
                self._notes = LineFile(self.events)
            self._notes.append(row.encode() + b"\n")  # where there is no room, it comes with a later one

    def policy_epoch(self, epoch: int) -> Path:
        return self.policy_weights / f"policy_epoch_{epoch}.pt"

    def policy_epochs(self) -> list[int]:
        """Epochs whose policy was kept, oldest first."""
        names = (re.fullmatch(r"policy_epoch_(\d+)\.pt", path.name) for path in self.policy_weights.glob("*.pt"))
        return sorted(int(name.group(1)) for name in names if name)

    def training_state(self, epoch: int, run_name: str | None = None) -> Path:
        """Where it is, or would be. run_name: that it was saved under, where that is not this run's."""
        return self.training_states / f"{run_name or self.run_name}_epoch_{epoch}"

    def saved_epochs(self, run_name: str | None = None) -> list[int]:
        """Epochs with a complete training state, oldest first. run_name: as of `training_state`."""
        return self._saved_by_name().get(run_name or self.run_name, [])

    def _saved_by_name(self) -> dict[str, list[int]]:
        """The same, by the name of the run that saved them."""
        found: dict[str, list[int]] = {}
        for folder in self.training_states.glob("*_epoch_*"):
            match = re.fullmatch(r"(.+)_epoch_(\d+)", folder.name, re.DOTALL)
            if match and (folder / RUN_STATE).is_file():
                found.setdefault(match.group(1), []).append(int(match.group(2)))
        return {name: sorted(epochs) for name, epochs in found.items()}

    def name_of_states(self) -> str:
        """The name that the training states here bear: this run's, or in a copied or renamed folder the former one.

        Raises ValueError where there are none of this run and those of several others.
        """
        found = sorted(self._saved_by_name())
        if self.run_name in found or not found:
            return self.run_name
        if len(found) > 1:
            raise ValueError(
                f"resume: {self.root} holds training states of {' and '.join(map(repr, found))}, and none of "
                f"{self.run_name!r}: set run_name to one of them and rename the folder so, remove the others from "
                f"{self.training_states}, or begin anew (--overwrite, or start(overwrite=True) in Python)"
            )
        return found[0]

    def take_over_states(self) -> str | None:
        """Give what was saved in a copied or renamed folder this run's name; returns the former one, if there was one.

        wandb is told of it as of another run: the original may be there yet. Raises ValueError as `name_of_states`.
        """
        former = self.name_of_states()
        if former == self.run_name:
            return None
        for epoch in reversed(self.saved_epochs(former)):  # the newest is what a run goes on from, if this is cut short
            folder, own = self.training_state(epoch, former), self.training_state(epoch)
            state = read_json(folder / RUN_STATE) | {"wandb_run_id": None}
            write_atomically(folder / RUN_STATE, lambda path: path.write_text(json.dumps(state, indent=2)))  # noqa: B023
            shutil.rmtree(own, ignore_errors=True)  # one that is not complete
            folder.rename(own)
        _sync(self.training_states)
        return former

    def check_saved(self, epoch: int) -> None:
        """Raises ValueError for an epoch that has no complete training state."""
        saved = self.saved_epochs()
        if epoch not in saved:
            raise ValueError(f"load_checkpoint: epoch {epoch} was not saved; those that were: {saved}")

    def is_saving(self, epoch: int) -> bool:
        """Whether a training state of this epoch was begun and has not been completed."""
        return self._partial(epoch).is_dir()

    def save_training_state(self, epoch: int, fill: Callable[[Path], None], run_state: dict[str, Any]) -> Path:
        """Let `fill` write into a new folder, add the driver's own state, and give it its name last of all.

        The run state is the completion marker: it is written after everything else.
        """
        fill(self.open_training_state(epoch))
        return self.complete_training_state(epoch, run_state)

    def open_training_state(self, epoch: int) -> Path:
        """A new folder, to be filled and then given its name by `complete_training_state`."""
        partial = self._partial(epoch)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _partial(self, epoch: int) -> Path:
        final = self.training_state(epoch)
        return final.with_name(f".{final.name}.partial")

    def complete_training_state(self, epoch: int, run_state: dict[str, Any]) -> Path:
        """Add the driver's own state to a folder that is filled, and give it its name last of all."""
        final, partial = self.training_state(epoch), self._partial(epoch)
        for path in partial.rglob("*"):
            _sync(path)
        write_atomically(partial / RUN_STATE, lambda path: path.write_text(json.dumps(run_state, indent=2)))
        (final / RUN_STATE).unlink(missing_ok=True)  # first, so that an older state is never listed half removed
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(final.parent)
        return final

    def adopt_training_state(self, folder: Path, own: bool = False) -> None:
        """Make a complete training state of any run this one's newest: copied here, and states of later epochs removed.

        own: it is a copy of one of this run's, which goes on from it with the data and workers that it had then; where
        that one is still here, the copy, which may be damaged, is not needed.
        Raises ValueError when `folder` holds no complete training state.
        """
        if not (folder / RUN_STATE).is_file():
            raise ValueError(f"{folder} holds no complete training state: {RUN_STATE} is missing")
        state = read_json(folder / RUN_STATE, "progress")
        epoch = state["progress"]["epoch"]
        if not own:
            saved = self.saved_epochs()
            state["wandb_run_id"] = self.load_run_state(saved[-1]).get("wandb_run_id") if saved else None
            for name in OF_ONE_FOLDER:
                state.pop(name, None)
        files = [path for path in folder.iterdir() if path.name != RUN_STATE]

        def copy(to: Path) -> None:
            for path in files:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, to / path.name)

        here = self.training_state(epoch)
        is_here = own and epoch in self.saved_epochs() and _same(folder / RUN_STATE, here / RUN_STATE)
        if not is_here and folder.resolve() != here.resolve():
            self.save_training_state(epoch, copy, state)
        self.forget_after(epoch)

    def forget_after(self, epoch: int) -> None:
        """Delete the training states of epochs later than this one."""
        for later in self.saved_epochs():
            if later > epoch:
                self.remove_training_state(later)

    def remove_training_state(self, epoch: int) -> None:
        """Delete a training state; it counts as gone at once."""
        (self.training_state(epoch) / RUN_STATE).unlink()
        shutil.rmtree(self.training_state(epoch))

    def load_run_state(self, epoch: int) -> dict[str, Any]:
        """What `save_training_state` was given. Raises ValueError, naming the file, where it is damaged."""
        return read_json(self.training_state(epoch) / RUN_STATE)


def _same(*files: Path) -> bool:
    return len({file.read_bytes() for file in files}) == 1


def _this_machine() -> bytes:
    return platform.node().encode()
