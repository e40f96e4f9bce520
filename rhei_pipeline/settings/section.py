"""What all sections of a declaration have in common."""

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from rhei_pipeline.model.bounds import LARGEST, LONGEST_SECONDS


class Section(BaseModel):
    """A section: it refuses fields that it does not know, and is never changed.

    Numbers are finite, and such as can be counted: nothing can wait, or count, without an end. A
    yes or no is no number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _counted(
        cls, given: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        value = read(given)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        is_time = str(info.field_name).endswith("_seconds")
        most = LONGEST_SECONDS if is_time else LARGEST
        wrong = (
            "a number is needed, not yes or no"
            if isinstance(given, bool)
            else f"input should be less than or equal to {most}"
        )
        if isinstance(given, bool) or value > most:
            raise ValueError(wrong)
        return value
