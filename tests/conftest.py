"""Fixtures live in `fix_*.py`, one noun each."""

import gc
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.support.combinations import mark_left_out, mark_long

#: Where handlers are made that a command has log lines go through.
_OF_COMMANDS = "rhei_pipeline.cli.logs"

# The contract suites assert in the package.
pytest.register_assert_rewrite("rhei_pipeline.testing")

pytest_plugins = [
    "tests.support.fix_empty_files",
    "tests.support.fix_object_store",
    "tests.support.fix_users",
    "tests.support.fix_world",
    "tests.support.fix_postgres",
    "tests.support.fix_ranges",
    "tests.support.fix_cluster",  # imports those before
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run two workers a processor, and one more: half of the time a test only waits."""
    return 2 * (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Draw the combinations of parameters that the suite runs, and which its short form has."""
    mark_left_out(items)
    mark_long(items)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not among the modules and tests that stay to the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Give each test a log without the handler that a command set up in the test before it."""
    root, logger = logging.getLogger(), logging.getLogger("rhei_pipeline")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    # The test's own are pytest's, which takes them away itself.
    root.handlers[:] = [each for each in root.handlers if type(each).__module__ != _OF_COMMANDS]


settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
    # A failing history is short enough to read; shrinking one takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
settings.load_profile("suite")
