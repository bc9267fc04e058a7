"""The vocabulary of an output with sparse vectors: the token of each id, in one object.

Knows nothing of tokenizers. Invariants: the object is a JSON array of strings, written once; the metadata of every part
holds its SHA-256 under `VOCABULARY_KEY`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from varve.errors import RunError
from varve.storage.object_store import ObjectTooLargeError, Storage

VOCABULARY_NAME = "_varve/vocabulary.json"
VOCABULARY_KEY = "vocabulary_sha256"
_MAX_BYTES = 256 * 2**20  # the largest known vocabulary, of 256,000 tokens, has 4 MB


def list_tokens(vocabulary: Mapping[str, int], size: int) -> list[str]:
    """The token of each id below `size`; an id without a token has an empty one.

    Args:
        vocabulary: token → id, with added tokens, as `get_vocab` of a tokenizer returns it.
        size: width of the sparse columns. A model may have more or fewer ids than its tokenizer.
    """
    tokens = [""] * size
    for token, index in vocabulary.items():
        if index < size:
            tokens[index] = token
    return tokens


def encode_vocabulary(tokens: Sequence[str]) -> bytes:
    """The content of the object."""
    return json.dumps(list(tokens), ensure_ascii=False, separators=(",", ":")).encode()


def hash_vocabulary(content: bytes) -> str:
    """The SHA-256 that the metadata of the parts records."""
    return hashlib.sha256(content).hexdigest()


def write_vocabulary(storage: Storage, content: bytes) -> None:
    """Write the object, unless it exists with this content.

    Raises:
        RunError: the store failed, or the object holds another vocabulary.
    """
    if not storage.create(VOCABULARY_NAME, content):
        msg = f"{storage.uri}/{VOCABULARY_NAME} holds another vocabulary than the model's. Choose another output.path"
        raise RunError(msg)


def read_vocabulary(storage: Storage) -> list[str]:
    """The token of each id of the sparse columns.

    Raises:
        RunError: the store failed, the object is missing, or it is not a vocabulary.
    """
    return parse_vocabulary(read_content(storage), storage.uri)


def read_content(storage: Storage) -> bytes:
    """The bytes of the object.

    Raises:
        RunError: the store failed, or the object is missing or too large.
    """
    where = f"{storage.uri}/{VOCABULARY_NAME}"
    try:
        content = storage.read_at_most(VOCABULARY_NAME, _MAX_BYTES)
    except ObjectTooLargeError as e:
        msg = f"{where} is not a vocabulary: it has more than {_MAX_BYTES:,} bytes"
        raise RunError(msg) from e
    if content is None:
        msg = f"{where} is missing: it gives the token of each id of sparse vectors. Run the same job again to write it"
        raise RunError(msg)
    return content


def parse_vocabulary(content: bytes, uri: str) -> list[str]:
    """Parse the bytes of the object; `uri` is that of the output, for messages.

    Raises:
        RunError: they are not a JSON array of strings.
    """
    try:
        tokens = json.loads(content)
    except (ValueError, RecursionError):
        tokens = None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        msg = f"{uri}/{VOCABULARY_NAME} is not a vocabulary: expected a JSON array of strings. See `varve verify`"
        raise RunError(msg)
    return tokens
