"""Which shard of a declaration a command works on at the moment."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rhei_pipeline.errors import RheiError, SettingsError

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings

#: Commands that do not look for the shard of a table, as a message names them.
_FOR_ONE = re.compile(r"'rhei (drop-table|unregister)((?: (?!--shard)[^' ]+)*)'")
_chosen: ContextVar[int | None] = ContextVar("shard", default=None)


class SeveralShardsError(SettingsError):
    """A command was given a declaration with shards, and none of them."""

    def __init__(self, settings: "Settings", count: int) -> None:
        super().__init__(
            f"this declares {count} pipelines, one for each shard",
            hint=f"name one for this command: '--shard 1', up to {count}",
        )
        self.settings, self.count = settings, count


def chosen_of(settings: "Settings") -> "Settings":
    """Return the declaration of the shard that was chosen; the same where there are none.

    Raises:
        SeveralShardsError: None was chosen, and there are some.
        SettingsError: There is no such shard.
    """
    shard = _chosen.get()
    if shard is not None:
        return settings.of_shard(shard)
    if settings.sharding is not None:
        raise SeveralShardsError(settings, settings.sharding.count)
    return settings


def for_shard(text: str) -> str:
    """Return a text whose commands for one shard name the shard that is worked on.

    Other commands find the shard of a table by themselves.
    """
    shard = _chosen.get()
    return text if shard is None else _FOR_ONE.sub(rf"'rhei \1\2 --shard {shard}'", text)


@contextmanager
def choosing(shard: int | None) -> Iterator[None]:
    """Work on this shard within the block."""
    token = _chosen.set(shard)
    try:
        yield
    except RheiError as error:  # which is printed when no shard is worked on any more
        error.hint = error.hint and for_shard(error.hint)
        raise
    finally:
        _chosen.reset(token)
