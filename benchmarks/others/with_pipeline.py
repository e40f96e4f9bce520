"""Rhei Pipeline, as a program that is measured: its arguments are a directory and a mirror."""

import sys
from pathlib import Path

import rhei_pipeline as rhei
from benchmarks.others.answering import PROOF, answer


def main() -> None:
    """Answer for a mirror in DuckDB, or in DataFusion's memory or files."""
    directory, storage = Path(sys.argv[1]), sys.argv[2]
    mirror = directory / "mirror"
    settings = rhei.Settings(
        source={"path": directory / "app.db"},
        mirror={"path": mirror}
        if storage == "duckdb"
        else {"kind": "datafusion", "storage": storage}
        | ({} if storage == "memory" else {"path": mirror}),
        registry={"path": directory / "registry.json"},
        tables=[{"name": "orders"}],
    )
    with rhei.open(settings) as htap:

        def prove() -> list[object]:
            (row,) = htap.query(PROOF, hint="olap").to_pylist()
            return [*row.values()]

        answer(htap.sync_now, prove)


if __name__ == "__main__":
    main()
