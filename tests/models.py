"""Tiny models of every family, texts of ragged lengths, and every pooling with its plain definition."""

import numpy as np
import pytest
import torch

from varve.config.feature import Feature
from varve.encoder.kernels.cpu_library import find_cpu_library

TOLERANCE = 2e-5  # float32, absolute, as the README promises

BERT = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
ARCHITECTURES = {
    "bert": BERT,
    "roberta": BERT | {"pad_token_id": 1},
    "xlm-roberta": BERT | {"pad_token_id": 1},
    "albert": BERT | {"embedding_size": 16},
    "distilbert": {
        "vocab_size": 30522,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 130,
    },
    "electra": BERT | {"embedding_size": 16},
    "mpnet": BERT | {"pad_token_id": 1},
    "deberta-v2": BERT
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    "modernbert": BERT
    | {
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        "pad_token_id": 0,
        "cls_token_id": 101,
        "sep_token_id": 102,
        "bos_token_id": 101,
        "eos_token_id": 102,
    },
    "nomic_bert": BERT,
    "eurobert": BERT
    | {
        "pad_token_id": 0,
        "bos_token_id": 101,
        "eos_token_id": 102,
        "mask_token_id": 103,
        "classifier_pooling": "bos",
    },
    "gte": BERT | {"pad_token_id": 0},
    "jina_embeddings_v3": BERT | {"pad_token_id": 1, "bos_token_id": 101, "eos_token_id": 102},
}
PACKED = set(ARCHITECTURES) - {"deberta-v2"}
DECODER = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}
# Models that differ from BERT in one property, which some test needs; the last ones are decoders.
RELATED = {
    "longformer": BERT | {"pad_token_id": 1, "attention_window": 16, "max_position_embeddings": 514},
    "big_bird": BERT | {"pad_token_id": 0, "attention_type": "original_full"},
    "convbert": BERT | {"pad_token_id": 0},
    "bros": BERT | {"pad_token_id": 0},
    "gpt2": {"vocab_size": 30522, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130},
    "llama": DECODER,
    "qwen2": DECODER,
}

RAGGED = [
    "Here is some text to encode",
    "",
    "a",
    "The quick brown fox, jumping over the lazy dog, was never seen again.",
    "emoji 🙂 and accents: naïve façade",
    "long " * 60,
    "The quick brown fox, jumping over the lazy dog, was never seen twice.",
]

POOLS = {
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.max(0).values,
    "tokens": lambda hidden: hidden,
}
EVERYTHING = {pool: Feature(pool=pool, layers="all", special_tokens=pool == "tokens") for pool in POOLS}


def worst_difference(columns, outputs) -> dict[str, float]:
    """{pooling: largest difference} between the columns of `EVERYTHING` and plain transformers for the same texts."""
    worst = dict.fromkeys(POOLS, 0.0)
    for row, output in enumerate(outputs):
        for layer, hidden in enumerate(output.hidden_states):
            for pool, reference in POOLS.items():
                got, want = columns[f"{pool}_{layer:02d}"][row], reference(hidden[0]).numpy()
                assert got.shape == want.shape
                worst[pool] = max(worst[pool], float(np.abs(got - want).max()))
    return worst


def leave_all_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run no compiled code, as on a CPU without AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert find_cpu_library() is None
