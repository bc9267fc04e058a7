"""The tokenizer of a checkpoint: its files, and the fast tokenizer of transformers that is loaded from them.

Knows nothing of texts. Invariant: a tokenizer that is returned has a vocabulary, and fits the model's embeddings.
"""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.errors import JobError, first_line

_MAX_TOKENIZER_BYTES = 128 * 2**20  # the largest known has 34 MB


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's fast tokenizer.

    Raises:
        JobError: the checkpoint has no fast tokenizer, or the tokenizer has more tokens than the model has embeddings.
    """
    folder = checkpoint.tokenizer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=checkpoint.trust_remote_code)
        added_ids = tokenizer("")["input_ids"]  # settings of a wrong type fail here
        len(tokenizer.all_special_ids)  # and special tokens of a wrong type here
    except Exception as e:  # transformers, tokenizers and a checkpoint's own code raise many types
        raise _tokenizer_error(folder, f"{type(e).__name__}: {first_line(e)}") from e
    if not getattr(tokenizer, "is_fast", False):
        raise _tokenizer_error(folder, f"{type(tokenizer).__name__} is a slow one")
    # Without a vocabulary transformers makes one of special tokens alone. Remote code may read files with any name.
    if not (has_vocabulary(folder) or type(tokenizer).__module__.startswith("transformers_modules.")):
        raise _tokenizer_error(folder, "it has no vocabulary")
    _check_ids(tokenizer, added_ids, checkpoint)
    return tokenizer


def _tokenizer_error(folder: str, reason: str) -> JobError:
    if not has_vocabulary(folder):
        reason = "it contains none of tokenizer.json, vocab.txt, vocab.json and *.model"
    return JobError(
        f"model.name: {folder} has no fast tokenizer: {reason}. Save the model's tokenizer to the same folder: "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    )


def _check_ids(tokenizer: Any, added_ids: list[int], checkpoint: Checkpoint) -> None:
    """Check that every token has an embedding, except added tokens, which occur only in texts that contain them."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    highest = max([*vocabulary.values(), *added_ids], default=0)
    if checkpoint.vocab_size is not None and highest >= checkpoint.vocab_size:
        msg = (
            f"model.name: the tokenizer in {checkpoint.folder} has token ids up to {highest}, but the model has "
            f"{checkpoint.vocab_size} embeddings: it belongs to another model. Save the model's tokenizer there"
        )
        raise JobError(msg)


def has_vocabulary(folder: str) -> bool:
    """Whether a folder holds a vocabulary that transformers can read."""
    files = _find_files(folder, "tokenizer*.json", "vocab.*", "*.model")
    return any(file.name != "tokenizer_config.json" for file in files)


def find_tokenizer_files(folder: str, name: str) -> list[Path]:
    """The files of a tokenizer, sorted; `name` is `model.name`, for messages.

    Raises:
        JobError: a file is far larger than that of any tokenizer.
    """
    files = _find_files(
        folder, "tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"
    )
    for file in files:
        if (size := file.stat().st_size) > _MAX_TOKENIZER_BYTES:
            limit = _MAX_TOKENIZER_BYTES // 2**20
            msg = f"model.name: {name}: {file.name} has {size:,} bytes: a tokenizer's file has {limit} MiB at most"
            raise JobError(msg)
    return files


def _find_files(folder: str, *patterns: str) -> list[Path]:
    """The regular files that match; opening anything else, such as a named pipe, could wait for ever."""
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()})
