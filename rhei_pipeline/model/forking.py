"""What a forked process leaves alone of what its parent has open.

A fork has a copy of all that its parent had open, and none of its threads. SQLite takes the locks
of the parent for its own there. DuckDB, DataFusion, RocksDB and gRPC wait for threads that do not
exist, also to be closed. And a lock of a file, or a session of a server, is shared with the parent:
whoever ends it in one of them ends it for both, and it lasts until both have ended.
Source: sqlite.org/howtocorrupt.html ("carrying an open database connection across a fork").
"""

import ctypes
import gc
import os
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet, finalize

from rhei_pipeline.errors import ForkedProcessError


class _OpenFile(Protocol):
    def fileno(self) -> int: ...


#: The process that opened the first pipeline; a fork has a copy of this.
_opened_in: int | None = None
_undestroyable: WeakSet[object] = WeakSet()
_shared_files: WeakSet[_OpenFile] = WeakSet()


def note_opened() -> None:
    """Note that this process opens a pipeline, a mirror or a buffer.

    Raises:
        ForkedProcessError: The process of which it is a fork has done so before.
    """
    global _opened_in  # noqa: PLW0603  (a fact of the process)
    if _opened_in is None:
        _opened_in = os.getpid()
    refuse_in_fork()


def is_fork() -> bool:
    """Return whether this process is a fork of one that has opened a pipeline."""
    return _opened_in is not None and _opened_in != os.getpid()


def refuse_in_fork() -> None:
    """Do nothing in the process that has opened a pipeline.

    Raises:
        ForkedProcessError: This one is a fork of it.
    """
    if is_fork():
        raise ForkedProcessError(
            f"this process is a fork of process {_opened_in}, which has opened a pipeline: neither"
            " that nor another one can be used here",
            hint="open pipelines only in processes that are not forked afterwards: after a server"
            " has started its workers, or in those of multiprocessing's 'spawn'",
        )


def keep_from_forks(opened: object) -> None:
    """Keep forks from destroying an object: what it holds would wait for threads for ever."""
    _undestroyable.add(opened)


def leave_to_parent(opened: _OpenFile) -> None:
    """Make forks let go of an open file or connection, of which `fileno` is the descriptor."""
    _shared_files.add(opened)


def _let_go() -> None:
    """Let go of what the parent has, right after the fork, without a word to the other side."""
    for opened in list(_undestroyable):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))
        for held in gc.get_referents(opened):
            if isinstance(held, finalize):  # a server of Flight is shut down by one
                held.atexit = False
    if not _shared_files:
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for shared in list(_shared_files):
        with suppress(Exception):  # it was closed
            # The number stays taken: whoever still writes to it meets no other file.
            os.dup2(nothing, shared.fileno(), inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go)
