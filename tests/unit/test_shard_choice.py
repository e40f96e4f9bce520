"""Does a message name the shard where its command needs one?"""

import pytest

from rhei_pipeline.cli.findings import show_findings
from rhei_pipeline.cli.shard_choice import choosing, for_shard
from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.reports import Finding, Severity

DROP, KEEP = "run 'rhei drop-table \"Odd\" --keep-as NAME', or", "'rhei sync'"


def test_a_command_for_one_shard_is_named_with_the_one_that_is_worked_on() -> None:
    hint = f"{DROP} {KEEP}"
    with pytest.raises(SchemaError) as refused, choosing(2):
        raise SchemaError("another mode", hint=hint)
    named = f"run 'rhei drop-table \"Odd\" --keep-as NAME --shard 2', or {KEEP}"
    assert refused.value.hint == named
    assert for_shard(hint) == hint
    with choosing(2):
        assert for_shard(hint) == for_shard(for_shard(hint)) == named


def test_a_finding_names_the_shard_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    found = Finding(Severity.WARNING, "no longer followed", "it left", DROP, "Odd")
    with choosing(2):
        show_findings([found])
    assert "--keep-as NAME --shard 2'" in " ".join(capsys.readouterr().out.split())


def test_an_error_without_a_way_out_stays_without_one() -> None:
    with pytest.raises(SchemaError) as refused, choosing(1):
        raise SchemaError("another mode")
    assert refused.value.hint is None
