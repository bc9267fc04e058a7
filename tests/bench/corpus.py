"""Texts and models of the benchmarks, without a network and without Arrow.

Texts: docstrings of this machine's Python in a fixed shuffled order, duplicates kept as they are; and texts of given
lengths in tokens, made of the docstrings' words. Models: the real MiniLM where its package is installed, else its shape
with random weights, like bert-base and bert-large; then the tokenizer is a WordPiece trained on the texts.
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
SHORT = (6, 34)  # tokens of the short mix, evenly spread: 20 on average
_SPARE = 4  # docstrings parsed for each that is taken, so that no package dominates
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def docstrings(rows: int) -> list[str]:
    """So many docstrings, drawn from files in an order that is the same each time (seed 0)."""
    files = list(python_files())
    random.Random(0).shuffle(files)
    texts: list[str] = []
    with ProcessPoolExecutor() as pool:
        for at in range(0, len(files), 1000):
            for found in pool.map(_texts_of, files[at : at + 1000], chunksize=50):
                texts += found
            if len(texts) >= _SPARE * rows:
                break
    random.Random(0).shuffle(texts)
    return texts[:rows]


def _texts_of(file: tuple[Path, str]) -> list[str]:
    return [text for _, text in docstrings_of(*file)]


def mix(name: str, texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[str]:
    """The texts of a mix, with about as many tokens in all as the docstrings have.

    Args:
        name: docstrings, short, or a number of tokens, special ones included.
        texts: the docstrings.
        tokenizer: of `tokenizers`, without truncation and padding.
        max_tokens: at which docstrings are cut.
    """
    if name == "docstrings":
        return list(texts)
    encodings = tokenizer.encode_batch_fast(list(texts))
    total = sum(min(len(encoding), max_tokens) for encoding in encodings)
    low, high = SHORT if name == "short" else (int(name), int(name))
    draw = random.Random(0)
    words = _words(texts, tokenizer)
    made: list[str] = []
    while total > 0:
        length = draw.randint(low, high)
        made.append(_fill(words, length - 2))
        total -= length
    return made


def _words(texts: Sequence[str], tokenizer: Any) -> Iterator[tuple[str, int]]:
    """(word, its tokens), over and over: words between spaces are tokenized each by itself."""
    words = [word for text in texts for word in text.split()]
    counts = [len(e) for e in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    return cycle([(word, count) for word, count in zip(words, counts, strict=True) if count])


def _fill(words: Iterator[tuple[str, int]], room: int) -> str:
    text: list[str] = []
    while room:
        word, count = next(words)
        if count <= room:
            text.append(word)
            room -= count
    return " ".join(text)


def make_model(name: str, folder: Path, texts: Sequence[str]) -> Path:
    """A folder of links to the real MiniLM or a given model, or of one with random weights (seed 0)."""
    made = folder / Path(name).name
    if made.exists():
        return made
    if name not in SHAPES:
        return _linked(Path(name).absolute(), made)
    try:
        real = model_folder()
    except JobError:
        real = None
    if real is not None and name == "minilm":
        return _linked(real, made)
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("bert", **SHAPES[name])).save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(real) if real else train_tokenizer(texts)
    tokenizer.save_pretrained(made)
    return made


def _linked(real: Path, made: Path) -> Path:
    """What other engines need is written beside the links, not into the model's own folder."""
    made.mkdir()
    for path in real.iterdir():
        (made / path.name).symlink_to(path)
    return made


def train_tokenizer(texts: Sequence[str]) -> Any:
    """A lower-casing WordPiece tokenizer of BERT's size."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    made = BertWordPieceTokenizer()
    made.train_from_iterator(texts, vocab_size=30522, special_tokens=_SPECIAL, show_progress=False)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer,  # noqa: SLF001 (the wrapper has no other way to it)
        model_input_names=inputs,
        model_max_length=512,
        **names,
    )


def load_tokenizer(folder: Path) -> Any:
    """A model's tokenizer as `tokenizers` has it, without truncation and padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
