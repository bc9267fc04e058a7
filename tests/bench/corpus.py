"""Texts and models of the benchmarks; needs neither a network nor Arrow.

Texts: docstrings of this machine's Python in a fixed shuffled order, with duplicates; and texts of given lengths in
tokens, made of the docstrings' words. Models: the real MiniLM if its package is installed, otherwise its shape with
random weights and a WordPiece tokenizer trained on the texts; bert-base and bert-large always have random weights.
"""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

from varve.cli.corpus import docstrings_of, model_folder, python_files
from varve.errors import JobError

SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {},
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
MIXES = ("docstrings", "short", "64", "128", "512")
SHORT = (6, 34)  # tokens of a text of the short mix, uniformly distributed: 20 on average
_SPARE = 4  # parsed docstrings per selected one, so that no package dominates
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def docstrings(rows: int) -> list[str]:
    """`rows` docstrings of files in a fixed random order (seed 0)."""
    files = list(python_files())
    random.Random(0).shuffle(files)
    texts: list[str] = []
    with ProcessPoolExecutor() as pool:
        for at in range(0, len(files), 1000):
            for file_texts in pool.map(_texts_of, files[at : at + 1000], chunksize=50):
                texts += file_texts
            if len(texts) >= _SPARE * rows:
                break
    random.Random(0).shuffle(texts)
    return texts[:rows]


def _texts_of(file: tuple[Path, str]) -> list[str]:
    return [text for _, text in docstrings_of(*file)]


def mix(name: str, texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[str]:
    """Texts of a mix, with about the total number of tokens of the docstrings.

    Args:
        name: docstrings, short, or a number of tokens per text, with special tokens.
        texts: the docstrings.
        tokenizer: of the package `tokenizers`, without truncation and padding.
        max_tokens: at which docstrings are truncated.
    """
    if name == "docstrings":
        return list(texts)
    encodings = tokenizer.encode_batch_fast(list(texts))
    total = sum(min(len(encoding), max_tokens) for encoding in encodings)
    low, high = SHORT if name == "short" else (int(name), int(name))
    draw = random.Random(0)
    words = _words(texts, tokenizer)
    mixed: list[str] = []
    while total > 0:
        length = draw.randint(low, high)
        mixed.append(_fill(words, length - 2))
        total -= length
    return mixed


def _words(texts: Sequence[str], tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Endless (word, its number of tokens); words are separated by spaces and tokenized one by one."""
    words = [word for text in texts for word in text.split()]
    counts = [len(e) for e in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    return cycle([(word, count) for word, count in zip(words, counts, strict=True) if count])


def _fill(words: Iterator[tuple[str, int]], num_tokens: int) -> str:
    """A text of exactly `num_tokens` tokens."""
    text: list[str] = []
    while num_tokens:
        word, count = next(words)
        if count <= num_tokens:
            text.append(word)
            num_tokens -= count
    return " ".join(text)


def make_model(name: str, folder: Path, texts: Sequence[str]) -> Path:
    """A folder with links to the real MiniLM or to a given model, or with random weights (seed 0)."""
    model_copy = folder / Path(name).name
    if model_copy.exists():
        return model_copy
    if name not in SHAPES:
        return _link(Path(name).absolute(), model_copy)
    try:
        real = model_folder()
    except JobError:
        real = None
    if real is not None and name == "minilm":
        return _link(real, model_copy)
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("bert", **SHAPES[name])).save_pretrained(model_copy)
    tokenizer = AutoTokenizer.from_pretrained(real) if real else train_tokenizer(texts)
    tokenizer.save_pretrained(model_copy)
    return model_copy


def _link(real: Path, copy: Path) -> Path:
    """Make a folder of links, so that files for other engines are not written to the model's own folder."""
    copy.mkdir()
    for path in real.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def train_tokenizer(texts: Sequence[str]) -> Any:
    """An uncased WordPiece tokenizer with the vocabulary size of BERT."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=30522, special_tokens=_SPECIAL, show_progress=False)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,  # noqa: SLF001 (the wrapper has no public access to it)
        model_input_names=inputs,
        model_max_length=512,
        **names,
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model, as an object of `tokenizers`, without truncation and padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
