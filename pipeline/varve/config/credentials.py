"""Credentials in what a job file says, which must hold none: a job is written into outputs, manifests and scripts.

Knows no section. Invariant: no message shows a value.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import BeforeValidator

# Names of what holds credentials: key and secret of s3fs, account_key and sas_token of adlfs, headers, parameters of
# signed URLs, and their likes; not tokenizer or sort_keys.
_SECRET = re.compile(
    r"(^|[-_]|api|access|account|private|shared|customer|subscription)key$|(^|[-_])(sig|pwd|auth)$|token$|[-_]signature$"
    r"|^signature$|secret|passw|passphrase|credential|connection_?string|authorization|cookie",
    re.IGNORECASE,
)
# Options of builders whose keys are columns, which may be called anything.
_BY_COLUMN = frozenset({"converters", "date_format", "features", "na_values"})
# Before an @ others than these write a user: abfs a container, github and git a repository after a colon.
_USER = re.compile(r"https?://[^/?#@\s]+@|(?<!\bgithub)(?<!\bgit)://[^/?#@\s]*:[^/?#@\s]*@", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&#;]([\w.%~-]+)=")


def refuse_credentials(value: Any) -> Any:
    """A value as it is, at whatever depth nothing in it is a credential.

    Raises:
        ValueError: a name is one of credentials, or a URL carries a user or a signature; the value is not shown.
    """
    if found := _find(value, ""):
        msg = f"{found}, which a job file must not hold: set it in the environment"
        raise ValueError(msg)
    return value


Location = Annotated[str, BeforeValidator(refuse_credentials)]


def _find(value: Any, place: str) -> str | None:
    """What in a value looks like a credential, and where; None if nothing does."""
    if isinstance(value, str):
        return _find_in_url(value, place)
    for name, held, at in _held(value, place):
        if _SECRET.search(name) and _may_be_secret(held):
            return f"{at!r} looks like a credential"
        inner = list(held.values()) if name in _BY_COLUMN and isinstance(held, Mapping) else held
        if found := _find(inner, at):
            return found
    return None


def _may_be_secret(value: Any) -> bool:
    """Not what says that there is none, or where it is: `token: true` is the one that the hub has stored."""
    return not (value is None or isinstance(value, bool) or value == "")


def _held(value: Any, place: str) -> Iterator[tuple[str, Any, str]]:
    """(name, value, place) of what a mapping or a list holds; a list's items have no name."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield str(key), held, f"{place}.{key}" if place else str(key)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield "", item, f"{place}[{at}]"
            match item:
                case [str(name), held]:  # as headers may be written
                    yield name, held, f"{place}[{at}]"


def _find_in_url(text: str, place: str) -> str | None:
    _, is_url, rest = text.partition("://")
    if not is_url:
        return None
    where = f"the URL at {place!r}" if place else "the URL"
    if _USER.search(text):
        return f"{where} holds a user or password before its host, a credential"
    names = [unquote(name) for name in _PARAMETER.findall(rest)]
    secret = next(filter(_SECRET.search, names), None)
    return f"{where} has the parameter {secret!r}, which looks like a credential" if secret else None
