"""Options that every command has, behind its name as well as before it."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated

import typer

from rhei_pipeline.cli.options import Quiet, Verbose, be_quiet, be_verbose
from rhei_pipeline.cli.shards import run_on_shards

OneShard = Annotated[
    int | None,
    typer.Option(
        "--shard",
        envvar="RHEI_SHARD",
        help="Of a declaration with shards: this one; without it, those that the command concerns.",
    ),
]


def talking(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that can be asked behind its name, too, to say more or less.

    One that reads a declaration takes a shard of it.
    """
    own = signature(command)
    more: dict[str, tuple[object, object]] = {"verbose": (Verbose, False), "quiet": (Quiet, False)}
    if "config" in own.parameters:
        more["shard"] = (OneShard, None)

    @wraps(command)
    def run(*, verbose: bool, quiet: bool, shard: int | None = None, **options: object) -> None:
        if verbose:
            be_verbose()
        if quiet:
            be_quiet()
        run_on_shards(command, options, shard)

    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in more.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    kinds = {name: kind for name, (kind, _) in more.items()}
    run.__annotations__ = {**command.__annotations__, **kinds}
    return run
