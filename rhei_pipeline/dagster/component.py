"""A pipeline as a component of a `dg` project, in YAML."""

from pathlib import Path

import dagster as dg

from rhei_pipeline.dagster.definitions import build_definitions
from rhei_pipeline.dagster.translator import RheiTranslator
from rhei_pipeline.settings.model import Settings


class RheiComponent(dg.Component, dg.Resolvable, dg.Model):
    """Keeps an analytical mirror of an operational database by change data capture.

    In a `defs.yaml`:

        type: rhei_pipeline.dagster.RheiComponent
        attributes:
          declaration: pipeline.yaml

    Attributes:
        declaration: The declaration's file, beside `defs.yaml` or absolute.
    """

    declaration: str = "pipeline.yaml"

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Describe this kind of component."""
        return dg.ComponentTypeSpec(
            description="An analytical mirror of an operational database, with its history, kept "
            "by change data capture."
        )

    def translator(self) -> RheiTranslator:
        """Return what makes the assets' specs; a subclass may return its own."""
        return RheiTranslator()

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Derive the definitions from the declaration."""
        file = Path(context.path) / self.declaration
        return build_definitions(Settings.load(file), self.translator())
