"""A mirror is opened with what it needs, or says what to install."""

import sys
from pathlib import Path

import pytest

from rhei_pipeline import Settings
from rhei_pipeline.errors import MissingExtraError
from rhei_pipeline.mirrors import open_mirror


@pytest.mark.parametrize(
    ("module", "package", "path"),
    [
        ("rhei_pipeline.olap.datafusion", "datafusion", "m"),
        ("rhei_pipeline.olap.object_files", "obstore", "s3://bucket/m"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_the_command(
    module: str, package: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [known for known in sys.modules if known.startswith("rhei_pipeline.olap.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    place = path if "://" in path else tmp_path / path
    settings = Settings(source={"path": "a"}, mirror={"kind": "datafusion", "path": place})
    with pytest.raises(MissingExtraError, match=f"{package}.*rhei-pipeline\\[datafusion\\]"):
        open_mirror(settings)
