"""Where a holder listens: in a folder that nobody else can enter, under a name that fits."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.holder.client import Holder
from rhei_pipeline.holder.place import is_private, new_socket
from rhei_pipeline.mirrors.locking import LockNote
from rhei_pipeline.model.query_limits import QueryLimits


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a folder whose path leaves room for a socket's name."""
    with TemporaryDirectory(dir="/tmp") as made:
        yield Path(made)


def in_session(folder: Path) -> dict[str, str]:
    """Return an environment with a folder for what lasts as long as a session."""
    folder.mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(folder)}


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_a_folder_that_others_can_enter_is_not_used(short: Path, mode: int) -> None:
    session = in_session(short / "session")
    beside = short / ".rhei"
    beside.mkdir()
    beside.chmod(mode)
    found = new_socket(short / "lock", session)
    assert found.parent == short / "session" / "rhei"
    assert is_private(found.parent)


def test_nor_is_a_session_that_others_can_enter(short: Path) -> None:
    session = in_session(short / "session")
    (short / "session").chmod(0o755)
    (short / ".rhei").write_text("in the way")
    assert not new_socket(short / "lock", session).is_relative_to(short)


def test_nor_is_a_link_to_a_folder(short: Path) -> None:
    (short / "own").mkdir(mode=0o700)
    (short / ".rhei").symlink_to(short / "own")
    assert new_socket(short / "lock", in_session(short / "session")).parent.name == "rhei"


def test_nor_is_what_is_no_folder(short: Path) -> None:
    """Elsewhere a link may have permissions of its own, as a file has."""
    (short / ".rhei").write_text("in the way")
    (short / ".rhei").chmod(0o600)
    assert not is_private(short / ".rhei")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder somebody else's")
def test_nor_is_a_folder_of_somebody_else(short: Path) -> None:
    (short / ".rhei").mkdir(mode=0o700)
    os.chown(short / ".rhei", 65534, 65534)
    assert new_socket(short / "lock", in_session(short / "session")).parent.name == "rhei"


@pytest.mark.parametrize("name", ["x" * 90, "with space", "with%25", "ü"])
def test_a_name_that_no_socket_or_uri_takes_is_not_used(short: Path, name: str) -> None:
    session = in_session(short / "s")
    (short / name).mkdir()
    assert new_socket(short / name / "lock", session).parent == short / "s" / "rhei"


def test_a_folder_that_will_do_is_beside_the_mirror(short: Path) -> None:
    found = new_socket(short / "lock", in_session(short / "session"))
    assert found.parent == short / ".rhei"
    assert is_private(found.parent)
    assert not found.exists()


def test_what_dead_processes_left_of_the_mirror_is_removed(short: Path) -> None:
    """And neither what another one answers at, nor what is another mirror's."""
    mine, other = new_socket(short / "lock", {}), new_socket(short / "other", {})
    living = mine.with_name(f"{mine.name}-living")
    for name in (mine, other, living):
        with closing(socket.socket(socket.AF_UNIX)) as dead:
            dead.bind(str(name))
    living.unlink()
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(living))
        listening.listen()
        new_socket(short / "lock", {})
        assert (mine.exists(), other.exists(), living.exists()) == (False, True, True)


def test_a_process_that_has_no_room_for_one_more_caller_is_no_dead_one(short: Path) -> None:
    """It is busy; without its socket nobody could ask it any more."""
    name = new_socket(short / "lock", {})
    busy = name.with_name(f"{name.name}-busy")
    with closing(socket.socket(socket.AF_UNIX)) as listening, ExitStack() as callers:
        listening.bind(str(busy))
        listening.listen(0)
        with suppress(BlockingIOError):
            while True:
                caller = callers.enter_context(closing(socket.socket(socket.AF_UNIX)))
                caller.setblocking(False)  # noqa: FBT003  (the library's)
                caller.connect(str(busy))
        new_socket(short / "lock", {})
        assert busy.exists()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_nobody_asks_at_a_socket_that_others_can_put_one_in_the_place_of(
    short: Path, mode: int
) -> None:
    """A query has values, and whoever listens there would read them, and answer as it likes."""
    note = LockNote(1, socket=str(new_socket(short / "lock", {})))
    with closing(Holder(note, QueryLimits(), lambda *_: None)):
        pass
    (short / ".rhei").chmod(mode)
    with pytest.raises(MirrorBusyError, match="folder that only this user can enter"):
        Holder(note, QueryLimits(), lambda *_: None)
