"""Where the demo keeps its things: the declaration's paths, and a Dagster home in `.dagster`."""

import os
import shutil
from pathlib import Path

from rhei_pipeline import Settings

PROJECT = Path(__file__).resolve().parents[2]
HOME = PROJECT / ".dagster"


def prepare_home() -> None:
    """Make the Dagster home and let this process and its children use it."""
    HOME.mkdir(exist_ok=True)
    shutil.copy(PROJECT / "dagster.yaml", HOME / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(HOME)
    # Supersession notes of the orchestrator's own command line are not for its users.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def refuse_other_data(settings: Settings) -> None:
    """End the demo where the declaration is no longer its own: it would overwrite real data."""
    own = PROJECT / "data"
    paths = (settings.sqlite_path, settings.mirror.path, settings.registry.path)
    if settings.sqlite_path.name != "airline.db" or any(
        own not in path.resolve().parents for path in paths
    ):
        raise SystemExit(
            f"The declaration names {settings.sqlite_path}, which is not the demo's database"
            " data/airline.db.\nThe demo deletes and rebuilds its database and mirror, so it does"
            " nothing here.\nPut the demo's config/pipeline.yaml back, or use 'rhei' and"
            " 'dagster dev -w workspace.yaml' on your own."
        )


def remove_data(settings: Settings) -> None:
    """Remove what an earlier demo left: its database, its mirror, its registry, its runs."""
    refuse_other_data(settings)
    for path in (settings.sqlite_path, settings.mirror.path, settings.registry.path):
        for suffix in ("", "-wal", "-shm", ".wal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.rmtree(HOME, ignore_errors=True)
