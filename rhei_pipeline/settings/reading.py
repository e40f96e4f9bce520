"""A declaration as a file: what it holds, and the directory that its relative paths start from."""

from pathlib import Path
from typing import Any

import yaml

from rhei_pipeline.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """Reads YAML as it is meant: of a field that stands twice, the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  (PyYAML's)
        """Return a mapping whose names are all different."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            lines = [key.start_mark.line + 1 for key, _ in node.value if key.value == twice]
            raise _TwiceError(twice, lines)
        return super().construct_mapping(node, deep)


class _TwiceError(yaml.YAMLError):
    """A field stands twice in one mapping."""

    def __init__(self, name: str, lines: list[int]) -> None:
        super().__init__(name)
        self.name, self.lines = name, lines


def project_directory(file: Path) -> Path:
    """Return the directory that a declaration's relative paths are taken from."""
    directory = file.resolve().parent
    return directory.parent if directory.name == "config" else directory


def read_declaration(file: Path) -> dict[str, Any]:
    """Return what a file declares, not validated yet.

    Raises:
        SettingsError: It cannot be read, or is no mapping in YAML.
    """
    try:
        values = yaml.load(file.read_text("utf-8"), _Loader)  # noqa: S506  (a safe one)
    except OSError as error:
        raise SettingsError(
            f"{file}: the declaration cannot be read: {error.strerror}",
            hint="give its path with --config, or create one with 'rhei init'",
        ) from error
    except _TwiceError as error:
        lines = " and ".join(map(str, error.lines))
        raise SettingsError(
            f"{file}: {error.name!r} is given twice, in lines {lines}",
            hint="write what belongs to it in one place",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{file}: this is not YAML{place}") from error
    except ValueError:
        raise SettingsError(
            f"{file}: a date or a number in it is none, such as 2024-13-01",
            hint="correct it; where it is meant as text, write it in quotes",
        ) from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{file}: a declaration is a YAML mapping with a 'source:' section")
    return values
