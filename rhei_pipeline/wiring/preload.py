"""Imports what a declaration needs, before it is opened: a process that waits has it then."""

from contextlib import suppress
from importlib import import_module

from rhei_pipeline.settings.model import Settings


def preload(settings: Settings) -> None:
    """Import the adapters of a declaration; opens nothing."""
    modules = []
    if settings.source.kind == "postgres":
        modules.append("rhei_pipeline.wiring.postgres")
    if settings.mirror.kind == "datafusion":
        modules.append("rhei_pipeline.mirrors.datafusion.mirror")
    for module in modules:
        with suppress(ImportError):  # whoever opens it says which extra is missing
            import_module(module)
