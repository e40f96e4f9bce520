"""Builds source package and wheel, installs it into an environment of its own, and tries it there.

`python -m tests.try_wheel`, or `make wheel`. Nothing of the repository is on the way.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).parents[1]

#: What needs an extra, and that names the command which installs it.
EXTRAS = """
import pathlib, rhei_pipeline as rhei

pathlib.Path("a.db").touch()
lite = {"source": {"path": "a.db"}, "mirror": {"path": "m.duckdb"}, "registry": {"path": "r.json"}}
files = {"kind": "datafusion", "path": "m"}
wanted = {
    "postgres": {**lite, "source": {"kind": "postgres", "dsn": "postgresql://nowhere/db"}},
    "datafusion": {**lite, "mirror": {**files, "storage": "parquet"}},
    "delta": {**lite, "mirror": {**files, "storage": "delta"}},
    "rocksdb": {**lite, "capture": {"buffer": {"path": "b"}}},
}
for extra, form in wanted.items():
    try:
        rhei.open(rhei.Settings(**form)).close()
    except rhei.MissingExtraError as error:
        assert f"pip install 'rhei-pipeline[{extra}]'" in str(error), error
    else:
        raise SystemExit(f"{extra}: nothing was missing")
try:
    import rhei_pipeline.server.flight
except rhei.MissingExtraError as error:
    assert "pip install 'rhei-pipeline[serve]'" in str(error), error
else:
    raise SystemExit("serve: nothing was missing")
"""


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command; end with what it said where it fails."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words[:6])} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build, install, and try."""
    with TemporaryDirectory(prefix="rhei-wheel-") as made:
        home = Path(made)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", home, cwd=PROJECT)
        (source,) = home.glob("*.tar.gz")
        # The wheel is built of the source package: what that lacks would be missing here.
        run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", home, source, cwd=home)
        (wheel,) = home.glob("*.whl")
        print(f"built {source.name} and, of that, {wheel.name}")  # noqa: T201
        venv.create(home / "fresh", with_pip=False)
        programs = home / "fresh" / "bin"
        pins = PROJECT / "requirements.lock"
        run(*pip, "--python", programs / "python", "install", "-q", "-c", pins, wheel, cwd=home)
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        where = home / "elsewhere"
        where.mkdir()
        for command in (
            [
                programs / "python",
                "-c",
                "import rhei_pipeline as rhei; print(rhei.__file__, rhei.HTAP)",
            ],
            [programs / "rhei", "--help"],
            [programs / "rhei", "demo"],
            [programs / "python", "-c", EXTRAS],
        ):
            said = run(*command, cwd=where, env=alone)
            assert str(PROJECT) not in said
        print("installed and tried: import, rhei demo, and what names a missing extra")  # noqa: T201


if __name__ == "__main__":
    main()
