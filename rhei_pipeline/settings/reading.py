"""A declaration as a file: what it holds, and the directory that its relative paths start from."""

from pathlib import Path
from typing import Any

import yaml

from rhei_pipeline.errors import SettingsError

#: How the parser's problems begin, and what to do about them. The rest may quote a secret.
_REASONS = (
    (r"found character '\t'", "indent with spaces, not with tabs"),
    ("found undefined alias", "write a value that starts with '*' in quotes"),
    ("could not determine a constructor", "write a value that starts with '!' or '=' in quotes"),
    ("but found another document", "keep one document, without '---' between its sections"),
    ("mapping values are not allowed", "write a value that holds ': ' in quotes"),
    ("found unknown escape", "write a value that holds a backslash in single quotes"),
)


class _Loader(yaml.SafeLoader):
    """Reads YAML as it is meant: of a field that stands twice, the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  (PyYAML's)
        """Return a mapping whose names are all different."""
        # A scalar or a sequence that is tagged as a mapping comes here, too.
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            lines = [key.start_mark.line + 1 for key, _ in pairs if key.value == twice]
            raise _TwiceError(twice, lines)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002  (PyYAML's)
        """Return what a node holds; one that is not of its type is named with its position."""
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise _InvalidError(node.tag.rpartition(":")[2], node.start_mark) from None


class _TwiceError(yaml.YAMLError):
    """A field stands twice in one mapping."""

    def __init__(self, name: str, lines: list[int]) -> None:
        super().__init__(name)
        self.name, self.lines = name, lines


class _InvalidError(yaml.YAMLError):
    """A value is not of the type that its tag or its form gives it."""

    def __init__(self, kind: str, mark: yaml.Mark) -> None:
        super().__init__(kind)
        self.kind, self.mark = kind, mark


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
        text = file.read_text("utf-8")
    except OSError as error:
        raise SettingsError(
            f"{file}: the declaration cannot be read: {error.strerror}",
            hint="give its path with --config, or create one with 'rhei init'",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"{file}: this is not UTF-8 text in line {line}", hint="save the file as UTF-8"
        ) from None
    try:
        values = yaml.load(text, _Loader)  # noqa: S506  (a safe one)
    except _TwiceError as error:
        lines = " and ".join(map(str, error.lines))
        raise SettingsError(
            f"{file}: {error.name!r} is given twice, in lines {lines}",
            hint="write what belongs to it in one place",
        ) from None
    except _InvalidError as error:
        raise SettingsError(
            f"{file}: the value {_place(error.mark)} is no valid {error.kind}",
            hint="correct it; where it is meant as text, write it in quotes",
        ) from None
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise _not_yaml(file, text, error) from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SettingsError(f"{file}: a declaration is a YAML mapping with a 'source:' section")
    return values


def _not_yaml(file: Path, text: str, error: Exception) -> SettingsError:
    """Return the error for a text that the parser does not take."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return SettingsError(
            f"{file}: a character in line {line} is none that YAML takes",
            hint="remove it, or write it in double quotes as an escape, such as \\x07",
        )
    if isinstance(error, RecursionError):
        return SettingsError(f"{file}: its values are nested too deeply to be read")
    problem = str(getattr(error, "problem", ""))
    hint = next((way for start, way in _REASONS if problem.startswith(start)), None)
    mark = getattr(error, "problem_mark", None)
    return SettingsError(f"{file}: this is not YAML{' ' + _place(mark) if mark else ''}", hint=hint)


def _place(mark: yaml.Mark) -> str:
    return f"in line {mark.line + 1}, column {mark.column + 1}"
