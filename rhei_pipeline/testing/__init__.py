"""What an adapter of your own is tested with: a stub source and a stub mirror, faults, an oracle.

The contract suites are in `rhei_pipeline.testing.contracts`, which alone needs pytest.
"""

from rhei_pipeline.testing.faults import Crash, CrashAt, FaultIn
from rhei_pipeline.testing.oracle import Dated, Expected, State, arrow_rows, by_key, exact
from rhei_pipeline.testing.stub_mirror import StubMirror
from rhei_pipeline.testing.stub_source import StubSnapshot, StubSource, StubWrites
from rhei_pipeline.testing.stub_transaction import StubTransaction

__all__ = [
    "Crash",
    "CrashAt",
    "Dated",
    "Expected",
    "FaultIn",
    "State",
    "StubMirror",
    "StubSnapshot",
    "StubSource",
    "StubTransaction",
    "StubWrites",
    "arrow_rows",
    "by_key",
    "exact",
]
