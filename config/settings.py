"""Which declaration this code location serves."""

import os
from pathlib import Path

from rhei_pipeline import Settings

DEFAULT = Path(__file__).parent / "pipeline.yaml"


def load() -> Settings:
    """Load `config/pipeline.yaml`, or the file that the variable RHEI_CONFIG names."""
    return Settings.load(os.environ.get("RHEI_CONFIG", DEFAULT))
