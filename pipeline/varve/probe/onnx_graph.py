"""A probe's head as an ONNX graph. Knows nothing of files; needs the package `onnx`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from varve.encoder.feature_plan import Column
from varve.probe.models.head import Head

_OPSET = 18


def make_graph(head: Head, features: Sequence[Column], handcrafted_names: Sequence[str]) -> bytes:
    """The head as a serialized ONNX model, see `Probe.to_onnx`.

    Raises:
        ModuleNotFoundError: `onnx` is not installed.
    """
    import onnx  # noqa: PLC0415 (an extra)
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 (an extra)

    shape = head.shape
    tensors = {name.replace(".", "_"): values for name, values in head.state().items()}
    nodes: list[Any] = []

    def add(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(name: str, values: Any) -> str:
        tensors[name] = np.asarray(values)
        return name

    inputs = [helper.make_tensor_value_info(c.name, TensorProto.FLOAT, ["rows", c.width]) for c in features]
    blocks = []
    if features:
        joined = add("Concat", [column.name for column in features], "joined", axis=1)
        blocks = [add("Div", [add("Sub", [joined, "mean"], "centred"), "scale"], "vectors")]
    if shape.mixed_layers:
        tensors["mix"] = np.asarray(head.layer_weights, np.float32)[None, :, None]
        layers = add("Reshape", ["vectors", constant("by_layer", np.array([0, shape.mixed_layers, -1]))], "layers")
        weighted = add("Mul", [layers, "mix"], "weighted")
        blocks = [add("ReduceSum", [weighted, constant("axis", np.array([1]))], "mixed", keepdims=0)]
    if handcrafted_names:
        inputs.append(helper.make_tensor_value_info("handcrafted", TensorProto.FLOAT, ["rows", len(handcrafted_names)]))
        blocks.append("handcrafted")
    values = add("Concat", blocks, "inputs", axis=1)
    linear = sorted(int(name.split("_")[1]) for name in tensors if name.endswith("_weight"))
    for at in linear:
        values = add("Gemm", [values, f"body_{at}_weight", f"body_{at}_bias"], f"linear_{at}", transB=1)
        values = values if at == linear[-1] else add("Relu", [values], f"hidden_{at}")
    classify = shape.outputs > 1
    name = add("Softmax" if classify else "Identity", [values], "probabilities" if classify else "value")
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", shape.outputs])
    used = {name for node in nodes for name in node.input}
    stored = [numpy_helper.from_array(values, key) for key, values in tensors.items() if key in used]
    graph = helper.make_graph(nodes, "probe", inputs, [output], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="varve")
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model.SerializeToString()
