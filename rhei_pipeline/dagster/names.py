"""What a pipeline's assets, jobs, sensors, resources and pool are called.

Everything carries the pipeline's name, so that several pipelines live side by side in one code
location, in one instance, and beside the definitions of others.
"""

import hashlib
import re
from dataclasses import dataclass

from rhei_pipeline.settings.model import Settings


def plain_name(name: str) -> str:
    """Write a name with letters, digits and `_` only, as Dagster's names demand.

    Another name gets the characters of its own that fit, and a few digits to stay unique.
    """
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return plain if plain == name else f"{plain}_{_digest(name)}"


def more_digits(name: str) -> str:
    """Return digits that tell a name from any other, where those of `plain_name` do not."""
    return _digest(name, 16)


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one pipeline's definitions.

    Attributes:
        pipeline: The pipeline's name as Dagster's names are written; empty where it has none.
        pool: Whoever writes the mirror's file holds this pool's one slot.
    """

    pipeline: str
    pool: str

    @classmethod
    def of(cls, settings: Settings) -> "Names":
        """Derive the names from the declaration.

        A pipeline without a name still has a pool of its own: one mirror must not wait for another.
        """
        if settings.name is not None:
            pipeline = plain_name(settings.name)
            return cls(pipeline, f"{pipeline}_olap_writer")
        return cls("", f"olap_writer_{_digest(settings.mirror.uri)}")

    def named(self, name: str) -> str:
        """Return a job's, sensor's, resource's or group's name in this pipeline."""
        return f"{self.pipeline}_{name}" if self.pipeline else name

    def key(self, *parts: str) -> list[str]:
        """Return the parts of an asset's key in this pipeline."""
        return [self.pipeline, *parts] if self.pipeline else list(parts)

    @property
    def oltp(self) -> str:
        """The key of the resource for the operational database."""
        return self.named("oltp")

    @property
    def cdc(self) -> str:
        """The key of the resource for the source of changes."""
        return self.named("cdc")

    @property
    def olap(self) -> str:
        """The key of the resource for the mirror."""
        return self.named("olap")


def _digest(text: str, digits: int = 4) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
