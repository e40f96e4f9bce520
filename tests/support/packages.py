"""Modules as they are before anything has imported them, and packages that are not installed."""

import sys

import pytest


def unload(patch: pytest.MonkeyPatch, package: str) -> None:
    """Have a package's modules imported anew, until the patch is undone."""
    found = [known for known in sys.modules if f"{known}.".startswith(f"{package}.")]
    for name in sorted(found, reverse=True):  # a package after its modules
        parent, _, child = name.rpartition(".")
        # An import sets it, too, and would leave the new module there.
        patch.setattr(sys.modules[parent], child, sys.modules[name], raising=False)
        patch.delitem(sys.modules, name)
