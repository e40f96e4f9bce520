"""What commands log: every line in one form, whoever logs it."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg_pool
import pytest

from rhei_pipeline.cli.logs import log_as_text, log_to_stderr


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin as a process does, and leave logging as it was."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    loggers = [logging.getLogger(name) for name in ("rhei_pipeline", "psycopg")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        monkeypatch.setattr(logger, "handlers", [])
        logger.setLevel(logging.NOTSET)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_what_other_libraries_log_is_a_line_of_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(as_json=True)
    log_to_stderr(as_json=True)  # a second command of a process adds no second line
    logging.getLogger("rhei_pipeline.sync").info("applied")
    logging.getLogger("other.library").info("not of interest")
    logging.getLogger("other.library").warning("slow")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("rhei_pipeline.sync", "applied"),
        ("other.library", "slow"),
    ]


@pytest.mark.parametrize(
    "begin", [log_as_text, lambda: log_to_stderr(as_json=True)], ids=["command", "server"]
)
def test_attempts_of_the_driver_are_not_logged_beside_the_error_that_is_told(
    begin: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    begin()
    nowhere = "postgresql://127.0.0.1:1/shop?connect_timeout=1"
    with (
        suppress(psycopg_pool.PoolTimeout),
        psycopg_pool.ConnectionPool(nowhere, min_size=1, open=False) as pool,
    ):
        pool.wait(timeout=0.5)
    assert [record.getMessage() for record in caplog.records] == []
