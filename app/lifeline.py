"""A process that ends with its parent, however that ends.

Linux: `PDEATHSIG`, which follows the parent's *thread*; it has to outlive the child. Elsewhere there is no such thing, and
whoever needs it watches a pipe instead (`app.cli.keeper`, `worker.guard`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
IS_SUPPORTED = sys.platform.startswith("linux")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process as soon as its parent is gone, also when it is gone already; a no-op outside Linux."""
    if not IS_SUPPORTED:
        return
    if _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def before_exec() -> Callable[[], None]:
    """For `Popen(preexec_fn=…)` of a *single-threaded* parent: the child never lives a moment unprotected."""
    parent_pid = os.getpid()
    if IS_SUPPORTED:
        _libc()  # loaded before the fork, so that the child only makes two system calls
    return functools.partial(die_with_parent, parent_pid)
