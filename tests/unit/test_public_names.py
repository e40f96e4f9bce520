"""What users import, and that nobody outside the package needs to look deeper."""

import ast
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest

import rhei_pipeline
from rhei_pipeline import HTAP, errors
from rhei_pipeline.model import reports
from rhei_pipeline.settings import keeping, mirror, sections, source

ROOT = Path(__file__).parents[2]
#: Everything that is a user of the package.
OUTSIDE = ["assets", "resources", "sensors", "config", "examples", "definitions.py"]
FILES = [
    file
    for name in OUTSIDE
    for file in sorted((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name])
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_users_import_nothing_deeper_than_the_package(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        deeper = [name for name in names if name.startswith("rhei_pipeline.")]
        assert set(deeper) <= {"rhei_pipeline.dagster"}


@pytest.mark.parametrize(
    "module",
    [errors, reports, source, mirror, sections, keeping],
    ids=lambda module: module.__name__,
)
def test_every_error_report_and_section_is_public(module: ModuleType) -> None:
    made_here = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    assert made_here
    assert made_here - set(rhei_pipeline.__all__) == set()


def test_what_the_engine_returns_is_public() -> None:
    returned = set()
    for name, method in inspect.getmembers(HTAP, inspect.isfunction):
        if name.startswith("_"):
            continue
        found = inspect.get_annotations(method, eval_str=True).get("return")
        returned |= {part for part in (found, *typing.get_args(found)) if inspect.isclass(part)}
    ours = {part.__name__ for part in returned if part.__module__.startswith("rhei_pipeline.")}
    assert len(ours) > 10
    assert ours - set(rhei_pipeline.__all__) == set()
    assert all(getattr(rhei_pipeline, name) is not None for name in rhei_pipeline.__all__)


def test_no_two_public_classes_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "rhei_pipeline").rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert len(found) > 200
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_the_package_is_imported_at_no_more_than_a_fifth_of_its_engines() -> None:
    """Modules are counted, since time depends on the machine; what is used is imported then."""
    program = """
import json, sys
before = set(sys.modules)
import rhei_pipeline
ours = set(sys.modules) - before
names = set(dir(rhei_pipeline))
import duckdb, pyarrow
engines = set(sys.modules) - before - ours
print(json.dumps([len(ours), len(engines), sorted(ours), sorted(names)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    ours, engines, modules, names = json.loads(done.stdout)
    assert 5 * ours < engines
    assert not set(modules) & {"duckdb", "numpy", "pyarrow", "pydantic", "sqlglot", "sqlite3"}
    assert set(rhei_pipeline.__all__) <= set(names)
