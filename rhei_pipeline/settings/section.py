"""What all sections of a declaration have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: it refuses fields that it does not know, and is never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
