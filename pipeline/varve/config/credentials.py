"""Finds credentials in a job file, which must hold none: it is copied into outputs, manifests and scripts.

Invariant: no message shows a value.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import BeforeValidator

from varve.config.base import Name

# Names of credentials: key and secret of s3fs, account_key and sas_token of adlfs, HTTP headers, parameters of signed
# URLs. Names such as tokenizer or sort_keys do not match.
_SECRET = re.compile(
    r"(^|[-_]|api|access|account|private|shared|customer|subscription)key$|(^|[-_])(sig|pwd|auth)$|token$|[-_]signature$"
    r"|^signature$|secret|passw|passphrase|credential|connection_?string|authorization|cookie",
    re.IGNORECASE,
)
# The keys of these builder options are column names, which may be any text.
_KEYED_BY_COLUMN = frozenset({"converters", "date_format", "features", "na_values"})
# A user before an @. In abfs URLs that is the container, in github and git URLs the repository after a colon.
_USER = re.compile(r"https?://[^/?#@\s]+@|(?<!\bgithub)(?<!\bgit)://[^/?#@\s]*:[^/?#@\s]*@", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&#;]([\w.%~-]+)=")


def refuse_credentials(value: Any) -> Any:
    """Return a value unchanged if nothing in it, at any depth, looks like a credential.

    Raises:
        ValueError: a key is the name of a credential, or a URL holds a user or a signature; the value is not shown.
    """
    if problem := _find(value, ""):
        msg = f"{problem}, which a job file must not hold: set it in the environment"
        raise ValueError(msg)
    return value


Location = Annotated[Name, BeforeValidator(refuse_credentials)]


def _find(value: Any, path: str) -> str | None:
    """Describe what looks like a credential, and where it is; None if nothing does."""
    if isinstance(value, str):
        return _find_in_url(value, path)
    for name, item, item_path in _items(value, path):
        # `token: true` asks for the token that the Hub client has stored.
        may_be_secret = not (item is None or isinstance(item, bool) or item == "")
        if may_be_secret and _SECRET.search(name):
            return f"{item_path!r} looks like a credential"
        inner = list(item.values()) if name in _KEYED_BY_COLUMN and isinstance(item, Mapping) else item
        if problem := _find(inner, item_path):
            return problem
    return None


def _items(value: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    """(name, value, path) of the items of a mapping or a list; a list's items have no name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), item, f"{path}.{key}" if path else str(key)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield "", item, f"{path}[{index}]"
            match item:
                case [str(name), second]:  # HTTP headers may be lists of pairs
                    yield name, second, f"{path}[{index}]"


def _find_in_url(text: str, path: str) -> str | None:
    _, is_url, rest = text.partition("://")
    if not is_url:
        return None
    url = f"the URL at {path!r}" if path else "the URL"
    if _USER.search(text):
        return f"{url} holds a user or password before its host, a credential"
    names = [unquote(name) for name in _PARAMETER.findall(rest)]
    secret = next(filter(_SECRET.search, names), None)
    return f"{url} has the parameter {secret!r}, which looks like a credential" if secret else None
