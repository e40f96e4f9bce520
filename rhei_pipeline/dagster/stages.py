"""The stages that a table passes, which are also its assets."""

from enum import StrEnum


class Stage(StrEnum):
    """The stages that a table passes, in this order."""

    SOURCE = "oltp"
    CHANGES = "cdc"
    INITIAL_SYNC = "initial_sync"
    MIRROR = "mirror"
    SNAPSHOT = "snapshot"

    @property
    def group(self) -> str:
        """The group of assets that it is shown in.

        Few, in a row: the UI opens with groups folded, and shows in wide boxes what they hold.
        """
        return {Stage.CHANGES: Stage.SOURCE, Stage.INITIAL_SYNC: Stage.MIRROR}.get(self, self).value
