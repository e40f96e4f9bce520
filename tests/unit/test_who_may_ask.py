"""Who is let in by a server's credentials, and where the bounds of an answer are."""

import base64

import pyarrow as pa
import pytest
from google.protobuf.any_pb2 import Any
from pyarrow import flight

from rhei_pipeline.errors import QueryLimitError, SourceError
from rhei_pipeline.model.query_limits import AnswerLimits, counted, whole
from rhei_pipeline.server.flight import access
from rhei_pipeline.server.flight.access import AuthMiddleware, Credentials
from rhei_pipeline.server.flight.call_headers import HINT
from rhei_pipeline.server.flight.messages import MalformedError, unpack
from rhei_pipeline.server.flight.running import translated
from rhei_pipeline.server.flight.server import ServerOptions

REFUSED = flight.FlightUnauthenticatedError


def call(gate: AuthMiddleware, header: str) -> str | None:
    """Make a call with a header; return the header that the answer sends back."""
    answer = gate.start_call(None, {"Authorization": [header]} if header else {})
    return None if answer is None else answer.sending_headers()["authorization"]


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer sesam",
        "Bearer sesam2 ",
        "Bearer Sesam2",
        "Bearer sesam22",
        "Bearer ann:word",
        "Basic sesam2",
        "sesam2",
        basic("sesam2"),
        basic("ann:"),
        basic(":word"),
        basic("word"),
        basic("bob:word"),
        basic("ann:wor"),
        basic("ann:word2"),
        basic("ann:word:word"),
        "Basic \u00e9",
    ],
)
def test_only_the_very_credentials_are_let_in(header: str) -> None:
    gate = AuthMiddleware(Credentials("sesam2", "ann", "word"))
    with pytest.raises(REFUSED):
        call(gate, header)
    assert call(gate, "bearer sesam2") is None
    assert call(gate, basic("ann:word")) is not None
    assert call(gate, basic("ann:word").rstrip("=")) is not None  # as some clients write it


def test_a_kind_of_credentials_that_is_not_declared_lets_nobody_in() -> None:
    with_token, with_password = Credentials("sesam2"), Credentials(None, "ann", "word")
    for header in (basic(":"), basic(":None"), basic("ann:word"), basic(":sesam2")):
        with pytest.raises(REFUSED):
            call(AuthMiddleware(with_token), header)
    for header in ("Bearer ", "Bearer None", "Bearer word"):
        with pytest.raises(REFUSED):
            call(AuthMiddleware(with_password), header)


def test_no_secret_is_in_what_shows_credentials() -> None:
    known = Credentials("sesam", "ann", "word")
    assert "sesam" not in repr(known)
    assert "word" not in repr(known).replace("password", "")
    assert "sesam" not in repr(ServerOptions(known, tls=(b"certificate", b"sesam")))


@pytest.mark.parametrize("value", ["olap", "OLAP"])
def test_a_hint_counts_in_whatever_case_it_is_written(value: str) -> None:
    chosen = HINT.start_call(None, {"Rhei-Hint": [value]})
    assert chosen is not None
    assert chosen.value == "olap"


def test_a_message_that_is_none_of_flight_sql_is_told_from_one_that_is_not_supported() -> None:
    with pytest.raises(MalformedError, match="no message"):
        unpack(Any(type_url="type.googleapis.com/CommandGetTables").SerializeToString())
    unknown = "type.googleapis.com/arrow.flight.protocol.sql.CommandOfTomorrow"
    with pytest.raises(flight.FlightServerError, match="not supported"):
        unpack(Any(type_url=unknown).SerializeToString())


def test_a_client_is_told_nothing_of_the_servers_insides(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(flight.FlightServerError, match="in its log") as told, translated():
        raise ValueError("the secret 4711")
    assert "4711" not in str(told.value)
    assert "4711" in caplog.text
    with pytest.raises(flight.FlightServerError, match="cannot be read") as told, translated():
        raise SourceError("file '/srv/secret/app.db' cannot be read")
    assert "/srv/secret" not in str(told.value)


def test_a_token_for_a_password_is_its_own_and_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "_MAX_SESSIONS", 2)
    gate = AuthMiddleware(Credentials(None, "ann", "word"))
    given = [call(gate, basic("ann:word")) or "" for _ in range(3)]
    assert len(set(given)) == 3
    with pytest.raises(REFUSED):
        call(gate, given[0])
    assert [call(gate, header) for header in given[1:]] == [None, None]
    with pytest.raises(REFUSED):  # they are another server's
        call(AuthMiddleware(Credentials(None, "ann", "word")), given[2])


def test_a_token_for_a_password_ends_when_it_lies_idle_and_the_client_is_told_to_log_in() -> None:
    now = [0]
    gate = AuthMiddleware(Credentials("sesam", "ann", "word"), 60, clock=lambda: now[0])
    used, idle = (call(gate, basic("ann:word")) or "" for _ in range(2))
    for now[0] in (59, 118):  # each use begins its time anew
        assert call(gate, used) is None
    with pytest.raises(REFUSED, match="log in again"):
        call(gate, idle)
    now[0] += 60
    for _ in range(2):
        with pytest.raises(REFUSED, match="log in again"):
            call(gate, used)
    assert call(gate, "Bearer sesam") is None
    assert call(gate, call(gate, basic("ann:word")) or "") is None


def test_tokens_in_use_outlive_any_number_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MAX_SESSIONS", 2)
    gate = AuthMiddleware(Credentials(None, "ann", "word"))
    used = call(gate, basic("ann:word")) or ""
    for _ in range(3):
        call(gate, basic("ann:word"))
        assert call(gate, used) is None


def test_an_answer_may_be_exactly_as_large_as_its_limits() -> None:
    batch = pa.record_batch({"n": pa.array([1, 2, 3], pa.int64())})
    twice, size = [batch, batch], 2 * batch.nbytes
    for limits in (AnswerLimits(size, 6), AnswerLimits(None, 6), AnswerLimits(size, None)):
        assert whole(batch.schema, twice, limits).num_rows == 6
        assert len(list(counted(twice, limits))) == 2
    with pytest.raises(QueryLimitError, match="bytes"):
        whole(batch.schema, twice, AnswerLimits(size - 1, 6))
    with pytest.raises(QueryLimitError, match="rows"):
        whole(batch.schema, twice, AnswerLimits(size, 5))
    with pytest.raises(QueryLimitError, match="rows"):
        list(counted(twice, AnswerLimits(size, 5)))


def test_what_is_too_many_rows_is_given_to_nobody() -> None:
    batch = pa.record_batch({"n": pa.array([1, 2, 3], pa.int64())})
    batches = counted([batch, batch], AnswerLimits(rows=5))
    assert next(batches).num_rows == 3
    with pytest.raises(QueryLimitError):
        next(batches)
