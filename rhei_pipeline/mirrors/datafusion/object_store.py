"""A mirror's files in an object store: S3-compatible, or Google Cloud Storage.

There is no lock. Concurrent writers are detected by a conditional put: a manifest is created only
if its name is free. The second writer gets an error, and has changed nothing.
"""

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import obstore
import pyarrow as pa
from datafusion import SessionContext
from datafusion.object_store import AmazonS3, GoogleCloud
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import GCSStore, S3Store

from rhei_pipeline.errors import MirrorDamagedError, MirrorError, MirrorUnreachableError
from rhei_pipeline.mirrors.datafusion.files import (
    Fill,
    Mark,
    Noted,
    Sink,
    aside,
    committed_meanwhile,
    missing,
)
from rhei_pipeline.mirrors.datafusion.local_files import OpenedFile
from rhei_pipeline.mirrors.datafusion.store_answers import refusal_of, silence_of
from rhei_pipeline.mirrors.datafusion.store_cache import StoreCache

if TYPE_CHECKING:
    from obstore import PutResult

#: A file that no manifest names may belong to a commit under way, unless it is older than this.
ORPHAN_AGE = timedelta(hours=1)

#: A larger file is put in parts, one request for each: a store takes no more than 5 GB at once.
_PART_BYTES = 64 * 2**20
#: Holds the number of the newest manifest.
_NEWEST = "newest"
#: Files that are put at the same time.
_AT_ONCE = 32

#: What an engine takes for the end of a path: it would find no rows in files that are not there.
_NO_NAME = re.compile("[?#]")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """How a store is reached; missing values are taken from the environment.

    Attributes:
        secrets: Keys and tokens, by the names of the store's own variables; never printed.
        timeout_seconds: How long one request may take; it is retried within `retry_seconds`.
    """

    endpoint: str | None = None
    region: str | None = None
    allow_http: bool = False
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    timeout_seconds: float = 30.0
    retry_seconds: float = 60.0


class ObjectFiles:
    """Files under a URL such as `s3://bucket/mirror` or `gs://bucket/mirror`.

    What was written or read is cached in a local directory until this is closed. Files are put
    side by side, while others are made; whoever asks for one of them waits until it is there.

    Raises:
        MirrorUnreachableError: The store did not answer in time; trying again may help.
        MirrorError: The store refused, or holds no such file.
    """

    remote: ClassVar[bool] = True

    def __init__(self, url: str, access: StoreAccess) -> None:
        parts, prefix = urlsplit(url), _prefix(url)
        self.root = self.url = f"{parts.scheme}://{parts.netloc}/{prefix}".rstrip("/")
        self._scheme, self._bucket = parts.scheme, parts.netloc
        self._access = access
        self._store = _store(parts.scheme, parts.netloc, prefix, access)
        self._cache = StoreCache()
        self._newest: int | None = None
        self._requests = ThreadPoolExecutor(_AT_ONCE, "rhei-store")
        self._room = threading.Semaphore(_AT_ONCE)
        self._under_way: dict[str, Future[None]] = {}

    def register(self, context: SessionContext) -> None:
        """Enable a session to read these files by their URLs."""
        store = _reading_store(self._scheme, self._bucket, self._access)
        context.register_object_store(f"{self._scheme}://", store, self._bucket)

    @property
    def storage_options(self) -> dict[str, str]:
        """Options to reach the store; not to be printed."""
        access = self._access
        places = {"endpoint": access.endpoint, "region": access.region}
        return {
            **access.secrets,
            **{name: value for name, value in places.items() if value is not None},
            "allow_http": str(access.allow_http).lower(),
            "timeout": f"{access.timeout_seconds}s",
            "retry_timeout": f"{access.retry_seconds}s",
        }

    def put(self, name: str, content: pa.Buffer, noted: Noted = bool) -> None:
        """Begin to put a file."""

        def fill(sink: Sink) -> None:
            sink.write(content)

        self.write(name, fill, noted)

    def write(self, name: str, fill: Fill, noted: Noted = bool) -> None:
        """Begin to put a file, once all of it is in the local cache."""
        with self._caching(name) as kept:
            with kept.open("wb", buffering=0) as opened:
                fill(OpenedFile(opened.fileno(), kept))
            size = kept.stat().st_size

        def put() -> None:
            try:
                put = self._ask(name, lambda: self._put_kept(name, kept))
            finally:
                self._room.release()
            if not _is_own(name):
                kept.unlink()
            noted(Mark(size, put.get("e_tag") or ""))

        noted(Mark(size, ""))
        self._room.acquire()  # or a copy would fill the disk with what waits for its turn
        self._under_way[name] = self._requests.submit(put)

    def _put_kept(self, name: str, kept: Path) -> "PutResult":
        try:
            return obstore.put(self._store, name, kept, chunk_size=_PART_BYTES)
        except FileNotFoundError:
            raise self._gone() from None

    def _gone(self) -> MirrorError:
        return MirrorError(
            f"mirror {self.root!r}: its bucket, or the local cache of this process, is gone",
            hint="make the bucket again where it is missing, keep others from the system's"
            " temporary directory, and start this process again",
        )

    def each(self, names: Iterable[str], do: Callable[[str], object]) -> None:
        """Do something with files side by side."""
        for _ in self._requests.map(do, names):
            continue

    def _await(self, name: str) -> None:
        """Wait until a file that is being put is there, or is not."""
        put = self._under_way.get(name)
        if put is not None:
            wait([put])

    def mark(self, name: str) -> Mark | None:
        """Return the object's ETag and size."""
        self._await(name)
        try:
            found = self._ask(name, lambda: obstore.head(self._store, name))
        except FileNotFoundError:
            return None
        return Mark(int(found["size"]), found.get("e_tag") or "")

    def set_aside(self, names: Iterable[str]) -> None:
        """Copy files within the store, and delete the originals."""
        for name in names:
            with suppress(MirrorDamagedError):
                self.link(aside(name), name)
            self.delete([name])

    def refuse_left(self) -> None:
        """Do nothing: a name in a store is all that there is of a file."""

    def remember(self, version: int) -> None:
        """Keep the number until this is closed: one more request for each commit is too many."""
        self._newest = version

    def remembered(self) -> int:
        """Return the number that was stored when the mirror was closed last."""
        try:
            found = self._ask(_NEWEST, lambda: obstore.get(self._store, _NEWEST).bytes())
            return int(bytes(found))
        except (FileNotFoundError, ValueError):
            return 0

    def link(self, name: str, standing: str) -> None:
        """Copy a file within the store."""
        self._await(standing)
        try:
            self._ask(name, lambda: obstore.copy(self._store, standing, name))
        except FileNotFoundError as error:
            raise missing(self.root, standing) from error

    def flush(self, folder: str = "") -> None:
        """Wait until all files that are being put, or those of a folder, are there."""
        # Another thread may be here for the same ones.
        lead = f"{folder}/" if folder else ""
        begun = {n: put for n, put in dict(self._under_way).items() if n.startswith(lead)}
        wait(begun.values())
        for name, put in begun.items():
            if self._under_way.get(name) is put:
                self._under_way.pop(name, None)
        for put in begun.values():
            put.result()

    def harden(self, folder: str) -> None:
        """Do nothing: files are durable once they were put."""

    def create(self, name: str, content: bytes) -> None:
        """Put a file if its name is free, after all that it may name: what is beside its folder."""
        self.flush(name.rpartition("/")[0].rpartition("/")[0])

        def put() -> bool:
            try:
                obstore.put(self._store, name, content, mode="create")
            except AlreadyExistsError:
                return False
            except FileNotFoundError:
                raise self._gone() from None
            return True

        if not self._ask(name, put):
            # A first try may have arrived though its answer did not.
            found = self._found(name)
            if found is None:  # S3 refuses so while another request for the name is under way
                raise MirrorUnreachableError(
                    f"{self._said}: the store did not answer (a conflict)",
                    hint="try again; committed data is not affected",
                )
            if found != content:
                raise committed_meanwhile(self.root)

    def get(self, name: str, *, fresh: bool = False) -> pa.Buffer:
        """Return a file's content, from the local cache if possible."""
        if not _is_own(name):
            self._await(name)
            return pa.py_buffer(self._read(name))
        kept = self._cache.path / name
        if fresh or not kept.exists():
            self._await(name)
            self._keep(name, pa.py_buffer(self._read(name)))
        with pa.memory_map(str(kept)) as mapped:
            return mapped.read_buffer()

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        found = self.mark(name)
        if found is None:
            raise missing(self.root, name)
        return found.size

    def names(self, folder: str) -> dict[str, int]:
        """Return the names of a folder's files, and their sizes in bytes."""
        return {entry["path"]: entry["size"] for entry in self._entries(folder)}

    def abandoned(self, folder: str) -> set[str]:
        """Return the files that can belong to no running commit."""
        found = self._entries(folder)
        if not found:
            return set()
        # By the store's own clock: that of this machine may be hours ahead of it.
        before = max(entry["last_modified"] for entry in found) - ORPHAN_AGE
        return {entry["path"] for entry in found if entry["last_modified"] < before}

    def delete(self, names: Iterable[str]) -> None:
        """Delete files by as few requests as the store takes; those that are gone are no error."""
        wanted = list(names)
        for name in wanted:
            self._await(name)  # or it would arrive afterwards
            self._under_way.pop(name, None)
        try:
            self._delete(wanted)
        except FileNotFoundError:  # one is gone, and ends what was asked of the others
            for name in wanted:
                with suppress(FileNotFoundError):
                    self._delete([name])
        finally:
            for name in wanted:
                (self._cache.path / name).unlink(missing_ok=True)

    def _delete(self, names: list[str]) -> None:
        if names:
            self._ask(names[0], lambda: obstore.delete(self._store, names))

    def pin(self, _version: int) -> AbstractContextManager[bool]:
        """Do nothing: no other process could see it."""
        return nullcontext(enter_result=False)

    def pinned(self) -> set[int]:
        """Return no version: readers are not visible here; the retained manifests protect them."""
        return set()

    def close(self) -> None:
        """Remove the local cache; store the number of the newest manifest."""
        self._requests.shutdown()
        self._cache.close()
        newest, self._newest = self._newest, None
        if newest is not None:
            with suppress(MirrorError, MirrorUnreachableError, FileNotFoundError):
                self._ask(_NEWEST, lambda: obstore.put(self._store, _NEWEST, b"%d" % newest))

    def _keep(self, name: str, content: pa.Buffer) -> None:
        with self._caching(name) as kept:
            # In one step: other threads may have mapped what is there, or be as far as this.
            arriving = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
            arriving.write_bytes(memoryview(content))
            arriving.replace(kept)

    @contextmanager
    def _caching(self, name: str) -> Iterator[Path]:
        """Give a file's place in the cache, to be written within the block."""
        kept = self._cache.path / name
        try:
            kept.parent.mkdir(exist_ok=True, parents=True)
            yield kept
        except OSError as error:
            raise MirrorError(
                f"mirror {self.root!r}: its local cache cannot be written: {error.strerror}",
                hint="make room in the system's temporary directory, or have TMPDIR name another,"
                " then try again; committed data is not affected",
            ) from error

    def _read(self, name: str) -> bytes:
        found = self._found(name)
        if found is None:
            raise missing(self.root, name)
        return found

    def _found(self, name: str) -> bytes | None:
        try:
            return self._ask(name, lambda: bytes(obstore.get(self._store, name).bytes()))
        except FileNotFoundError:
            return None

    def _entries(self, folder: str) -> list[Any]:
        return self._ask(
            folder, lambda: [entry for part in obstore.list(self._store, folder) for entry in part]
        )

    def _ask(self, name: str, request: Callable[[], _Result]) -> _Result:
        try:
            return request()
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            # A listing that fails has no type of its own.
            refused = refusal_of(error, self._said, repr(name.split("/", maxsplit=1)[0]))
            if refused is not None:
                raise refused from None
            if "status code: 404" in str(error):
                raise self._gone() from None
            raise silence_of(error, self._said) from None

    @property
    def _said(self) -> str:
        return f"mirror {self.root!r}"


def _is_own(name: str) -> bool:
    """Return whether a file is written once; deeper ones are for others to read, and to write."""
    return name.count("/") == 1


def _prefix(url: str) -> str:
    """Return where the files are in the bucket.

    Raises:
        MirrorError: Who opens the store and who reads the files would differ about it.
    """
    named = list(filter(None, urlsplit(url).path.split("/")))
    if _NO_NAME.search(url) or {".", ".."}.intersection(named):
        raise MirrorError(
            f"no mirror can be at {url!r}",
            hint="give s3://bucket/path or gs://bucket/path, without '?', '#', '.' or '..' as one"
            " of its names",
        )
    return "/".join(named)


def _store(scheme: str, bucket: str, prefix: str, access: StoreAccess) -> S3Store | GCSStore:
    shared: dict[str, Any] = {
        "prefix": prefix or None,
        "client_options": {
            "allow_http": access.allow_http,
            "timeout": timedelta(seconds=access.timeout_seconds),
        },
        "retry_config": {"retry_timeout": timedelta(seconds=access.retry_seconds)},
        **access.secrets,
    }
    if scheme == "gs":
        return GCSStore(bucket, **shared)
    places = {"endpoint": access.endpoint, "region": access.region}
    given = {name: value for name, value in places.items() if value is not None}
    return S3Store(bucket, **{**shared, **given})


def _reading_store(scheme: str, bucket: str, access: StoreAccess) -> object:
    secrets: dict[str, Any] = dict(access.secrets)
    if scheme == "gs":
        path = secrets.get("service_account_path")
        return GoogleCloud(bucket, service_account_path=path)
    return AmazonS3(
        bucket,
        region=access.region,
        endpoint=access.endpoint,
        allow_http=access.allow_http,
        **secrets,
    )
