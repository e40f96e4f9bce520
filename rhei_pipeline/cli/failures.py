"""What a program is told of a command that fails: one JSON object instead of the answer."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

from rhei_pipeline.cli.output import json_text
from rhei_pipeline.cli.shard_choice import for_shard
from rhei_pipeline.errors import RheiError, SettingsError, TransientError

#: How the system refuses a place.
_SHUT = {errno.EACCES, errno.EPERM, errno.EROFS}
#: What wrong usage raises; typer has no public name for it.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Command(TyperCommand):
    """A command that also says in JSON why it failed, where JSON was asked for."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:  # noqa: ANN401  (typer's)
        """Read the options; those that cannot be read are a failure, too."""
        with failures_told(as_json="--json" in args):
            try:
                return super().make_context(info_name, args, *more, **extra)
            except _UsageError as error:
                if any("--table" in option.opts for option in self.params):
                    _say_how_a_table_is_named(error)
                raise

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  (typer's)
        """Run the command."""
        asked = ctx.params
        with failures_told(as_json=asked.get("json_") or asked.get("format_") == "json"):
            return super().invoke(ctx)


def _say_how_a_table_is_named(error: Any) -> None:  # noqa: ANN401  (typer's)
    """Add to a refusal of an argument that tables are an option of this command."""
    if error.message.startswith("Got unexpected extra argument"):
        error.message += ": a table is named by '--table NAME'"


@contextmanager
def failures_told(*, as_json: bool) -> Iterator[None]:
    """Write why the block fails to standard output; people read it where the error is printed."""
    try:
        with _shut_places_named():
            yield
    except (RheiError, _UsageError) as error:
        if as_json:
            sys.stdout.write(json_text({"error": told(error)}) + "\n")
        raise


@contextmanager
def _shut_places_named() -> Iterator[None]:
    """Name the file or folder that the system does not let this user use, and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _SHUT or error.filename is None:
            raise
        raise SettingsError(
            f"{str(error.filename)!r} cannot be used: {error.strerror}",
            hint="give this user access to it and to its folder, or give another path",
        ) from error


def told(error: Exception) -> dict[str, object]:
    """Return what a program is told of an error."""
    if isinstance(error, RheiError):
        return {
            "type": type(error).__name__,
            "message": for_shard(error.message),
            "table": error.table,
            "hint": error.hint,
            "transient": isinstance(error, TransientError),
        }
    text = error.format_message()  # type: ignore[attr-defined]
    return {"type": "UsageError", "message": text, "table": None, "hint": None, "transient": False}
