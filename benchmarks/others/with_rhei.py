"""Rhei 2.0, as a program that is measured: its arguments are a directory and a storage."""

import sys
from pathlib import Path

import rhei
from anyio.from_thread import start_blocking_portal

from benchmarks.others.answering import COLUMNS, PROOF, answer

BATCH = 50_000


def main() -> None:
    """Answer for a mirror in memory, or in files of Vortex."""
    directory, storage = Path(sys.argv[1]), sys.argv[2]
    with start_blocking_portal() as portal:
        engine = portal.call(lambda: _engine(directory, storage))
        copied: list[int] = []

        def sync() -> None:
            if copied:
                portal.call(engine.sync_now)
                return
            portal.call(
                engine.register_table, rhei.TableSchema("orders", [*COLUMNS.items()], ["id"])
            )
            copied.append(portal.call(engine.initial_sync, "orders"))

        def prove() -> list[object]:
            (batch,) = portal.call(engine.query_olap, PROOF)
            (row,) = batch.to_pylist()
            return [*row.values()]

        answer(sync, prove)


async def _engine(directory: Path, storage: str) -> rhei.HtapEngine:
    return await rhei.open(
        oltp_path=str(directory / "app.db"),
        storage_mode=storage,
        storage_path=None if storage == "inmemory" else str(directory / storage),
        sync_batch_size=BATCH,
    )


if __name__ == "__main__":
    main()
