"""Searches all files that a pipeline writes for texts; see `search_program`."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rhei_pipeline.errors import MirrorError
from rhei_pipeline.holder import search_program
from rhei_pipeline.settings.model import Settings


def written_paths(settings: Settings) -> list[Path]:
    """Return the files and folders on this machine that a pipeline writes rows to."""
    mirror, capture = settings.mirror, settings.capture
    places = [settings.registry.path, settings.schedule.snapshot_files]
    if not mirror.in_memory and "://" not in str(mirror.path):
        places.append(mirror.path)
    if mirror.published:
        places.append(mirror.published.path)
    if capture.buffer:
        places.append(capture.buffer.path)
    return [Path(place) for place in places if place is not None]


def search(paths: Iterable[Path], texts: Sequence[bytes]) -> Mapping[str, Sequence[int]]:
    """Return of each file that holds one of the texts how often it holds each.

    Raises:
        MirrorError: A file cannot be read.
    """
    if not texts:
        return {}
    asked = {"paths": [str(path) for path in paths], "texts": [text.hex() for text in texts]}
    command = [sys.executable, "-I", "-S", search_program.__file__]
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise MirrorError(
            f"the files cannot be searched: {said[-1] if said else done.returncode}",
            hint="give this user the right to read them, and forget the keys again",
        )
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found
