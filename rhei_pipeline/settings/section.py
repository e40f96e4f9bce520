"""What all sections of a declaration have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: it refuses fields that it does not know, and is never changed.

    Numbers are finite: nothing can wait, or count, without an end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
