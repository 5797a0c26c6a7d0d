"""Training states: written while the run goes on, complete or not there, and no more of them than are wanted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amago_ray.atomic_files import is_full, is_unwritable, write_atomically
from amago_ray.driver.preemption import RESUMABLE, Preempted, Preemption
from amago_ray.driver.remote import RemoteCall
from amago_ray.driver.ring import Ring
from amago_ray.driver.schedule import Schedule
from amago_ray.driver.topology import FILES_TIMEOUT_S
from amago_ray.messages import CannotGoOn
from amago_ray.pending import CallTimeout, ProcessDied
from amago_ray.replay.storage.segments import StorageError
from amago_ray.run_directory import RunDirectory
from amago_ray.settings import ExperimentSettings
from amago_ray.watch.metrics import Progress

LONGEST_REASON, LEFT_OUT = 500, "..."


@dataclass(frozen=True)
class Cut:
    """The run as it was at the end of an epoch: the learners hold their share, this is what everybody else was.

    run_state: plain values, to be kept with the learners' files.
    """

    epoch: int
    run_state: dict[str, Any]


class Saving:
    """Takes a cut after every epoch and writes those that are due. Until one is whole, the older ones stay as they are.

    describe: what a training state says of the run, beside its processes. saved: told when one is complete.
    settle: sees to it that what the run has logged so far is in its file; raises OSError where it cannot be.
    """

    def __init__(
        self,
        settings: ExperimentSettings,
        ring: Ring,
        schedule: Schedule,
        directory: RunDirectory,
        describe: Callable[[], dict[str, Any]],
        saved: Callable[[], None],
        settle: Callable[[], None],
    ):
        self._settings, self._ring, self._schedule, self._directory = settings, ring, schedule, directory
        self._describe, self._saved, self._settle = describe, saved, settle
        self._preemption = Preemption()
        ring.check = self._now_and_then
        self._newest: Cut | None = None
        self._under_way: tuple[Cut, Path, list[RemoteCall]] | None = None
        self._untold = False
        self._owed = False  # one could not be written: the next cut is tried

    def after_epoch(self, due: bool) -> None:
        """Take a cut; where it is due, start to write it. What was written meanwhile is completed.

        Raises CannotGoOn where the run's folder is gone.
        """
        self._check_folder()
        self.poll()
        self._take_cut()
        if due or self._owed or self._ring.leaving.saves():
            self._start()
        self._tell()

    def now(self) -> None:
        """Write what the run is now, and return when that is complete. Raises OSError, ProcessDied, CallTimeout."""
        self.finish(tell_only=True)
        epoch = self._ring.progress.epoch
        if epoch in self._directory.saved_epochs():
            return
        if self._newest is None or self._newest.epoch != epoch:
            self._take_cut()
        self._start()
        self.finish()

    def policy(self, must: bool) -> None:
        """Write the weights as they are into latest/policy.pt.

        Raises OSError where they cannot be written and must; else the user is told, and the next epoch tries again.
        Raises CannotGoOn where the run's folder is gone.
        """
        self._check_folder()
        try:
            write_atomically(self._directory.latest_policy, self._ring.learners.save_policy)
        except OSError as error:
            if must:
                raise
            self._ring.say(f"{self._directory.latest_policy} could not be written ({error}); it is as it was")

    @contextmanager
    def before_leaving(self) -> Iterator[None]:
        """Where the process is told to end within, the newest cut is written first, and the user told.

        The folder says how it ended, also after Ctrl-C or an error. Raises OSError, which says how to go on, where a
        disk that is full or may not be written to ends the run, and CannotGoOn where its folder is gone.
        """
        with failure_recorded(self._directory, self._ring.progress), self._stop_recorded():
            with suppress(OSError):
                self._directory.stopped.unlink(missing_ok=True)
            with self._preemption:
                yield

    @contextmanager
    def _stop_recorded(self) -> Iterator[None]:
        """What `before_leaving` does, but for errors that nobody can help."""
        try:
            yield
        except KeyboardInterrupt:
            self._record_stop("Ctrl-C")
            raise
        except OSError as error:
            with suppress(OSError):
                self._check_folder()  # whatever is written fails without it
            if not (is_full(error) or is_unwritable(error)):
                raise
            raise OSError(error.errno, f"{_what_failed(error)}{self._how_to_go_on(error)}") from error
        except Preempted as told:
            try:
                self._save_in_time()
            finally:  # also where Ctrl-C ends that
                self._record_stop(told.by)
            saved = self._directory.saved_epochs()
            what = f"epoch {saved[-1] + 1} is saved" if saved else "no epoch was finished"
            self._ring.say(
                f"told to end ({told.by}): {what}, --resume auto goes on from there (exit status {RESUMABLE})"
            )
            raise

    def _save_in_time(self) -> None:
        """Write the newest cut, within preemption_grace_s."""
        deadline = time.monotonic() + self._settings.preemption_grace_s
        self.finish(self._settings.preemption_grace_s, tell_only=True)
        if self._newest is not None and self._newest.epoch not in self._directory.saved_epochs():
            self._start()
            self.finish(max(deadline - time.monotonic(), 0.0), tell_only=True)

    def _how_to_go_on(self, error: OSError) -> str:
        saved = self._directory.saved_epochs()
        newest = f"the newest training state is that of epoch {saved[-1] + 1}" if saved else "no epoch is saved"
        if isinstance(error, StorageError):
            return f"; {newest}" if is_unwritable(error) else f"; {newest}, then --resume auto"
        return f"{_remedy(error)}, then --resume auto: {newest}"

    def _record_stop(self, reason: str) -> None:
        with suppress(OSError):  # a full disk: it ends all the same
            self._directory.record_stop(self._ring.progress.epoch, reason)

    def _check_folder(self) -> None:
        """Raises CannotGoOn where the run's folder was taken away: nobody would find what is saved from here on."""
        if not self._directory.config.is_file():
            raise CannotGoOn(
                f"{self._directory.root} is gone, or its config.txt: removed, renamed or unmounted while the run went "
                "on; put it back, and --resume auto goes on from its newest training state"
            )

    def _take_cut(self) -> None:
        epoch = self._ring.progress.epoch
        ring = self._ring.cut(self._schedule.next_collected(epoch))
        self._newest = Cut(epoch, ring | self._schedule.state | self._describe())

    def _start(self) -> None:
        """Let the learners write the newest cut while the run goes on. Raises CannotGoOn where its folder is gone."""
        self._check_folder()
        self._complete(FILES_TIMEOUT_S, tell_only=True)
        cut = self._newest
        assert cut is not None
        try:
            folder = self._directory.open_training_state(cut.epoch)
        except OSError as error:
            self._failed(cut, error)
            return
        self._ring.hold(cut.run_state, unless_held=True)
        policy = self._directory.policy_epoch(cut.epoch)
        self._under_way = cut, folder, self._ring.learners.write_state(folder, policy, cut.epoch)

    def _now_and_then(self) -> None:
        self.poll()
        self._preemption.check()

    def poll(self) -> None:
        """Complete what has been written meanwhile, without waiting; to be called now and then."""
        if self._under_way is not None and all(call.done() for call in self._under_way[2]):
            self._complete(FILES_TIMEOUT_S, tell_only=True)

    def _tell(self) -> None:
        if self._untold:
            self._untold = False
            self._saved()

    def finish(self, timeout_s: float = FILES_TIMEOUT_S, tell_only: bool = False) -> None:
        """Wait until what was started is complete.

        Raises OSError where it could not be written, ProcessDied or CallTimeout; with tell_only, the user is told, and
        the next cut is owed.
        """
        self._complete(timeout_s, tell_only)
        self._tell()

    def forget(self) -> None:
        """Drop the newest cut, and what is being written: the run goes back to before them."""
        self._newest, self._owed = None, False
        if self._under_way is not None:
            _, folder, calls = self._under_way
            self._under_way = None
            for call in calls:
                with suppress(OSError, ProcessDied, CallTimeout):  # nobody wants it any more
                    call.result(FILES_TIMEOUT_S)
            shutil.rmtree(folder, ignore_errors=True)
        self._tell()

    def _complete(self, timeout_s: float, tell_only: bool) -> None:
        if self._under_way is None:
            return
        cut, folder, calls = self._under_way
        self._under_way = None
        try:
            for call in calls:
                call.result(timeout_s)
            self._settle()  # a run that goes on from here does not log again what was before
            self._directory.complete_training_state(cut.epoch, cut.run_state)
        except (OSError, ProcessDied, CallTimeout) as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not tell_only:
                raise
            self._failed(cut, error)
            return
        self._owed = False
        self._ring.learners.saved(cut.epoch)
        self._ring.hold(cut.run_state)
        self._forget_old(cut.epoch)
        self._untold = True

    def _failed(self, cut: Cut, error: Exception) -> None:
        self._owed = True
        self._ring.say(
            f"the training state of epoch {cut.epoch + 1} could not be written ({error}); older ones are whole, and "
            f"the next epoch tries again{_remedy(error)}"
        )

    def _forget_old(self, newest: int) -> None:
        """Remove training states that the settings do not want kept. Policies' weights stay."""
        keep, every = self._settings.ckpt_keep_last, self._settings.ckpt_keep_every
        if keep is None:
            return
        saved = [epoch for epoch in self._directory.saved_epochs() if epoch <= newest]
        for epoch in saved[:-keep]:
            if every is None or (epoch + 1) % every:
                self._directory.remove_training_state(epoch)


@contextmanager
def failure_recorded(directory: RunDirectory, progress: Progress) -> Iterator[None]:
    """Within, an error is what the run's folder keeps of its end, if the folder is there."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # of the disk, or of an error that cannot be printed: it itself is what is to be told
            if directory.config.is_file():
                directory.record_stop(progress.epoch, _told(error), failed=True)
        raise


def _told(error: Exception) -> str:
    """An error in one line: of a traceback's many the first and the last, and the notes that are one line each."""
    notes = [note for note in getattr(error, "__notes__", ()) if "\n" not in note]
    lines = f"{type(error).__name__}: {error}".strip().splitlines()
    ends = [lines[0], *([LEFT_OUT] if len(lines) > 2 else []), *lines[-1:]] if len(lines) > 1 else lines
    return "; ".join([" ".join(" ".join(ends).split()), *notes])[:LONGEST_REASON]


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and is_unwritable(error):
        return "; make it writable again"
    return "; free some space" if isinstance(error, OSError) and is_full(error) else ""


def _what_failed(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
