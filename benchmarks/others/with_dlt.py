"""dlt, as a program that is measured: its argument is a directory.

It finds what was changed by the column `updated_at`, and does not see what was deleted.
"""

import sys
from pathlib import Path

import dlt
from dlt.sources.sql_database import sql_table

from benchmarks.others.answering import PROOF, answer


def main() -> None:
    """Answer for a mirror in DuckDB, read as Arrow and merged by the key."""
    dlt.config["runtime.log_level"] = "ERROR"
    dlt.config["runtime.dlthub_telemetry"] = False
    directory = Path(sys.argv[1])
    pipeline = dlt.pipeline(
        "orders",
        destination=dlt.destinations.duckdb(str(directory / "mirror")),
        dataset_name="mirrored",
        pipelines_dir=str(directory / "dlt"),
    )

    def sync() -> None:
        table = sql_table(
            credentials=f"sqlite:///{directory / 'app.db'}",
            table="orders",
            backend="pyarrow",
            chunk_size=50_000,
            primary_key="id",
            incremental=dlt.sources.incremental("updated_at"),
        )
        pipeline.run(table, write_disposition="merge")

    def prove() -> list[object]:
        with pipeline.sql_client() as client:
            return list(client.execute_sql(PROOF)[0])

    answer(sync, prove)


if __name__ == "__main__":
    main()
