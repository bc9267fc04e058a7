"""Speed of the fast tokenizers beside `tokenizers` on one core, and texts for which their ids differ.

`python -m tests.bench.tokenizers [--rows 20000]` writes tokens per CPU second for docstrings that are truncated at 256
tokens: MiniLM's WordPiece, a byte-level BPE and a Unigram model with Metaspace, which are trained on the docstrings.
`--equal 1000000` compares so many generated texts of each kind instead.
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.bench.corpus import docstrings, model_folder
from varve.preprocessing import fast_tokenizer
from varve.preprocessing.fast_tokenizer import find_fast_tokenizer
from varve.preprocessing.tokenizer import Tokenizer as Ours

MAX_TOKENS, BLOCK_ROWS, ROUNDS, TRAINING_ROWS = 256, 2000, 3, 4000
_SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<mask>"]
_ENDS = [("<s>", 0), ("</s>", 1)]


def byte_level(texts: Sequence[str]) -> Tokenizer:
    """The kind of ModernBERT's and RoBERTa's tokenizers."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=20_000, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=_ENDS)
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return raw


def unigram(texts: Sequence[str]) -> Tokenizer:
    """The kind of XLM-R's tokenizers."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=16_000, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=_ENDS)
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return raw


def kinds(texts: Sequence[str]) -> dict[str, Tokenizer]:
    """Tokenizers without truncation and padding."""
    wordpiece = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    wordpiece.no_truncation()
    wordpiece.no_padding()
    few = texts[:TRAINING_ROWS]
    return {"WordPiece (MiniLM)": wordpiece, "byte-level BPE": byte_level(few), "Unigram": unigram(few)}


def measure_speed(texts: Sequence[str]) -> None:
    """Print tokens per CPU second of `tokenizers` and of a fast tokenizer with empty and with full caches."""
    blocks = [texts[at : at + BLOCK_ROWS] for at in range(0, len(texts), BLOCK_ROWS)]
    for kind, raw in kinds(texts).items():
        pretrained = PreTrainedTokenizerFast(tokenizer_object=raw)
        seconds: dict[str, list[float]] = {"tokenizers": [], "cold": [], "warm": []}
        for _ in range(ROUNDS):
            fast_tokenizer._find.cache_clear()  # noqa: SLF001 (its caches belong to the tokenizer that is kept there)
            ours = Ours(pretrained, MAX_TOKENS)
            for name in ("cold", "warm"):
                seconds[name].append(_cpu_s(ours, blocks))
            raw.enable_truncation(MAX_TOKENS)
            seconds["tokenizers"].append(_cpu_s(raw.encode_batch_fast, blocks))
            raw.no_truncation()
        num_tokens = sum(len(ours(block).input_ids) for block in blocks)
        rates = {name: num_tokens / statistics.median(each) / 1e6 for name, each in seconds.items()}
        row = ", ".join(f"{name} {rate:.2f} ({rate / rates['tokenizers']:.1f}x)" for name, rate in rates.items())
        sys.stdout.write(f"{kind}: {num_tokens:,} tokens, M tokens/s: {row}; {ours.description}\n")


def _cpu_s(encode: Callable[[Sequence[str]], Any], blocks: Sequence[Sequence[str]]) -> float:
    began_s = time.process_time()
    for block in blocks:
        encode(block)
    return time.process_time() - began_s


def generated(rows: int, corpus: Sequence[str]) -> Iterator[list[str]]:
    """Blocks of texts: pieces of the corpus, characters of every plane, marks, scripts, white space, added tokens."""
    draw = random.Random(0)
    words = sorted({word for text in corpus for word in text.split()})
    tokens = ["<mask>", " <mask>", "<s>", "</s>", "[SEP]", "[CLS] ", "<unk>", "##ing", "\u2581", "\u0120", "[MASK]"]
    white = [" ", "  ", "\n", "\t", "\r\n", "\x0b", "\x0c", "\x85", "\xa0", "\u2003", "\u2028", "\u200b", "\u3000", ""]
    ranges = [
        (0, 0x80), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0xE80), (0x1100, 0x1200),
        (0x1E00, 0x2000), (0x2000, 0x2C00), (0x3000, 0x3400), (0x4E00, 0xA000), (0xAC00, 0xD800), (0xE000, 0x10000),
        (0x10000, 0x20000), (0x1F000, 0x1FB00), (0x20000, 0x30000), (0xE0000, 0xE0200), (0, 0x110000),
    ]  # fmt: skip

    def characters() -> str:
        low, high = draw.choice(ranges)
        codes = (draw.randrange(low, high) for _ in range(draw.randint(1, 6)))
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.45:
            return draw.choice(words)[:120]
        if kind < 0.9:
            return characters()
        return draw.choice(tokens) if kind < 0.98 else characters()[:1] * draw.randint(90, 130)

    for at in range(0, rows, BLOCK_ROWS):
        count = min(BLOCK_ROWS, rows - at)
        yield [
            "".join(piece() + draw.choice(white[: draw.choice((1, 3, 14))]) for _ in range(draw.randint(1, 6)))
            for _ in range(count)
        ]


def compare(rows: int, corpus: Sequence[str]) -> None:
    """Print for each kind how many texts have different ids, and the first of them."""
    for kind, raw in kinds(corpus).items():
        fast = find_fast_tokenizer(raw)
        if isinstance(fast, str):
            sys.stdout.write(f"{kind}: {fast}\n")
            continue
        different, first = 0, ""
        for texts in generated(rows, corpus):
            ids, starts = fast.encode(texts)
            for at, encoding in enumerate(raw.encode_batch_fast(texts)):
                if not np.array_equal(ids[starts[at] : starts[at + 1]], encoding.ids):
                    different, first = different + 1, first or texts[at]
        sys.stdout.write(f"{kind}: {different} of {rows:,} texts differ {ascii(first) if first else ''}; {fast.name}\n")


def main() -> None:
    """Measure, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="docstrings")
    parser.add_argument("--equal", type=int, default=0, metavar="TEXTS", help="compare so many generated texts")
    args = parser.parse_args()
    texts = docstrings(args.rows)
    compare(args.equal, texts) if args.equal else measure_speed(texts)


if __name__ == "__main__":
    main()
