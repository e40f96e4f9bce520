"""Writes the pages under `docs/reference` from the code: `python docs/reference_pages.py`.

A test compares what is there with what this would write.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.core import TyperArgument

import rhei_pipeline
import rhei_pipeline.dagster
import rhei_pipeline.testing
from docs.reference_types import types_page
from rhei_pipeline import TableState
from rhei_pipeline.cli import options
from rhei_pipeline.cli.failures import told
from rhei_pipeline.cli.main import app
from rhei_pipeline.cli.output import json_text
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.reports import (
    CopyStatus,
    SyncReport,
    SyncStatus,
    TableReport,
    TableStatus,
)
from rhei_pipeline.monitoring.metrics import Monitoring

DOCS = Path(__file__).parent
_NOTE = "<!-- Written by docs/reference_pages.py from the code; change the code instead. -->\n\n"


def pages() -> dict[str, str]:
    """Return every page of the reference by its file's name."""
    made: dict[str, Callable[[], Iterator[str]]] = {
        "cli.md": _cli,
        "settings.md": _settings,
        "python.md": _python,
        "metrics.md": _metrics,
        "exit-codes.md": _exit_codes,
        "types.md": types_page,
    }
    return {name: _NOTE + "\n".join(make()) + "\n" for name, make in made.items()}


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(*heads: str) -> Iterator[str]:
    yield _row(*heads)
    yield "|" + "---|" * len(heads)


# The command line


def _cli() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    yield "# The command line\n"
    yield "What `rhei COMMAND --help` says, for every command. A command ends with one of these"
    yield "[exit codes](exit-codes.md).\n"
    for name, command in group.commands.items():
        yield from _command(name, command)


def _command(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401  (typer has no public class for it)
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    words = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
    yield f"## rhei {name}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"```text\n{' '.join(['rhei', name, *words, '[OPTIONS]'])}\n```\n"
    yield from _table("argument or option", "default", "what it is")
    for one in command.params:
        if not one.hidden:
            yield _row(_spelled(one), _default(one), one.help or "")
    yield f"\n`{command.epilog}`\n" if command.epilog else ""


def _spelled(one: Any) -> str:  # noqa: ANN401
    if isinstance(one, TyperArgument):
        return f"`{(one.name or '').upper()}`"
    spelled = ", ".join(f"`{name}`" for name in one.opts)
    kind = one.type_descriptor.annotation
    if one.is_flag:
        return spelled
    choices = inspect.isclass(kind) and issubclass(kind, Enum)
    words = " or ".join(str(choice.value) for choice in kind) if choices else kind.__name__.lower()
    return f"{spelled} {words}"


def _default(one: Any) -> str:  # noqa: ANN401
    found = one.default
    if found is None or found is False or callable(found):
        return "required" if one.required else ""
    return f"`{found.value if isinstance(found, Enum) else found}`"


def _exit_codes() -> Iterator[str]:
    yield "# Exit codes\n"
    yield "Every command ends with one of these.\n"
    yield from _table("code", "meaning")
    for code, meaning in sorted(options.EXIT_CODES.items()):
        yield _row(str(code), meaning)
    yield "\n## With `--json`\n"
    yield "A command that fails writes one line to standard output in place of its answer, and the"
    yield "sentence for people to standard error as always:\n"
    yield "```json"
    yield _failure()
    yield "```\n"
    yield "- `type`: the class of the [error](python.md), or `UsageError` with exit code 2"
    yield "- `table`: the table that it concerns, or null"
    yield "- `hint`: what to do next, or null"
    yield "- `transient`: whether the same command may succeed later, with nothing changed\n"
    yield "With exit code 3, and with 1 of a command that found something wrong, its answer is"
    yield "there: it names each table's error, or what was found. After Ctrl-C there is none."


def _failure() -> str:
    try:
        options.refuse_unknown("odrers", ["orders"])
    except RheiError as error:
        return json_text({"error": told(error)})
    raise AssertionError


# The declaration


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Every field of the declaration. Each can be given by the environment as well, which is"
    yield "above the file. A list or a section as a whole is given as JSON.\n"
    yield from _fields(rhei_pipeline.Settings, "", "The declaration")


def _fields(model: type[BaseModel], path: str, title: str) -> Iterator[str]:
    inner: list[tuple[str, str, type[BaseModel]]] = []
    yield f"## {title}\n"
    if path:
        yield f"{inspect.cleandoc(model.__doc__ or '')}\n"
    yield from _table("field", "type", "default", "environment", "what it is")
    for name, field in model.model_fields.items():
        whole = f"{path}.{name}" if path else name
        models = list(_models(field.annotation))
        inner += [(whole, name, one) for one in models]
        listed = "[]" in whole or path.endswith("[]")
        variable = "" if listed else f"`RHEI__{whole.upper().replace('.', '__')}`"
        yield _row(f"`{name}`", _type(field), _value(field), variable, field.description or "")
    yield ""
    for whole, _, one in inner:
        many = len([other for _, _, other in inner if other is one]) > 1
        is_list = "list" in str(dict(model.model_fields)[whole.rsplit(".", 1)[-1]].annotation)
        kinds = [other for where, _, other in inner if where == whole]
        label = whole + ("[]" if is_list else "")
        suffix = f", kind {_kind(one)}" if len(kinds) > 1 and not many else ""
        yield from _fields(one, label, f"`{label}`{suffix}")


def _kind(model: type[BaseModel]) -> str:
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401  (a type, or made of types)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _type(field: FieldInfo) -> str:
    models = [model.__name__ for model in _models(field.annotation)]
    if len(models) > 1:
        return " | ".join(models)
    text = re.sub(r"<enum '(\w+)'>|<class '([\w.]+)'>", r"\1\2", str(field.annotation))
    text = re.sub(r"typing\.|pathlib\._local\.|pathlib\.|pydantic\.types\.|datetime\.", "", text)
    text = re.sub(r"rhei_pipeline\.[\w.]*\.(\w+)", r"\1", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace(", ", " or "), text)
    text = re.sub(r"Annotated\[(.*?), .*\]$", r"\1", text)
    text = re.sub(r"Optional\[(.*)\]", r"\1 | null", text)
    text = re.sub(r"Union\[(.*)\]", lambda found: found[1].replace(", ", " | "), text)
    for long, short in {"SecretStr": "secret", "NoneType": "null", "None": "null"}.items():
        text = re.sub(rf"\b{long}\b", short, text)
    bounds = [str(one) for one in field.metadata if type(one).__name__ in {"Ge", "Gt", "Le", "Lt"}]
    signs = {"Ge(ge=": ">= ", "Gt(gt=": "> ", "Le(le=": "<= ", "Lt(lt=": "< "}
    for word, sign in signs.items():
        bounds = [bound.replace(word, sign).rstrip(")") for bound in bounds]
    return ", ".join([text.replace("'", ""), *bounds])


def _value(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    found = field.get_default(call_default_factory=True)
    if isinstance(found, BaseModel):
        return "its own"
    if isinstance(found, SecretStr) or found is None:
        return "null"
    return f"`{found.value if isinstance(found, Enum) else found}`"


# Python


def _python() -> Iterator[str]:
    yield "# Python\n"
    yield "Every public name. What is not here may move in any release.\n"
    for module in (rhei_pipeline, rhei_pipeline.dagster, rhei_pipeline.testing):
        yield f"## {module.__name__}\n"
        for name in module.__all__:
            yield from _public(module, name)


def _public(module: ModuleType, name: str) -> Iterator[str]:
    found = getattr(module, name)
    if inspect.isclass(found):
        yield f"### {name}\n"
        yield _text(found)
        yield from _methods(found)
    elif callable(found):
        yield f"### {name}\n"
        yield f"```text\n{name}{_signature(found)}\n```\n"
        yield _text(found)
    elif name != "__version__":
        yield f"### {name}\n"
        yield "A constant.\n"


def _methods(owner: type) -> Iterator[str]:
    if issubclass(owner, BaseModel | BaseException | Enum) or "Protocol" in str(owner.__bases__):
        return
    for name, method in vars(owner).items():
        if name.startswith("_"):
            continue
        if isinstance(method, property) and method.fget is not None:
            yield f"- **`{name}`**: {_first(method.fget)}"
        elif inspect.isfunction(method):
            yield f"- **`{name}{_signature(method)}`**: {_first(method)}"
    yield ""


def _first(found: object) -> str:
    return (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")


def _signature(function: Callable[..., Any]) -> str:
    """Return a signature with each type by its own name alone."""
    text = str(inspect.signature(function))
    text = re.sub(r"<(?:function|class|object)[^>]*>", "...", text)
    text = re.sub(r"(?:[a-z_]+\.)+(?=[A-Za-z])", "", text)
    return re.sub(r"\bself, |\bself\b", "", text).replace("'", "")


def _text(found: object) -> str:
    return (inspect.getdoc(found) or "").replace("Attributes:", "**Attributes**:").replace(
        "Args:", "**Arguments**:"
    ).replace("Returns:", "**Returns**:").replace("Raises:", "**Raises**:") + "\n"


# Metrics


class _Shown:
    """A pipeline with one of everything, so that each metric has a value and its labels."""

    def __init__(self) -> None:
        self.on_sync: Callable[[SyncReport], None] = lambda _report: None
        self.on_query: Callable[[str, float], None] = lambda _side, _seconds: None

    def sync_status(self, patience_seconds: float | None = None) -> SyncStatus:
        """Return the state of one table that is being copied."""
        assert patience_seconds is not None
        table = TableStatus("t", "temporal", TableState.READY, 1, 0, 0.0, 0)
        copying, held = {"t": CopyStatus(1, 2)}, {"log": 1}
        return SyncStatus(running=True, tables={"t": table}, copying=copying, held_bytes=held)

    def watch(
        self, on_sync: Callable[[SyncReport], None], on_query: Callable[[str, float], None]
    ) -> None:
        """Keep what is to be called."""
        self.on_sync, self.on_query = on_sync, on_query


def _metrics() -> Iterator[str]:
    yield "# Metrics\n"
    yield "What `/metrics` of `rhei serve` and of `start_sync(metrics_port=...)` shows."
    yield "See [serving](../serving.md#metrics-and-health) for where to look first.\n"
    yield from _table("metric", "kind", "labels", "what it is")
    shown = _Shown()
    monitoring = Monitoring(shown)
    shown.on_sync(SyncReport({"t": TableReport("t", events=1)}, 0.1))
    shown.on_query("olap", 0.1)
    for family in sorted(monitoring.registry.collect(), key=lambda one: one.name):
        suffix = "_total" if family.type == "counter" else ""
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        named = ", ".join(f"`{label}`" for label in sorted(labels))
        yield _row(f"`{family.name}{suffix}`", family.type, named, family.documentation)


def main() -> None:
    """Write them."""
    (DOCS / "reference").mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / "reference" / name).write_text(text)
    sys.stdout.write("wrote docs/reference\n")


if __name__ == "__main__":
    main()
