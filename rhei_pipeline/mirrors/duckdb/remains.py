"""What killed processes leave beside a file that is replaced as a whole."""

import re
import shutil
from pathlib import Path


def delete_remains(file: Path, suffix: str) -> None:
    """Delete files and folders named `FILE.<32 hexadecimal digits>SUFFIX`, whatever follows.

    A file whose name begins alike has other remains, which may be in use.
    """
    own = re.compile(rf"{re.escape(file.name)}\.[0-9a-f]{{32}}{re.escape(suffix)}.*")
    for left in file.parent.iterdir():
        if own.fullmatch(left.name):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
