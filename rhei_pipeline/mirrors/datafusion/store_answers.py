"""What an object store, or the way to it, made of a request that failed.

No text of a store is quoted: it may quote the request, and with it what is signed. Only words that
are known here are.
"""

import re

from rhei_pipeline.errors import MirrorError, MirrorUnreachableError

_STATUS = re.compile(r"status code: (\d{3})")
#: S3's and Google's own word for what was wrong.
_CODE = re.compile(r"<Code>(\w+)</Code>")
#: What a client of HTTP had come to when there was no answer.
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
#: The client says this itself, as S3 sends on to another region without naming a place there.
_ELSEWHERE = "Received redirect without LOCATION"

_CREDENTIALS = "use credentials that may read, write, list and delete there"
_AGAIN = "try again; committed data is not affected"
_REACHED = (
    "try again, once the store that 'mirror.object_store.endpoint' names can be reached from here; "
    "committed data is not affected"
)
_PLACE = (
    "'mirror.object_store.endpoint' and 'region' have to be those of the bucket; correct them, "
    "then try again"
)

#: Refusals that S3 gives with a status of which there are many kinds.
_REFUSALS = {
    "ExpiredToken": "give this process new credentials: those that it has are no longer valid",
    "TokenRefreshRequired": "give this process new credentials: those that it has are no longer"
    " valid",
    "InvalidToken": _CREDENTIALS,
    "AuthorizationHeaderMalformed": _PLACE,
    "IllegalLocationConstraintException": _PLACE,
    "PermanentRedirect": _PLACE,
    "RequestTimeTooSkewed": "set this machine's clock: it differs from the store's by minutes",
}
_FORBIDDEN = {"401", "403"}
_BAD_REQUEST = "400"
_MISSING = "404"
#: Said whatever the status.
_NOT_ALLOWED = ("lacked the necessary privileges", "lacked valid authentication")
#: S3 calls it a bad request, too, where it did not get all of one in time.
_LATE = "RequestTimeout"


def refusal_of(error: BaseException, message: str, what: str) -> MirrorError | None:
    """Return the error of a store that will refuse the request again; None if it may serve it.

    Args:
        error: What a client raised.
        message: What begins the new error's text.
        what: What was asked for.
    """
    text = str(error)
    code, status = _first(_CODE, text), _first(_STATUS, text)
    if code in _REFUSALS:
        return MirrorError(
            f"{message}: the store refused {what} ({code})", hint=_REFUSALS.get(code, _CREDENTIALS)
        )
    if _ELSEWHERE in text:
        return MirrorError(
            f"{message}: the store refused {what} (the bucket is elsewhere)", hint=_PLACE
        )
    if status == _BAD_REQUEST and code != _LATE:  # it may say no more, as to a HEAD
        return MirrorError(
            f"{message}: the store refused {what} (status code: 400)",
            hint="give this process credentials that are still valid, and the bucket's own "
            "'mirror.object_store.endpoint' and 'region'",
        )
    if status in _FORBIDDEN or any(words in text for words in _NOT_ALLOWED):
        return MirrorError(f"{message}: the store refused {what}", hint=_CREDENTIALS)
    return None


def silence_of(error: BaseException, message: str) -> MirrorUnreachableError:
    """Return the error of a store that did not serve a request, and may serve the next one."""
    text = str(error)
    hint = _AGAIN
    if _first(_STATUS, text) == _MISSING:
        hint = "try again: what is missing is then named"
    elif _first(_KIND, text) == "Connect":
        hint = _REACHED
    return MirrorUnreachableError(f"{message}: the store did not answer ({_why(error)})", hint=hint)


def _why(error: BaseException) -> str:
    text = str(error)
    status, kind = _first(_STATUS, text), _first(_KIND, text)
    if status:
        return "a file is missing" if status == _MISSING else f"status code: {status}"
    if kind == "Timeout":
        return "not in time"
    if kind == "Connect":
        return _unconnected(text)
    if "HTTP error" in text:  # engines say no more
        return "the connection broke off" if kind else "no connection, or it broke off"
    return getattr(error, "strerror", None) or "its answer makes no sense"


def _unconnected(text: str) -> str:
    if "dns error" in text:
        return "its name is not known here"
    if "InvalidMessage" in text or "InvalidCertificate" in text:
        return "no encrypted connection could be made"
    return "no connection could be made"


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
