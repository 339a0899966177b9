"""Writes checkpoints in the background, while training goes on."""

import copy
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scaledl.distributed import storage
from scaledl.distributed.pieces import Pieces


class Saver:
    """One checkpoint at a time: its values are copied to the host at once, and written by a thread of low priority."""

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        self._copies: dict[str, Pieces] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, folder: Path, tensors: dict[str, Pieces], plain: dict[str, Any], then: Callable[[], None] | None = None
    ) -> None:
        """Called by every rank together. Returns when the values may change again.

        Args:
            folder: where the checkpoint becomes visible, by a rename, when it is whole.
            then: called on rank 0 after that.

        Raises:
            OSError: the save before this one failed.
        """
        self.wait()
        if self._group is None and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")  # its own, so that its traffic meets none of the training's
        self._copies = {name: pieces.staged(self._copies.get(name)) for name, pieces in tensors.items()}
        work = (folder, copy.deepcopy(plain), then)
        self._thread = threading.Thread(target=self._write, args=work, daemon=True, name="checkpoint")
        self._thread.start()

    def prepare(self, tensors: dict[str, Pieces]) -> None:
        """Allocate the memory for copies in the background, before the first save: fresh memory is slow to write."""

        def allocate() -> None:
            _give_way()
            self._copies = {name: pieces.staged() for name, pieces in tensors.items()}

        self.wait()
        self._thread = threading.Thread(target=allocate, daemon=True, name="checkpoint")
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until the save that is under way is done.

        Raises:
            OSError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, folder: Path, plain: dict[str, Any], then: Callable[[], None] | None) -> None:
        beside = folder.with_name(f".{folder.name}.tmp")
        first = self._group is None or dist.get_rank() == 0
        refusal: Exception | None = None
        try:
            _give_way()
            if first:
                shutil.rmtree(beside, ignore_errors=True)
                try:
                    beside.mkdir(parents=True)
                except OSError as error:  # every rank fails below, together
                    refusal = error
            if self._group is not None:
                dist.barrier(self._group)
            storage.save(beside, self._copies, plain, self._group)
            if first:
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(beside, folder)
                if then is not None:
                    then()
        except Exception as error:
            if first:
                shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(next(parent for parent in folder.parents if parent.exists())).free / 2**20
            said = (str(refusal or error) or repr(error)).splitlines()[0]
            self._error = OSError(
                f"the checkpoint {folder} could not be written ({said}; {free:,.0f} MiB free); the"
                " checkpoints before it are whole. Free some space and run the same command again"
            )


def _give_way() -> None:
    """Let every other thread go first."""
    if sys.platform == "linux":  # where a priority is a thread's own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
