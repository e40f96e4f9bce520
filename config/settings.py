"""Which declaration this code location serves."""

import os
from pathlib import Path

from rhei_pipeline import Settings, SettingsError

DEFAULT = Path(__file__).parent / "pipeline.yaml"


def load() -> Settings:
    """Load `config/pipeline.yaml`, or the file that the variable RHEI_CONFIG names.

    Of a declaration with shards, RHEI_SHARD names the one that this code server has; without it,
    it has them all.
    """
    settings = Settings.load(os.environ.get("RHEI_CONFIG", DEFAULT))
    shard = os.environ.get("RHEI_SHARD")
    return settings.of_shard(whole_number(shard)) if shard else settings


def whole_number(written: str) -> int:
    """Return what RHEI_SHARD says.

    Raises:
        SettingsError: It is not a number.
    """
    try:
        return int(written)
    except ValueError:
        raise SettingsError(
            f"RHEI_SHARD is {written!r}", hint="give the number of a shard, such as RHEI_SHARD=2"
        ) from None
