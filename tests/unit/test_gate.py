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


def test_who_waits_before_a_shut_gate_comes_in_once_it_is_open() -> None:
    gate, passed = Gate(), threading.Event()
    assert gate.shut(10)

    def pass_by() -> None:
        with gate.passing():
            passed.set()

    waiting = threading.Thread(target=pass_by, daemon=True)
    waiting.start()
    assert not passed.wait(0.05)
    gate.let_in()
    waiting.join(10)
    assert passed.is_set()


def test_who_is_inside_comes_in_again_though_the_gate_is_being_shut() -> None:
    gate, shut = Gate(), threading.Event()

    def shut_it() -> None:
        if gate.shut(10):
            shut.set()

    with gate.passing():
        shutting = threading.Thread(target=shut_it, daemon=True)
        shutting.start()
        while not gate._is_shut:
            pass
        with gate.passing():
            assert not shut.is_set()
    assert shut.wait(10)
