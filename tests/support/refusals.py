"""The way out that an error, a report or a finding names, met as it is printed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rhei_pipeline import Settings
from rhei_pipeline.cli.main import app
from rhei_pipeline.errors import RheiError


def filled_in(way_out: str, told: str | None) -> tuple[str, ...]:
    """Return what stands for each `{}` of a way out in what was told; fail if it is not there."""
    pattern = re.escape(way_out).replace(re.escape("{}"), "(.+?)")
    # What is filled in last goes on until the message ends.
    if way_out.endswith("{}"):
        pattern = pattern.removesuffix("?)") + ")"
    found = re.search(pattern, told or "", re.DOTALL)
    assert found is not None, f"{way_out!r} is not in {told!r}"
    return found.groups()


class Refusal:
    """An error that was met.

    Attributes:
        error: The error.
        told: What stands for each `{}` of its way out.
    """

    error: RheiError
    told: tuple[str, ...] = ()


@contextmanager
def refused(way_out: str, kind: type[RheiError] = RheiError) -> Iterator[Refusal]:
    """Expect an error whose message names this way out, with something for each `{}`."""
    met = Refusal()
    with pytest.raises(kind) as raised:
        yield met
    met.error = raised.value
    met.told = filled_in(way_out, str(raised.value))


def rhei(settings: Settings, directory: Path, *arguments: str) -> str:
    """Run a command as it is printed on a declaration; fail unless it succeeds."""
    config = directory / "pipeline.yaml"
    config.write_text(settings.model_dump_json())
    found = CliRunner().invoke(app, [*arguments, "--config", str(config)], prog_name="rhei")
    assert found.exit_code == 0, f"{found.output} {found.exception}"
    return found.output
