"""Each file and folder that a declaration names is there for one purpose."""

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

_MEMORY = Path(":memory:")


def refuse_shared_places(settings: BaseModel) -> None:
    """Refuse a declaration that names one place for two purposes: one would overwrite the other.

    Raises:
        ValueError: Says what to declare.
    """
    known = dict[str, str]()
    for field, path in _places(settings):
        other = known.setdefault(os.path.normpath(path), field)
        if other != field:
            raise ValueError(f"{field}: this is {other}, too: give each a path of its own")


def _places(section: BaseModel, within: str = "") -> Iterator[tuple[str, Path]]:
    """Yield each field that names a place of this machine, or of the mirror's store."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _places(value, f"{within}{name}.")
        elif isinstance(value, Path) and value != _MEMORY:
            yield f"{within}{name}", value
