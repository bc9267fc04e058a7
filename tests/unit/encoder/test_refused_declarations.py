"""Declarations that cannot be computed, pickled weights, paths out of the folder."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.declarations import change, declaration, problem, write_modules
from tests.declared_checkpoints import run_conversion
from varve.encoder.checkpoint.head import Normalize
from varve.encoder.checkpoint.head_weights import find_weights
from varve.errors import JobError

MEAN = ("Pooling", {"pooling_mode": "mean"})
DENSE = ("Dense", {"in_features": 32, "out_features": 16, "activation_function": "torch.nn.modules.linear.Identity"})
NOT_COMPUTED = [
    ([MEAN, ("CNN", {})], "modules.json has the module sentence_transformers.models.CNN, which this version does not"),
    (
        [("Pooling", {"pooling_mode": "median"})],
        "pooling_mode in 1_Pooling/config.json is 'median': expected one or more",
    ),
    (
        [MEAN, ("Dense", {"activation_function": "my_code.Activation"})],
        "activation_function in 2_Dense/config.json is 'my_code.Activation': expected a class of torch.nn",
    ),
    (
        [MEAN, ("Dense", {"activation_function": "torch.nn.modules.activation.Softmax"})],
        "activation_function in 2_Dense/config.json is 'torch.nn.modules.activation.Softmax'",
    ),
    ([MEAN, ("Dense", {"use_residual": True})], "2_Dense/model.safetensors lacks the weight residual.weight"),
    ([MEAN, ("Dense", {"module_input_name": "token_embeddings"})], "applies Dense 32→16 tanh (2_Dense) in a place"),
    ([MEAN, ("Dense", {"module_output_name": "scores"})], "module_output_name in 2_Dense/config.json is 'scores'"),
    ([MEAN, ("LayerNorm", {})], "2_LayerNorm/model.safetensors is missing, although the checkpoint declares it"),
    ([DENSE, MEAN], "applies Dense 32→16 (1_Dense) in a place"),
    ([MEAN, MEAN], "applies mean (2_Pooling) in a place"),
    ([MEAN, ("MultiVectorMask", {})], "2_MultiVectorMask masks tokens in a place"),
    ([MEAN, ("Transformer", {})], "two modules that read texts, the second in '2_Transformer'"),
    ([], "modules.json declares no vector: it lacks a Transformer, or a pooling"),
    ([("SpladePooling", {})], "1_SpladePooling needs the masked-LM head, but the Transformer has none"),
    ([("Pooling", None)], "1_Pooling/config.json is missing"),
    ([("Router", {"structure": {}})], "1_Router/config.json has no route '', but none"),
]


@pytest.mark.parametrize(("modules", "expected"), NOT_COMPUTED)
def test_what_cannot_be_computed_is_refused_with_its_name(modules, expected, tmp_path):
    assert expected in problem(write_modules(tmp_path, *modules))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"transformer_task": "sequence-classification"}, "the task 'sequence-classification', which gives no vectors"),
        ({"transformer_task": "fill-mask"}, "1_Pooling pools the output of a masked-LM head"),
        ({"modality_config": {"message": {}}}, "modality_config in sentence_bert_config.json is {'message': {}}"),
        ({"module_output_name": "scores"}, "module_output_name in sentence_bert_config.json is 'scores'"),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, "processing_kwargs in sentence_bert_config.json is"),
        ({"do_lower_case": "yes"}, "do_lower_case in sentence_bert_config.json is 'yes': expected true or false"),
        ({"max_seq_length": "many"}, "max_seq_length in sentence_bert_config.json is 'many': expected a whole number"),
    ],
)
def test_transformer_that_gives_other_vectors_is_refused(text, expected, tmp_path):
    folder = write_modules(tmp_path, MEAN)
    (folder / "sentence_bert_config.json").write_text(json.dumps(text))
    assert expected in problem(folder)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (
            [("HierarchicalTokenPooling", {}), ("Normalize", {"module_input_name": "token_embeddings"})],
            "length 1 (2_Norm",
        ),
        ([MEAN], "applies mean (1_Pooling) in a place"),
        ([("MultiVectorMask", {}), ("MultiVectorMask", {})], "2_MultiVectorMask masks tokens in a place"),
    ],
)
def test_late_interaction_with_modules_in_another_order_is_refused(kinds, expected, tmp_path):
    assert expected in problem(write_modules(tmp_path, *kinds, model_type="MultiVectorEncoder"))


def test_normalization_of_a_row_does_nothing_before_a_row_has_a_vector(tmp_path):
    folder = write_modules(tmp_path, ("Normalize", {}), MEAN)
    assert declaration(folder).head.row_steps == ()
    assert declaration(folder).head.token_steps == ()


def test_router_that_lacks_the_role_or_sends_by_other_rules_is_refused(declared, tmp_path):
    folder = shutil.copytree(declared("Router with two bodies"), tmp_path / "model")
    file = folder / "router_config.json"
    content = json.loads(file.read_text())
    change(file, parameters={"route_mappings": {"('query', None)": "query"}})
    assert "route_mappings in router_config.json is" in problem(folder)
    change(file, parameters=content["parameters"], structure={"document": content["structure"]["document"]})
    assert "router_config.json has no route 'query', but document" in problem(folder, "query")
    assert declaration(folder, "document").head.row_steps == (Normalize(),)


def test_router_within_itself_is_refused(tmp_path):
    folder = write_modules(
        tmp_path, ("Router", {"structure": {"a": [""]}, "types": {"": "sentence_transformers.models.Router"}})
    )
    assert "1_Router is a Router within another one" in problem(folder)


def test_older_name_of_a_router_is_read(declared, tmp_path):
    folder = shutil.copytree(declared("Router with two bodies"), tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.Asym"
    (folder / "modules.json").write_text(json.dumps(modules))
    shutil.move(folder / "router_config.json", folder / "config.json")
    assert declaration(folder, "query").head == declaration(declared("Router with two bodies"), "query").head


def test_missing_file_of_dense_weights_is_refused(declared, tmp_path):
    folder = shutil.copytree(declared("residual Dense"), tmp_path / "model")
    (folder / "2_Dense/model.safetensors").unlink()
    expected = "model.name: the-model: 2_Dense/model.safetensors is missing, although the checkpoint declares it"
    assert problem(folder).startswith(expected)


def test_weights_of_a_wrong_shape_or_name_are_refused(tmp_path):
    folder = write_modules(tmp_path, MEAN, DENSE)
    file = folder / "2_Dense/model.safetensors"
    save_file({"linear.weight": torch.zeros(16)}, file)
    assert "the weight linear.weight has the shape [16]: expected a matrix" in problem(folder)
    save_file({"linear.weight": torch.zeros(16, 32), "linear.bias": torch.zeros(8)}, file)
    assert "the weight linear.bias has the shape [8]: expected [16]" in problem(folder)
    save_file({"weight": torch.zeros(16, 32)}, file)
    assert "2_Dense/model.safetensors lacks the weight linear.weight" in problem(folder)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "is not a complete safetensors file" in problem(folder)


def test_steps_for_vectors_of_another_width_are_refused(tmp_path, declared):
    head = declaration(write_modules(tmp_path, MEAN, DENSE)).head
    assert head.width(32) == 16
    with pytest.raises(JobError, match=r"2_Dense/model\.safetensors is for vectors of 32 dimensions, not of 64"):
        head.width(64)
    head = declaration(declared("two Dense, LayerNorm and Normalize")).head
    assert head.width(32) == 16
    with pytest.raises(JobError, match=r"4_LayerNorm/model\.safetensors is for vectors of 16 dimensions, not of 48"):
        replace(head, row_steps=(head.row_steps[0], head.row_steps[2])).width(32)


def test_pickled_dense_is_refused_with_a_command_that_converts_it(declared, tmp_path):
    folder = shutil.copytree(declared("residual Dense"), tmp_path / "a model's folder")
    file = folder / "2_Dense/model.safetensors"
    weights = load_file(file)
    torch.save(weights, folder / "2_Dense/pytorch_model.bin")
    file.unlink()
    message = problem(folder)
    expected = "the weights in 2_Dense/pytorch_model.bin are pickled, and pickles are not loaded. Convert them once: "
    assert message.startswith(f"model.name: the-model: {expected}")
    run_conversion(message)
    assert declaration(folder) == declaration(declared("residual Dense"))
    converted = load_file(file)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], weight) for name, weight in weights.items())


def test_pickled_heads_of_bge_m3_are_refused_with_their_names(tmp_path):
    torch.save({}, tmp_path / "sparse_linear.pt")
    with pytest.raises(
        JobError, match=r"the weights in sparse_linear\.pt are pickled, .* Convert them once: python -c "
    ):
        find_weights(tmp_path, "", "the-model", "weight", stem="sparse_linear")


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../../other", "a\0b"])
def test_paths_out_of_the_folder_are_refused(path, tmp_path):
    folder = write_modules(tmp_path, MEAN)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    assert f"the path {path!r} of a module leads out of the folder" in problem(folder)


def test_path_of_a_router_out_of_the_folder_is_refused(declared, tmp_path):
    folder = shutil.copytree(declared("Router with two bodies"), tmp_path / "model")
    change(folder / "router_config.json", structure={"document": ["../other"]}, types={"../other": "a.Pooling"})
    assert "the path '../other' of a module leads out of the folder" in problem(folder)
