"""What is known of a mirror once a commit was interrupted, though it was done by then."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.datafusion.mirror import DataFusionMirror
from rhei_pipeline.mirrors.duckdb.large_rows import LargeRows
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror
from rhei_pipeline.model.changes import DeadLetter, Position
from rhei_pipeline.model.progress import Watermark
from rhei_pipeline.model.schema import Table
from rhei_pipeline.testing.mirror_work import HISTORY, NOW, TABLE, apply, copy, rows, versions

OTHER = Table(replace(TABLE.schema, name="o"))
LETTER = DeadLetter("t", '{"k": "a"}', "v", "why", NOW)
commit = ManifestStore.commit


@contextmanager
def committing(_rows: LargeRows) -> Iterator[None]:
    """Be interrupted by Ctrl-C as soon as DuckDB has committed."""
    yield
    raise KeyboardInterrupt


def committed(manifests: ManifestStore, *manifest: object) -> None:
    """Be interrupted as soon as a manifest is there."""
    commit(manifests, *manifest)  # type: ignore[arg-type]
    raise KeyboardInterrupt


WAYS: dict[
    str, tuple[Callable[[Path], DuckDBMirror | DataFusionMirror], tuple[type, str, object]]
] = {
    "duckdb": (DuckDBMirror, (LargeRows, "committing", committing)),
    "files": (lambda path: DataFusionMirror("ipc", path), (ManifestStore, "commit", committed)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_an_interrupted_commit_has_done_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    make, place = WAYS[way]
    with closing(make(tmp_path / "m")) as mirror:
        for table in (TABLE, OTHER, HISTORY):
            copy(mirror, table, rows(a=0.0))
        with mirror.transaction() as transaction:
            assert transaction.quarantined(TABLE) == set()
        assert (len(mirror.tables()), mirror.ledger().watermarks) == (3, {})
        with (
            monkeypatch.context() as patched,
            pytest.raises(KeyboardInterrupt),
            mirror.transaction() as transaction,
        ):
            patched.setattr(*place)
            transaction.record(Watermark("t", Position(5, "p"), NOW))
            transaction.quarantine([LETTER])
            apply(transaction, HISTORY, ("a", 1.0, 10))
            transaction.drop_table(OTHER, "kept")
        assert set(mirror.tables()) == {'"t"', '"h"', '"kept"'}
        with pytest.raises(MirrorError, match="would go back"), mirror.transaction() as transaction:
            assert transaction.quarantined(TABLE) == {LETTER.name}
            transaction.record(Watermark("t", Position(4, "p"), NOW))
        with mirror.transaction() as transaction:
            assert apply(transaction, HISTORY, ("b", 2.0, 5), ("a", 3.0, 11)).total == 2
        assert [version[1] for version in versions(mirror)] == [0.0, 1.0, 3.0, 2.0]
        feed = mirror.feed(HISTORY)
        # Who has read what was committed has not seen the older version that came later.
        assert feed is not None
        assert feed.late == 1
