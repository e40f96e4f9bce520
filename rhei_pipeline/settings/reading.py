"""A declaration as a file: what it holds, and the directory that its relative paths start from."""

from pathlib import Path
from typing import Any

import yaml

from rhei_pipeline.errors import SettingsError


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
        values = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{file}: the declaration cannot be read: {error.strerror}",
            hint="give its path with --config, or create one with 'rhei init'",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SettingsError(f"{file}: this is not YAML{place}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{file}: a declaration is a YAML mapping with a 'source:' section")
    return values
