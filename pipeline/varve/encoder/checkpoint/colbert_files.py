"""Settings of late interaction in the files of PyLate and of Stanford's ColBERT, which older checkpoints have.

Standard library only. Source of the rules and defaults: sentence-transformers 6.2, `MultiVectorEncoder`.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from varve.encoder.checkpoint.declared_text import ROLES
from varve.encoder.checkpoint.small_files import JsonObject

_LENGTH = 32  # of an expanded query, in tokens, where a file has none
_MARKERS = {"query": "query_prefix", "document": "document_prefix"}
_OLDER = ("do_query_expansion", "attend_to_expansion_tokens", "attend_to_mask_tokens", "skiplist_words")
_TEXT = ("query_length", "document_length", "query_expansion")


@dataclass(frozen=True, slots=True)
class ColbertSettings:
    """What these files say."""

    markers: Mapping[str, str] = field(default_factory=dict)  # role → word before each text
    text: Mapping[str, Any] = field(default_factory=dict)  # for keys that the Transformer's own file lacks
    skipped_words: tuple[str, ...] = tuple(string.punctuation)  # of documents
    is_complete: bool = False  # modules.json does not list the mask and the normalization of the token vectors


def read_pylate(settings: JsonObject) -> ColbertSettings:
    """Read PyLate's keys of config_sentence_transformers.json.

    Raises:
        JobError: a value has another type than expected.
    """
    kind = settings.text("model_type")
    has_markers = any(key in settings for key in _MARKERS.values())
    is_complete = kind == "ColBERT" or (has_markers and kind in {None, "SentenceTransformer"})
    words = settings.texts("skiplist_words")
    return ColbertSettings(
        markers={role: settings.text(key) or "" for role, key in _MARKERS.items() if key in settings},
        text=_read_text(settings) if has_markers or any(key in settings for key in _TEXT + _OLDER) else {},
        skipped_words=tuple(string.punctuation) if words is None else words,
        is_complete=is_complete,
    )


def _read_text(settings: JsonObject) -> dict[str, Any]:
    text = {f"{role}_length": settings.count(f"{role}_length") for role in ROLES}
    if "query_expansion" in settings:
        expansion = settings.mapping("query_expansion").content or None
    elif "do_query_expansion" in settings and not settings.flag("do_query_expansion", default=True):
        expansion = None
    else:
        key = "attend_to_expansion_tokens" if "attend_to_expansion_tokens" in settings else "attend_to_mask_tokens"
        length = text.pop("query_length") or _LENGTH
        expansion = {"strategy": "fixed", "attend": settings.flag(key), "length": length}
    return {key: value for key, value in text.items() if value is not None} | {"query_expansion": expansion}


def read_stanford(metadata: JsonObject) -> ColbertSettings:
    """Read artifact.metadata.

    Raises:
        JobError: a value has another type than expected.
    """
    keys = {"query": ("query_token_id", "[unused0]"), "document": ("doc_token_id", "[unused1]")}
    attend, length = metadata.flag("attend_to_mask_tokens"), metadata.count("query_maxlen") or _LENGTH
    return ColbertSettings(
        markers={role: f"{metadata.text(key) or default} " for role, (key, default) in keys.items()},
        text={
            "document_length": metadata.count("doc_maxlen"),
            "query_expansion": {"strategy": "fixed", "attend": attend, "length": length},
        },
        skipped_words=tuple(string.punctuation) if metadata.flag("mask_punctuation", default=True) else (),
        is_complete=True,
    )
