"""Compares a checkpoint's configuration with the shapes of its weights, for the most used architectures.

Standard library only. Any other architecture is compared when its model is made, and whatever this file does not
compare is when the weights are loaded (loading.py). A value that the configuration lacks is not compared.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from varve.encoder.checkpoint.weight_files import Shape
from varve.errors import JobError

# Kind of value → its key in config.json. Other architectures use BERT's names or their own.
_BERT = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "hidden_size",
    "embedding": "hidden_size",
    "intermediate": "intermediate_size",
    "activation": "hidden_act",
}
_KEYS: dict[str, dict[str, str]] = {
    "albert": _BERT | {"embedding": "embedding_size"},
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": {
        "layers": "n_layers",
        "heads": "n_heads",
        "hidden": "dim",
        "embedding": "dim",
        "intermediate": "hidden_dim",
        "activation": "activation",
    },
    "electra": _BERT | {"embedding": "embedding_size"},
    "modernbert": _BERT | {"activation": "hidden_activation"},
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
# End of a weight's name → the keys of its rows and columns.
_SHAPES = {
    "embeddings.word_embeddings.weight": ("vocab_size", "embedding"),
    "embeddings.tok_embeddings.weight": ("vocab_size", "embedding"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "embedding"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "embedding"),
    "intermediate.dense.weight": ("intermediate", "hidden"),
    "ffn.weight": ("intermediate", "hidden"),
    "ffn.lin1.weight": ("intermediate", "hidden"),
    "mlp.Wo.weight": ("hidden", "intermediate"),
}
_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
# Names of transformers' activation functions; a test compares them.
ACTIVATIONS = frozenset({
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu",
    "relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
})  # fmt: skip


def check_consistency(config: Mapping[str, Any], shapes: Mapping[str, Shape], name: str) -> None:
    """Check what config.json promises against the weights.

    Args:
        config: content of config.json, or all values that transformers derives from it.
        shapes: weight → its shape.
        name: `model.name`, for messages.

    Raises:
        JobError: they differ, or a value is impossible.
    """
    model_type = config.get("model_type")
    keys = _KEYS.get(model_type) if isinstance(model_type, str) else None
    if keys is None or config.get("auto_map"):
        return
    if problem := next(_problems(config, keys, shapes), None):
        msg = (
            f"model.name: {name}: config.json has {problem}. The configuration does not belong to these weights, or "
            "was edited: download the model again"
        )
        raise JobError(msg)


def _problems(config: Mapping[str, Any], keys: Mapping[str, str], shapes: Mapping[str, Shape]) -> Iterator[str]:
    yield from _problems_of_shapes(config, keys, shapes)
    layers, hidden, heads = (config.get(keys[key]) for key in ("layers", "hidden", "heads"))
    numbers = {int(match[1]) for match in map(_LAYER.search, shapes) if match}
    if numbers and isinstance(layers, int) and not 0 < layers <= len(numbers):
        yield f"{keys['layers']} {layers}, but the weights have {len(numbers)} layers"
    if isinstance(heads, int) and isinstance(hidden, int) and (heads < 1 or hidden % heads):
        yield f"{keys['heads']} {heads}, which does not divide the hidden size {hidden}"
    activation = config.get(keys["activation"])
    if isinstance(activation, str) and activation not in ACTIVATIONS:
        yield f"{keys['activation']} {activation[:40]!r}, which transformers does not know"


def _problems_of_shapes(
    config: Mapping[str, Any], keys: Mapping[str, str], shapes: Mapping[str, Shape]
) -> Iterator[str]:
    for name, shape in shapes.items():
        ends = [end for end in _SHAPES if name.endswith(f".{end}") or name == end]
        for axis, key in enumerate(_SHAPES[ends[0]] if ends else ()):
            value = config.get(keys.get(key, key))
            if isinstance(value, int) and (len(shape) != 2 or value != shape[axis]):
                sizes = " x ".join(map(str, shape))
                yield f"{keys.get(key, key)} {value}, but the weight {name!r:.90} has the shape {sizes}"
