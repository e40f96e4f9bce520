"""Where the holder of a mirror listens: a socket in a folder that only its user can enter.

A socket's own permissions are not looked at everywhere, so its folder's are what counts. It stands
beside the mirror, where processes find it that share nothing else, such as two containers; or, as
the name of a socket must be short, and the same in a URI, in the user's folder for what lasts as
long as a session.
"""

import hashlib
import itertools
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

_FOLDER = ".rhei"
#: What Linux takes is 107 bytes, what macOS takes 103.
_LONGEST = 100
#: What a URI's path may have as it is. Arrow decodes what is escaped, and gRPC then refuses it.
_PLAIN = "/:@!$&'()*+;="
#: How long a process that is alive may take to accept a connection.
_SWEEP_SECONDS = 0.2
_counter = itertools.count(1)
_NETWORK = {socket.AF_INET, socket.AF_INET6}


def new_socket(lock: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Return a name for a new socket of this process, in a folder made for it.

    What killed processes left of the same mirror is removed: whoever calls this holds its lock.

    Args:
        lock: The mirror's lock file.
        environment: Where XDG_RUNTIME_DIR is looked up; left out: this process's.

    Raises:
        OSError: No folder is safe.
    """
    mirror = hashlib.sha256(os.fsencode(lock.resolve())).hexdigest()[:8]
    name = f"{mirror}-{os.getpid()}-{next(_counter)}"
    for folder in _folders(lock, os.environ if environment is None else environment):
        if not _is_usable(folder / name) or not _made_private(folder):
            continue
        _sweep(folder, mirror)
        if _can_bind(folder / name):
            return folder / name
    raise OSError("there is no folder that only this user can enter")


def _folders(lock: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    yield lock.resolve().parent / _FOLDER
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and is_private(Path(runtime)):
        yield Path(runtime) / "rhei"
    for temporary in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108  (it is looked at)
        yield Path(temporary) / f"rhei-{os.geteuid()}"


def _is_usable(path: Path) -> bool:
    """Return whether a socket may have this name: short, and the same in a URI."""
    written = os.fsencode(path)
    return len(written) <= _LONGEST and quote(written, safe=_PLAIN) == str(path)


def is_private(folder: Path) -> bool:
    """Return whether a folder is this user's, and nobody else can enter it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_open = stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not is_open


def _made_private(folder: Path) -> bool:
    with suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise
        except OSError:
            return False
    return is_private(folder)


def _sweep(folder: Path, mirror: str) -> None:
    """Remove sockets of this mirror at which nobody listens any more."""
    for left in folder.glob(f"{mirror}-*"):
        with closing(socket.socket(socket.AF_UNIX)) as asking:
            asking.settimeout(_SWEEP_SECONDS)
            try:
                asking.connect(str(left))
            except ConnectionRefusedError:
                left.unlink(missing_ok=True)
            except OSError:
                continue


def _can_bind(name: Path) -> bool:
    """Return whether a socket can stand there: not every file system holds one."""
    with closing(socket.socket(socket.AF_UNIX)) as trial:
        try:
            trial.bind(str(name))
        except OSError:
            return False
    name.unlink(missing_ok=True)
    return True


def sever(place: Path | int) -> None:
    """Cut all connections of this process that were accepted at a socket, or at a port."""
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208  (names alone)
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                _cut(number, place)


def _cut(number: int, place: Path | int) -> None:
    # Never closed here: the descriptor is somebody else's.
    one = socket.socket(fileno=number)
    try:
        if one.family == socket.AF_UNIX and isinstance(place, Path):
            is_own = one.getsockname() == str(place)
        else:
            is_own = one.family in _NETWORK and one.getsockname()[1] == place
        if is_own:
            one.shutdown(socket.SHUT_RDWR)
    finally:
        one.detach()
