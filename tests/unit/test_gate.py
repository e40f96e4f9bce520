"""The gate before a mirror that another process may need for a moment."""

import threading

from rhei_pipeline.holder.gate import Gate


def passes(gate: Gate, seconds: float) -> bool:
    """Return whether another thread gets in, within so long, and out again."""
    passed = threading.Event()

    def pass_by() -> None:
        with gate.passing():
            passed.set()

    threading.Thread(target=pass_by, daemon=True).start()
    return passed.wait(seconds)


def test_a_gate_that_could_not_be_shut_is_open() -> None:
    gate = Gate()
    leave = gate.enter()
    assert not gate.shut(0.0)
    assert passes(gate, 10)
    leave()
    leave()  # safe to repeat
    assert gate.shut(10)
    assert not passes(gate, 0.01)
    gate.let_in()
    assert passes(gate, 10)
