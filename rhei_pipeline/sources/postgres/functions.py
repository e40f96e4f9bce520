"""What the functions, operators and casts that a read names do: by the server's own catalogue.

PostgreSQL labels each function: IMMUTABLE and STABLE ones promise to change nothing, VOLATILE ones
promise nothing, and are refused but for those known here, or to the settings, as harmless. Some
that are labelled STABLE have effects all the same, or run SQL held in strings.
Source: postgresql.org/docs/current/xfunc-volatility.html; pg_proc.dat of versions 13 to 18.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhei_pipeline.errors import QueryError
from rhei_pipeline.sources.postgres.connection import set_config
from rhei_pipeline.sources.postgres.function_lookups import FIRST_OF_USERS, KINDS, TOUCHED, TYPES
from rhei_pipeline.sources.postgres.read_only import Name, Statement
from rhei_pipeline.sources.postgres.read_sessions import ReadSession
from rhei_pipeline.sql.read_only import READING

#: How long what was looked up is believed: a function may be made, or labelled otherwise, any time.
_BELIEVED_SECONDS = 10.0
_REMEMBERED = 2048
#: VOLATILE functions of the server that change nothing: clocks, chance, sizes, states to look at.
_HARMLESS = re.compile(
    r"random|random_normal|array_sample|array_shuffle|gen_random_uuid|uuidv[47]"
    r"|clock_timestamp|timeofday|pg_sleep(_for|_until)?|current_query|currval|lastval"
    r"|pg_(database|indexes|relation|table|tablespace|total_relation)_size"
    r"|pg_(current|last)_wal_\w+|pg_last_(committed_xact|xact_replay_timestamp)"
    r"|pg_is_in_recovery|pg_is_wal_replay_paused|pg_get_wal_replay_pause_state|pg_jit_available"
    r"|pg_xact_(status|commit_timestamp)|txid_status|pg_(safe_snapshot_)?blocking_pids"
    r"|pg_notification_queue_usage|pg_sequence_last_value|pg_get_sequence_data|pg_lock_status"
    r"|pg_prepared_xact|pg_show_replication_origin_status|pg_partition_(ancestors|tree)"
    r"|pg_stat_(get_\w+|have_stats)|pg_get_wait_events"
    r"|pg_(database_)?collation_actual_version|pg_control_\w+|system|bernoulli"
)
#: STABLE and IMMUTABLE ones that assign a transaction's number, load libraries, run what a string
#: names, or read whole schemas.
_EFFECTIVE = re.compile(
    r"txid_current|pg_current_xact_id|fmgr_\w+_validator|pg_input_\w+"
    r"|(query|table|cursor|schema|database)_to_xml\w*"
)
#: Of extensions: those that are harmless though VOLATILE, and those that run SQL held in strings.
_HARMLESS_OF_EXTENSIONS = {
    "uuid-ossp": re.compile(r"uuid_\w+"),
    "pgcrypto": re.compile(r"gen_\w+|pgp_\w+"),
    "tsm_system_rows": re.compile(r"system_rows"),
    "tsm_system_time": re.compile(r"system_time"),
}
_EFFECTIVE_OF_EXTENSIONS = {
    "tablefunc": re.compile(r"crosstab\w*|connectby"),
    "xml2": re.compile(r"xpath_table"),
    "dblink": re.compile(r".*"),
}


_CAST_CONTEXTS = "aei"  # in an assignment, explicit, implicit


@dataclass(frozen=True, slots=True, eq=False)
class _Function:
    """A function that a name may reach: by itself, or as an operator's or a cast's."""

    #: What is written to reach it, and where that is found.
    name: str
    schema: str
    #: Its own.
    function: str
    namespace: str
    oid: int
    arguments: int
    defaults: int
    is_variadic: bool
    volatility: str
    extension: str | None
    #: The types that it takes and gives.
    types: list[int]
    takes_raw_text: bool
    takes_row: bool

    @property
    def is_of_users(self) -> bool:
        return self.oid >= FIRST_OF_USERS

    @property
    def is_written_by_users(self) -> bool:
        """Whether it is a function, and not a type, that no extension brought."""
        return self.is_of_users and self.extension is None and self.types != [self.oid]

    @property
    def types_of_users(self) -> set[int]:
        return {oid for oid in self.types if oid >= FIRST_OF_USERS}

    def takes(self, arguments: int | None) -> bool:
        if arguments is None:
            return True
        least = self.arguments - self.defaults - self.is_variadic
        return least <= arguments and (self.is_variadic or arguments <= self.arguments)

    def is_harmless(self, allowed: Collection[Name]) -> bool:
        if (self.namespace, self.function) in allowed:
            return True
        name, extension = self.function, self.extension or ""
        harmless, effective = _HARMLESS, _EFFECTIVE
        if self.is_of_users:
            harmless = _HARMLESS_OF_EXTENSIONS.get(extension, _NOTHING)
            effective = _EFFECTIVE_OF_EXTENSIONS.get(extension, _NOTHING)
        # Of raw text it makes a value of any type, and so runs the checks of any domain.
        if effective.fullmatch(name) or (self.takes_raw_text and not self.is_of_users):
            return False
        return self.volatility != "v" or harmless.fullmatch(name) is not None


_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """That a statement only reads.

    Attributes:
        runs_users_code: Whether a function of a user's may run in it, and leave something behind
            in its session.
    """

    runs_users_code: bool


class Functions:
    """What the names of a server's functions stand for; looked up again after some seconds.

    Args:
        allowed: Functions that may be called whatever their label, as `name` (in `public`) or
            `schema.name`.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._only_allowed = False
        self._allowed = frozenset(
            (schema or "public", name)
            for schema, _, name in (text.rpartition(".") for text in allowed)
        )
        self._path: tuple[str, ...] = ()
        self._known: dict[tuple[str, str], tuple[float, list[Any]]] = {}
        self._passed: OrderedDict[str, tuple[float, Verdict]] = OrderedDict()

    def allow_no_others(self, *, asked: bool) -> None:
        """Let no other function that users wrote be called: each can read what a query may not."""
        if asked != self._only_allowed:
            self._only_allowed = asked
            self._passed.clear()

    def judge(self, statement: Statement, session: ReadSession) -> Verdict:
        """Judge a statement by what the server's catalogue says of the names in it.

        Args:
            statement: What is to be read.
            session: Where; in no transaction.

        Raises:
            QueryError: It calls what may change something; names the function and the way out.
        """
        known = self._passed.get(statement.text)
        now = time.monotonic()
        if known is not None and not _is_old(known[0], now):
            return known[1]
        self._learn(_names(statement), session, now)
        named = list(self._named(statement))
        self._refuse_unnamed(found for candidates, _ in named for found in candidates)
        touched: set[int] | None = None
        for candidates, fits in named:
            for found in [each for each in candidates if not each.is_harmless(self._allowed)]:
                # One that takes types of users is not meant where no value of theirs is there,
                # and another one fits.
                if found.types_of_users and (fits is None or len(candidates) > fits):
                    if touched is None:
                        touched = self._touched(statement, named, session)
                    if not found.types_of_users & touched:
                        continue
                raise _refused(found)
        verdict = Verdict(
            any(found.is_of_users for candidates, _ in named for found in candidates)
            or any(self._candidates("relation", name) for name in statement.relations)
        )
        self._passed[statement.text] = (now, verdict)
        while len(self._passed) > _REMEMBERED:
            self._passed.popitem(last=False)
        return verdict

    def _refuse_unnamed(self, found: Iterable[_Function]) -> None:
        for each in found if self._only_allowed else ():
            full = (each.namespace, each.function)
            if each.is_written_by_users and full not in self._allowed:
                raise QueryError(
                    f"function {'.'.join(full)!r} may read a masked or filtered table",
                    hint="name it in 'queries.functions' if it reads no such table",
                )

    def _named(self, statement: Statement) -> Iterator[tuple[list[_Function], int | None]]:
        """Yield the functions that each name may reach, and how many of them may do harm.

        None where something that is no function fits, too, such as a column.
        """
        for call in statement.calls:
            found = [
                each
                for each in self._candidates("function", call.name)
                if each.takes(call.arguments)
            ]
            yield found, sum(not each.is_harmless(self._allowed) for each in found)
        for name in statement.operators:
            found = self._candidates("operator", name)
            yield found, sum(not each.is_harmless(self._allowed) for each in found)
        for field in statement.fields:
            found = self._candidates("function", ("", field))
            yield [each for each in found if each.takes_row], None
        for name in statement.types:
            yield self._candidates("type", name), None
        # A cast that is implicit is named by nobody; any other one only with its type.
        yield self._candidates("cast", ("", "i")), None

    def _candidates(self, kind: str, name: Name) -> list[Any]:
        """Return what a name may stand for, on the path or in the schema that it names."""
        schema, plain = name
        if schema.startswith("pg_temp"):
            if kind != "relation":
                raise QueryError(
                    f"{plain!r} in {schema!r} is of one session, and no query has one of its own",
                    hint="create it in another schema",
                )
            return []
        _, every = self._known[kind, plain]
        if not schema:
            return [each for each in every if _schema(each) in self._path or kind == "cast"]
        return [each for each in every if _schema(each) == schema]

    def _learn(self, names: Mapping[str, set[str]], session: ReadSession, now: float) -> None:
        """Look up the names of which nothing is known, or nothing new enough."""
        if len(self._known) > _REMEMBERED * 8:
            old = [key for key, (since, _) in list(self._known.items()) if _is_old(since, now)]
            for key in old:
                self._known.pop(key, None)
        wanted = {kind: sorted(self._unknown(kind, asked, now)) for kind, asked in names.items()}
        if not any(wanted.values()):
            return
        cursors = {}
        with session.pipeline():
            session.begin_reading(None)
            path = session.execute("select pg_catalog.current_schemas(true)::text[]")
            # What is asked here is not to be found on a path of somebody else.
            session.execute(set_config({"search_path": session.settings["search_path"]}))
            for kind, asked in wanted.items():
                if asked:
                    lookups = KINDS[kind]
                    cursors[kind] = [session.execute(sql, (asked,)) for sql in lookups]
            session.execute("rollback")
        self._path = tuple((path.fetchone() or ([],))[0])
        for kind, found in cursors.items():
            self._keep(kind, wanted[kind], [row for each in found for row in each], now)
        self._learn_casts(wanted["type"], session, now)

    def _learn_casts(self, types: Sequence[str], session: ReadSession, now: float) -> None:
        """Look up what is called where there is a cast to a type, if users made any of it."""
        of_users = [name for name in types if self._known["type", name][1]]
        if any(self._known["cast", context][1] for context in _CAST_CONTEXTS):
            of_users = list(types)
        if of_users:
            found = session.execute(TYPES.encode(), (of_users,)).fetchall()
            kept = [row for name in of_users for row in self._known["type", name][1]]
            self._keep("type", of_users, [*kept, *found], now)

    def _unknown(self, kind: str, asked: set[str], now: float) -> Iterator[str]:
        for name in asked:
            known = self._known.get((kind, name))
            if known is None or _is_old(known[0], now):
                yield name

    def _keep(self, kind: str, names: Sequence[str], rows: Sequence[Any], now: float) -> None:
        found: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            is_plain = kind != "relation" and not isinstance(row, _Function)
            known = _Function(*row) if is_plain else row
            found[_written(known)].append(known)
        for name, every in found.items():
            self._known[kind, name] = (now, every)

    def _touched(
        self,
        statement: Statement,
        named: Iterable[tuple[list[_Function], int | None]],
        session: ReadSession,
    ) -> set[int]:
        """Return the types of users that values in a statement may have."""
        relations = [name for _, name in statement.relations]
        types = [name.removeprefix("_") for _, name in statement.types]
        called = {call.name[1] for call in statement.calls}
        given = {
            oid
            for candidates, _ in named
            for each in candidates
            if each.name in called and each.is_harmless(self._allowed)
            for oid in each.types_of_users
        }
        found = session.execute(TOUCHED, (relations, relations, types, list(given)))
        return {oid for (oid,) in found.fetchall()}


def _is_old(since: float, now: float) -> bool:
    return now - since >= _BELIEVED_SECONDS


def _schema(found: Any) -> str:  # noqa: ANN401  (a function, or a relation's row)
    return found.schema if isinstance(found, _Function) else str(found[1])


def _written(found: Any) -> str:  # noqa: ANN401
    return found.name if isinstance(found, _Function) else str(found[0])


def _names(statement: Statement) -> dict[str, set[str]]:
    """Return the names of a statement by what they may be names of."""
    return {
        "function": {call.name[1] for call in statement.calls} | set(statement.fields),
        "operator": {name for _, name in statement.operators},
        "type": {name for _, name in statement.types},
        "cast": set(_CAST_CONTEXTS),
        "relation": {name for _, name in statement.relations},
    }


def _refused(found: _Function) -> QueryError:
    if not found.is_of_users:
        return QueryError(
            f"function {found.function!r} reaches beyond the tables, or changes something",
            hint=READING,
        )
    full = f"{found.namespace}.{found.function}"
    by = "" if found.name == found.function else f" (called by {found.name!r})"
    return QueryError(
        f"function {full!r}{by} is VOLATILE, so that it may change something",
        hint="have its owner declare it STABLE if it only reads, or name it in 'queries.functions'",
    )
