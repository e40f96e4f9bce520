"""Which shard of a declaration a command works on at the moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rhei_pipeline.errors import SettingsError

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings

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


def shard_option() -> str:
    """Return the option that has another command work on the same shard; nothing without shards."""
    shard = _chosen.get()
    return "" if shard is None else f" --shard {shard}"


@contextmanager
def choosing(shard: int | None) -> Iterator[None]:
    """Work on this shard within the block."""
    token = _chosen.set(shard)
    try:
        yield
    finally:
        _chosen.reset(token)
