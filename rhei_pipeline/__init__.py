"""Keep an analytical mirror of an operational database by change data capture.

Everything that users, Dagster projects and tests of others need is importable from here; what lies
deeper may move between any two versions.
"""

import ast
from importlib import import_module
from pkgutil import get_data


def _module_by_name() -> dict[str, str]:
    """Return the module of each public name, from the stub that type checkers read, too."""
    stub = ast.parse(get_data(__name__, "__init__.pyi") or b"")
    return {
        alias.name: node.module or ""
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


_MODULES = _module_by_name()

__all__ = sorted([*_MODULES, "__version__"])  # noqa: PLE0605  (the stub has the names)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: who imports the package waits for nothing."""
    if name == "__version__":
        # Few ask, and it takes as long to import as all the rest of this.
        found = import_module("importlib.metadata").version("rhei-pipeline")
    elif name in _MODULES:
        found = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
