"""What is wrong with a declaration, by the names that its fields and variables have."""

import os
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError

from rhei_pipeline.errors import SettingsError
from rhei_pipeline.model.schema import nearest
from rhei_pipeline.settings.source import METHODS

ENVIRONMENT_PREFIX = "RHEI__"
#: Kinds of problems of a field that has parts.
_OF_PARTS = {"list_type", "dict_type", "model_type", "model_attributes_type"}

#: Kinds of problems of a field that has fields of its own.
_OF_FIELDS = {"model_type", "model_attributes_type"}
#: Fields of which there are several kinds.
_OF_KINDS = {("source",), ("shards",)}


def is_misformed(error: ValidationError) -> bool:
    """Return whether a variable of the environment holds text in a list's or mapping's place."""
    given = {variable.upper() for variable in os.environ}
    places = (
        _declared_path(tuple(problem["loc"]))
        for problem in error.errors()
        if isinstance(problem["input"], str) and problem["type"] in _OF_PARTS
    )
    return any(
        "__".join(map(str, (ENVIRONMENT_PREFIX[:-2], *path))).upper() in given for path in places
    )


def refuse_unknown_variables(sections: Sequence[str]) -> None:
    """Refuse variables of the environment that name no section.

    Raises:
        SettingsError: There is one; names the nearest section.
    """
    for variable in own_variables():
        section = variable[len(ENVIRONMENT_PREFIX) :].split("__")[0].lower()
        if section not in sections:
            raise SettingsError(
                f"environment variable {variable}: unknown section {section!r}",
                hint=nearest(section, sections),
            )


def own_variables() -> list[str]:
    """Return the names of the environment's variables that are about a declaration."""
    return [name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)]


def describe(error: ValidationError, root: type[BaseModel], *section: str) -> str:
    """Name every problem by its field's path; never by the value, which may be a secret."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    named = (
        ((*section, *_declared_path(tuple(each["loc"]))), each["type"], each["msg"])
        for each in problems
    )
    return "; ".join(_problem(root, *each) for each in named)


def _declared_path(path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Leave out which kind of source, or of shards, was tried: a declaration has no such level."""
    return path[:1] + path[2:] if path[:1] in _OF_KINDS else path


def _problem(root: type[BaseModel], path: tuple[str | int, ...], kind: str, message: str) -> str:
    dotted = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    variable = _variable(path)
    named = f"field {dotted!r}" if variable is None else f"environment variable {variable}"
    if kind == "extra_forbidden":
        return f"unknown {named}; {_nearest_beside(root, path, variable)}"
    if kind == "union_tag_invalid":
        return f"field '{dotted}.kind': use {' or '.join(map(repr, METHODS))}"
    if kind == "missing":
        return f"field {dotted!r} is missing"
    if kind in _OF_FIELDS:
        first = next(iter(_fields_beside(root, (*path, ""))), "...")
        return f"{named}: it has fields of its own, such as {{{first}: ...}}"
    message = message.removeprefix("Value error, ")
    if not path:  # it is of no single field, and says which ones
        return message
    return f"{named}: {message[:1].lower()}{message[1:]}"


def _variable(path: tuple[str | int, ...]) -> str | None:
    """Return the environment variable that gives this field; None where it is given otherwise."""
    wanted = "__".join(map(str, (ENVIRONMENT_PREFIX[:-2], *path))).upper()
    return next((variable for variable in os.environ if variable.upper() == wanted), None)


def _nearest_beside(
    root: type[BaseModel], path: tuple[str | int, ...], variable: str | None
) -> str:
    known = _fields_beside(root, path)
    if variable is None:
        return nearest(str(path[-1]), known)
    section, _, _ = variable.rpartition("__")
    return nearest(variable, [f"{section}__{name.upper()}" for name in known])


def _fields_beside(root: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the names of the fields at this position of the path, of each kind that fits."""
    models: list[type[BaseModel]] = [root]
    for part in (part for part in path[:-1] if isinstance(part, str)):
        inner = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [model for field in inner for model in _models_in(field.annotation)] or models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
