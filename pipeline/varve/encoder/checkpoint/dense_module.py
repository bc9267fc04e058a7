"""Reads a Dense module: its activation, and the shapes of its weights.

Standard library only; reads no weights. Invariant: the weights have the shapes that the layer needs.
"""

from varve.encoder.checkpoint.head import ACTIVATIONS, Dense
from varve.encoder.checkpoint.head_weights import find_weights
from varve.encoder.checkpoint.small_files import JsonObject, SmallFiles

_DEFAULT = "torch.nn.modules.activation.Tanh"  # of sentence-transformers


def read_dense(files: SmallFiles, path: str, config: JsonObject) -> Dense:
    """Read a Dense module.

    Args:
        files: of the checkpoint.
        path: folder of the module.
        config: its config.json.

    Raises:
        JobError: its activation is unknown, or its weights are missing, pickled or of other shapes.
    """
    residual = config.flag("use_residual")
    weights = find_weights(files.root, path, files.name, "linear.weight")
    files.names.append(weights.file)
    out_features, in_features = weights.matrix("linear.weight")
    weights.check_shape("linear.bias", out_features)
    weights.check_shape("residual.weight", out_features, in_features)
    if residual and out_features != in_features and "residual.weight" not in weights.shapes:
        files.refuse(f"{weights.file} lacks the weight residual.weight")
    return Dense(weights.file, in_features, out_features, _read_activation(config), residual)


def _read_activation(config: JsonObject) -> str:
    activation = config.text("activation_function") or _DEFAULT
    name = activation.rpartition(".")[2].lower()
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        config.refuse("activation_function", f"a class of torch.nn: one of {', '.join(ACTIVATIONS)}")
    return name
