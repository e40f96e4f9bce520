"""The demo's airline: a real application's writes, from another process, mirrored exactly."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from threading import Event, Thread

import pytest
from dagster._cli import dev as dagster_dev

from config.settings import load
from examples.airline import dev, home
from examples.airline.database import build
from examples.airline.home import (
    DECLARATIONS,
    PROJECT,
    address,
    choose_declaration,
    refuse_other_data,
    remove_data,
)
from rhei_pipeline import HTAP


@pytest.mark.long
@pytest.mark.parametrize("source", DECLARATIONS)
def test_a_day_of_flights_is_mirrored_while_it_is_written(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE", source)
    monkeypatch.setenv("RHEI_CONFIG", str(PROJECT / "config" / DECLARATIONS[source]))
    monkeypatch.setenv("RHEI__MIRROR__PATH", str(tmp_path / "mirror.duckdb"))
    monkeypatch.setenv("RHEI__REGISTRY__PATH", str(tmp_path / "registry.json"))
    if source == "postgres":
        monkeypatch.setenv("RHEI__SOURCE__DSN", request.getfixturevalue("dsn"))
    else:
        monkeypatch.setenv("RHEI__SOURCE__PATH", str(tmp_path / "airline.db"))
    past = build(address(load()), date(2013, 1, 3))
    with HTAP(load()) as htap:
        assert htap.sync_now().tables["flights"].inserted == past
        command = [sys.executable, "-m", "examples.airline.writer", "--first", "2013-01-03"]
        database = ["--database", address(load()), "--days", "1"]
        with subprocess.Popen([*command, *database], cwd=PROJECT, stdout=subprocess.PIPE) as writer:
            while not _ends_within(0.25, writer):
                htap.sync_now()
        assert writer.returncode == 0
        assert htap.verify().equal
        ended = htap.query("select distinct _rhei_operation as o from flights", hint="olap")
    assert set(ended["o"].to_pylist()) == {"I", "U", "D"}


def _ends_within(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process ends by then; one that syncs all the time takes its processor."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def test_a_source_the_demo_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE", "oracle")
    with pytest.raises(SystemExit, match="SOURCE is 'oracle'; it can be sqlite or postgres"):
        choose_declaration()


def test_a_declaration_that_cannot_be_read_is_named_by_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline.yaml").write_text("- no mapping")
    monkeypatch.setenv("RHEI_CONFIG", str(tmp_path / "pipeline.yaml"))
    with pytest.raises(SystemExit, match=r"error .*a declaration is a YAML mapping"):
        home.declared()


@pytest.mark.parametrize("dsn", ["postgresql://127.0.0.1/shop", "host=/run user=me"])
def test_the_demo_never_drops_a_database_that_is_not_its_own(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHEI_CONFIG", str(PROJECT / "config" / DECLARATIONS["postgres"]))
    refuse_other_data(load())
    monkeypatch.setenv("RHEI__SOURCE__DSN", dsn)
    with pytest.raises(SystemExit, match=r"(?s)names another server.*does nothing") as ended:
        remove_data(load())
    assert dsn not in str(ended.value)


@pytest.mark.parametrize(
    "variable", ["RHEI__SOURCE__PATH", "RHEI__MIRROR__PATH", "RHEI__REGISTRY__PATH"]
)
def test_the_demo_never_deletes_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    precious = tmp_path / "airline.db"
    precious.write_text("precious")
    refuse_other_data(load())
    monkeypatch.setenv(variable, str(precious))
    with pytest.raises(SystemExit, match="does nothing"):
        remove_data(load())
    assert precious.read_text() == "precious"


def test_one_demo_at_a_time_has_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "DATA", tmp_path)
    with (
        home.claim_data("make dev"),
        pytest.raises(SystemExit, match=rf"in use by 'make dev', process {os.getpid()}\. End it"),
        home.claim_data("make demo"),
    ):
        pytest.fail("two demos had the same data")
    with home.claim_data("make demo"):
        pass


#: `make dev` with another program in Dagster's place, which says what the signal to end it does.
_DEV = """
import subprocess, sys
from contextlib import contextmanager
from examples.airline import dev

@contextmanager
def running(command):
    told = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    yield subprocess.Popen([sys.executable, "-c", told], text=True)

dev.running = running
dev.main()
"""


def test_dagster_can_be_ended_where_a_script_runs_make_dev_in_the_background() -> None:
    """A shell has what it runs so ignore Ctrl-C's signal, and whatever that begins does, too."""
    shell = f"trap '' INT; exec {sys.executable} -c \"$0\""
    found = subprocess.run(
        ["/bin/sh", "-c", shell, _DEV],
        cwd=PROJECT,
        env={**os.environ, "PORT": "9"},  # nobody answers there
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_a_home_that_is_given_is_used_and_never_removed(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "HOME", tmp_path / "own")
    monkeypatch.setenv("DAGSTER_HOME", given and str(tmp_path / given))
    monkeypatch.setenv("PYTHONWARNINGS", "")
    used = tmp_path / (given or "own")
    home.prepare_home()
    assert os.environ["DAGSTER_HOME"] == str(used)
    (used / "dagster.yaml").write_text("theirs")
    home.prepare_home()
    assert ((used / "dagster.yaml").read_text() == "theirs") is bool(given)


def test_the_demo_shows_what_dagster_prints_but_for_what_has_been_seen_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = Path(str(dagster_dev.__file__)).read_text()
    assert all(part in source for part in dev._KNOWN.removesuffix(" folder").split("dagster.yaml"))
    known = f"- WARNING - {dev._KNOWN} folder, but\n"
    dev._show(io.StringIO(f"Launching\n{known}Serving\n"), Event())
    assert capsys.readouterr().out == "Launching\nServing\n"


def test_the_address_of_the_ui_stays_below_whatever_dagster_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = "2026-12-01 06:48:08 +0000"
    plain = f"{at} - dagster - %s - a word\n"
    coloured = f"\x1b[32m{at}\x1b[0m - dagster.daemon - \x1b[34m%s\x1b[0m - a word\n"
    routine = [made % level for level in ("DEBUG", "INFO") for made in (plain, coloured)]
    wrong = [coloured % "ERROR", *["  of this\n"] * 20]
    dev._show(io.StringIO("".join([*routine, *wrong, *routine, *wrong[:1], *routine])), Event())
    address = f"\nThe Dagster UI: {dev.ADDRESS}\n\n"
    assert capsys.readouterr().out == "".join([*wrong, address, *wrong[:1]])


GROUP = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a process in the background has ignored
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(99)
"""
CHILD = "import signal as s, time; s.signal(s.SIGINT, {}); print('up', flush=True); time.sleep(99)"


@pytest.mark.parametrize(("child", "seconds"), [("s.SIG_DFL", 60.0), ("s.SIG_IGN", 0.5)])
def test_no_process_of_dagster_outlives_the_demo(
    child: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "_END_SECONDS", seconds)
    group = subprocess.Popen(
        [sys.executable, "-c", GROUP, CHILD.format(child)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    with group:
        assert group.stdout is not None
        assert group.stdout.readline() == "up\n"
        shown = Thread(target=group.stdout.read)
        shown.start()
        dev._end(group, shown)
        shown.join(60)
        assert not shown.is_alive(), "a process of the group has its end of the pipe"
