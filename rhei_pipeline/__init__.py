"""Keep an analytical mirror of an operational database by change data capture."""

from rhei_pipeline.errors import RheiError
from rhei_pipeline.htap import HTAP, open  # noqa: A004  (rhei.open is the public name)
from rhei_pipeline.settings.model import Settings

__all__ = ["HTAP", "RheiError", "Settings", "open"]
