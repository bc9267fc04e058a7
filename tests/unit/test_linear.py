"""Linear layers through oneDNN, on any machine: which of the two multiplies is chosen by the machine alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from pipeline.encoder.encoder import Encoder, describe
from pipeline.encoder.linear import OneDnnLinear, use_onednn
from pipeline.spec.model import Model
from tests.models import ARCHITECTURES, TOLERANCE

IDS = torch.tensor([[101, 2182, 2003, 2070, 3793, 102]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_model_whose_layers_go_through_onednn_equals_itself(architecture, tiny):
    model = AutoModel.from_pretrained(tiny(architecture), attn_implementation="eager").eval()
    num_parameters = sum(p.numel() for p in model.parameters())
    want = model(input_ids=IDS, output_hidden_states=True).hidden_states
    use_onednn(model)
    got = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) <= TOLERANCE
    assert any(isinstance(module, OneDnnLinear) for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@pytest.mark.parametrize(("activation", "taken"), [("gelu", True), ("gelu_new", False), ("relu", False)])
@torch.inference_mode()
def test_only_the_exact_gelu_is_taken_into_the_product(activation, taken, tiny):
    model = AutoModel.from_pretrained(tiny("bert", hidden_act=activation), attn_implementation="eager").eval()
    # Values for which the approximations differ by more than the tolerance.
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight *= 100
    want = model(input_ids=IDS).last_hidden_state
    use_onednn(model)
    assert isinstance(model.encoder.layer[0].intermediate.intermediate_act_fn, nn.Identity) == taken
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_layer_keeps_its_weight_and_takes_any_number_of_rows(bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 32, bias=bias)
    through_onednn = OneDnnLinear(linear)
    assert torch.equal(through_onednn.weight, linear.weight)
    for shape in ((48,), (0, 48), (1, 48), (1, 1000, 48), (3, 5, 48)):
        hidden = torch.randn(shape)
        assert through_onednn(hidden).shape == (*shape[:-1], 32)
        torch.testing.assert_close(through_onednn(hidden), linear(hidden), atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_a_rows_product_has_the_same_bits_whatever_rows_are_beside_it():
    torch.manual_seed(0)
    through_onednn = OneDnnLinear(nn.Linear(384, 1536), gelu=True)
    hidden = torch.randn(1000, 384)
    together = through_onednn(hidden)
    for rows in (1, 2, 3, 17, 64, 333, 999):
        assert torch.equal(through_onednn(hidden[:rows].clone()), together[:rows]), rows


@pytest.mark.parametrize(("capability", "chosen"), [("AVX512", "onednn"), ("AVX2", "torch"), ("DEFAULT", "torch")])
def test_the_machine_alone_decides_who_multiplies_and_the_manifest_says_who(capability, chosen, tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    encoder = Encoder(Model(name=tiny("bert"), max_tokens=128), device="cpu")
    assert describe(encoder)["linear"] == chosen


def test_half_precision_stays_with_torch(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    encoder = Encoder(Model(name=tiny("bert"), max_tokens=128, dtype="bfloat16"), device="cpu")
    assert describe(encoder)["linear"] == "torch"


def resident_bytes(file: Path) -> int:
    """Of a file's mappings in this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:  # the head of a mapping: its addresses, and its file last
            ours = line.endswith(str(file))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of a process's memory")
@torch.inference_mode()
def test_weights_that_were_laid_out_do_not_count_a_second_time_in_the_checkpoints_file(tiny, tmp_path):
    config = AutoModel.from_pretrained(tiny("bert")).config
    config.update({"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    file = (tmp_path / "model.safetensors").resolve()
    model = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    want = model(input_ids=IDS).last_hidden_state
    laid_out_bytes = sum(m.weight.nbytes for m in model.encoder.modules() if isinstance(m, nn.Linear))
    before_bytes = resident_bytes(file)
    assert before_bytes >= laid_out_bytes
    use_onednn(model)
    assert resident_bytes(file) <= before_bytes - 0.9 * laid_out_bytes  # pages at their edges hold other weights too
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


_MANY_SIZES = """
import re, sys
from pathlib import Path
from pipeline.encoder import encoder

def anonymous_mb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

encoder.onednn_is_faster = lambda: True
encode = encoder.Encoder(sys.argv[1], {"e": "mean@1"}, device="cpu", threads=1)

def run(tokens):
    encode(["word " * (tokens - 2)] if tokens <= 256 else ["word " * 254, "word " * (tokens - 258)])

run(500)
before = anonymous_mb()
for tokens in range(500, 100, -1):
    run(tokens)
print(anonymous_mb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of a process's memory")
def test_packs_of_many_sizes_leave_no_memory_behind(minilm):
    env = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    command = [sys.executable, "-c", _MANY_SIZES, minilm]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert float(told.stdout) < 90  # 400 sizes times three programs that are all kept: 570 MB
