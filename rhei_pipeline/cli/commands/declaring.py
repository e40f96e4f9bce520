"""Commands for a first declaration: write it, check it, see one at work."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rhei_pipeline.cli.findings import show_findings
from rhei_pipeline.cli.opening import settings_of
from rhei_pipeline.cli.options import DEFAULT_CONFIG, Config, Json, example, exit_if
from rhei_pipeline.cli.output import out, print_error, print_note, say, show, show_rows
from rhei_pipeline.cli.written_file import usable
from rhei_pipeline.model.report import values

commands = typer.Typer()


@commands.command(epilog=example("init app.db --output config/pipeline.yaml"))
def init(
    source: Annotated[
        str,
        typer.Argument(
            help="A SQLite file, or a postgresql:// URL. One with a password is better read from"
            " RHEI__SOURCE__DSN: lists of processes show arguments.",
            envvar="RHEI__SOURCE__DSN",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "--config", help="Where to write.")
    ] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a first declaration from a live source, each choice explained."""
    from rhei_pipeline.cli.init import starter

    if "://" not in source and not os.path.isfile(source):  # noqa: PTH113  (Path's raises)
        raise typer.BadParameter(f"{source!r} is no file: give that of a SQLite database, or a URL")
    with usable(output):
        if output.exists() and not force:
            raise typer.BadParameter(f"{str(output)!r} exists: --force overwrites it")
        if "://" not in source and output.exists() and output.samefile(source):
            raise typer.BadParameter(f"{str(output)!r} is the source: give '--output' another file")
    written = starter(source)
    with usable(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(written.text)
    for name, why in written.left_out.items():
        print_note(f"left out {name}: {why}")
    if written.secret is not None:
        _keep_secret(output, written.secret)
    out.print(f"wrote {output}: read it, then run", markup=False)
    say([f"  rhei check{'' if output == DEFAULT_CONFIG else f' --config {output}'}"])


def _keep_secret(output: Path, line: str) -> None:
    """Write a variable with a secret into the project's `.env`, for its owner alone."""
    from rhei_pipeline.settings.reading import project_directory

    file = project_directory(output) / ".env"
    name = line.partition("=")[0]
    if file.exists():
        print_note(f"{file} exists: set {name} there, to the connection string that you gave")
        return
    file.touch(mode=0o600)
    file.write_text(f"{line}\n")
    print_note(f"{file} holds the connection string: keep it out of version control")


@commands.command(epilog=example("check"))
def check(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Check the declaration and the source: what is wrong, why it matters, how to fix it."""
    from rhei_pipeline.holder.file_checks import validate_files
    from rhei_pipeline.model.reports import Severity
    from rhei_pipeline.wiring.adoption import validate_owner
    from rhei_pipeline.wiring.compute import validate_compute
    from rhei_pipeline.wiring.foreign_tables import validate_foreign
    from rhei_pipeline.wiring.kept_texts import validate_texts
    from rhei_pipeline.wiring.places import validate_places
    from rhei_pipeline.wiring.source import validate

    settings = settings_of(config)
    places = validate_places(settings)
    is_shut = any(found.severity is Severity.ERROR for found in places)
    findings = [
        *validate(settings),
        *places,
        *([] if is_shut else [*validate_owner(settings), *validate_files(settings)]),
        *validate_foreign(settings),
        *validate_compute(settings),
        *validate_texts(settings),
    ]
    broken = any(found.severity is Severity.ERROR for found in findings)
    if json_:
        rows = [values(found) for found in findings]
        show({"ready": not broken, "findings": rows}, [], (), as_json=True)
    else:
        show_findings(findings)
    if not broken and not json_:
        out.print("ready to sync")
    exit_if(broken)


@commands.command(epilog=example("info --json"))
def info(config: Config = DEFAULT_CONFIG, json_: Json = False) -> None:
    """Show what is installed and declared, and how much room it takes; opens no database."""
    from rhei_pipeline.cli.information import information, lines

    found = information(settings_of(config))
    if not json_:
        say(lines(found))
        show(found, found["tables"], ("table", "mode"), as_json=False)
    show(found, found["storage"], ("part", "bytes", "path"), as_json=json_)
    if found["problem"] is not None:
        print_error(found["problem"])
    exit_if(found["problem"] is not None)


@commands.command(epilog=example("demo --directory shop"))
def demo(
    directory: Annotated[Path, typer.Option(help="Where to make it.")] = Path("rhei-demo"),
    json_: Json = False,
) -> None:
    """Create a small shop database, mirror it, change it and compare. The files stay."""
    from rhei_pipeline.cli.demo import BY_COUNTRY, declaration, tour

    with usable(directory):
        directory.mkdir(parents=True, exist_ok=True)
        next(directory.iterdir(), None)
    chapters = []
    for chapter in tour(directory):
        chapters.append({"title": chapter.title, "seconds": chapter.seconds})
        if json_:
            continue
        out.print(
            f"[green]done[/] {chapter.title} ({chapter.seconds:.1f} s)",
            soft_wrap=not out.is_terminal,
        )
        if chapter.answer is not None:
            show_rows(chapter.answer, as_json=False)
    if json_:
        show({"chapters": chapters}, [], (), as_json=True)
        return
    config = declaration(directory)
    out.print(f"\nNow write to {directory / 'shop.db'} as you like, and then:", markup=False)
    for command in ("sync", f'query "{BY_COUNTRY}"', "status", "check", "query", "serve"):
        out.print(f"  rhei {command} --config {config}", markup=False, soft_wrap=True)
