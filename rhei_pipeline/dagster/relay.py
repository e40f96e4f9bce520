"""How one sync session hands over to the next: what they tell each other, and when."""

import hashlib
import json
from pathlib import Path

import dagster as dg

from rhei_pipeline.settings.model import Settings

#: The tag of a session that is about to end while changes come.
SUCCESSOR = "rhei/successor"
#: The tag of a session with the digest of the declaration that the sensor had which opened it. By
#: its prefix Dagster's UI does not show it.
DECLARED = ".dagster/rhei_declared"
#: The tag of a session with the digest of that and of the file: what failed of it, fails again.
OPENED_WITH = ".dagster/rhei_opened_with"
#: The tag of a session that cannot open the source or the mirror, and waits for it.
WAITING = "rhei/waiting"
#: The tag of a session that ended with tables left out: how many changes stay pending for them.
LEFT_BEHIND = "rhei/left_behind"
#: The tag of a session with the tables that it copies: where it ended before, the next one goes on.
COPYING = "rhei/copying"
#: What it says once all are copied: a tag cannot be taken back, and an empty one says little.
NOTHING = "(nothing)"
#: After so long a session looks again whether tables that were left out can be followed.
RETRY_SECONDS = 300.0
#: About how long it takes from the last sync of a session until its slot in the pool is free.
FREEING_SECONDS = 0.5
#: A step that waits in a pool asks again after so many seconds, each time a little later, and at
#: last after these.
_FIRST_CLAIM_SECONDS, _LATER, _LAST_CLAIM_SECONDS = 1.0, 1.1, 15.0
#: The least time before its end at which a session asks for the next one.
LEAST_LEAD_SECONDS = 45.0
#: A start may take so many times as long as the last one did.
_MARGIN = 3.0


def digest(settings: Settings) -> str:
    """Return what tells a declaration from what it was before; no secret is in it."""
    declared = json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(declared.encode()).hexdigest()[:8]


def content(file: Path | None) -> bytes | None:
    """Return what a declaration's file says; None where there is none."""
    try:
        return None if file is None else file.read_bytes()
    except OSError:
        return None


def opened_with(settings: Settings) -> str:
    """Return what tells whether a session opened now has the declaration that another one had.

    Each run reads the file again, so it counts as well as what was loaded, and what the
    environment says. A password of the environment does not count: a tag can be read by everybody.
    """
    written = content(settings.file) or b""
    return hashlib.sha256(digest(settings).encode() + written).hexdigest()[:8]


def lead_seconds(record: dg.RunRecord | None, session_seconds: float) -> float:
    """Return how long before its end a session has to ask for the next.

    It goes by how long its own run took to start, and never takes more than half of a session.
    """
    started = record.start_time if record else None
    took = (
        0.0 if record is None or started is None else started - record.create_timestamp.timestamp()
    )
    return min(max(LEAST_LEAD_SECONDS, _MARGIN * took), session_seconds / 2)


def seconds_to_next_claim(waited: float) -> float:
    """Return when a step that has waited so long in a pool asks for a slot again.

    A session that ends just before has the next one begin without a pause. Dagster's intervals are
    those of `dagster._core.execution.plan.instance_concurrency_context`; were they others, the
    pause would be a second longer.
    """
    at, interval = 0.0, _FIRST_CLAIM_SECONDS
    while at < waited:
        at, interval = at + interval, min(interval * _LATER, _LAST_CLAIM_SECONDS)
    return at - waited
