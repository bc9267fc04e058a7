"""Linear layers in compiled code, with the next steps; `make install` builds it if there is a C compiler."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from tests.models import ARCHITECTURES, TOLERANCE
from varve.config.model import Model
from varve.encoder.description import describe
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import Activation, CpuLibrary
from varve.encoder.kernels.cpu_weights import PackedWeights, WeightArena
from varve.encoder.model.fused_linear import FeedForward, Gated, Linear, LinearNorm, linear_backend, use_library

IDS = torch.tensor([[101, 2182, 2003, 2070, 3793, 102]])
BUILT = [kernel for instructions in ("amx", "avx512", "avx2") if (kernel := CpuLibrary.load(instructions))]
CAN_BUILD = platform.machine() == "x86_64" and shutil.which("cc") is not None

pytestmark = [
    pytest.mark.skipif(not CAN_BUILD, reason="needs x86-64 and a C compiler"),
    pytest.mark.usefixtures("seeded"),
]
each_kernel = pytest.mark.parametrize("kernel", BUILT, ids=lambda kernel: kernel.instructions)
AFTER = {Activation.NONE: nn.Identity(), Activation.GELU: nn.GELU(), Activation.SILU: nn.SiLU()}
# (inputs, inner features or outputs)
WIDTHS = [(32, 64), (96, 32), (384, 1536), (512, 512), (1024, 1056)]


@pytest.fixture
def seeded():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def pack(kernel, linear, kind=PackedWeights, **more):
    return kind(linear, kernel, WeightArena(linear.weight.numel(), []), **more)


def make_linear(kernel, inputs, outputs, activation=Activation.NONE):
    linear = nn.Linear(inputs, outputs)
    made = pack(kernel, linear, Linear)
    made.activation = activation
    return made, lambda rows: AFTER[activation](linear.double()(rows.double()))


def make_linear_norm(kernel, inputs, outputs):
    linear, norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs, eps=1e-12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    made = LinearNorm(pack(kernel, linear), norm)
    wide = nn.LayerNorm(outputs, eps=1e-12).double()
    wide.load_state_dict(norm.state_dict())
    return made, lambda rows, residual: wide(linear.double()(rows.double()) + residual.double())


def make_feed_forward(kernel, width, inner, *, normed=True):
    first, second, norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)
    last = pack(kernel, second, depth=depth_of(kernel, inner))
    made = FeedForward(pack(kernel, first), Activation.GELU, last, norm if normed else None)

    def plain(rows):
        out = second.double()(nn.functional.gelu(first.double()(rows.double())))
        return nn.LayerNorm(width, eps=1e-12).double()(out + rows.double()) if normed else out

    return made, plain


def make_gated(kernel, width, inner, activation, *, halves):
    """With a layer of factors, or with the second half of the first layer's outputs as factors."""
    first = nn.Linear(width, 2 * inner if halves else inner, bias=halves)
    second, factors = nn.Linear(inner, width), None if halves else nn.Linear(width, inner)
    panels = None if factors is None else pack(kernel, factors)
    made = Gated(pack(kernel, first), activation, panels, pack(kernel, second, depth=depth_of(kernel, inner)))

    def plain(rows):
        rows = rows.double()
        both = first.double()(rows).chunk(2, -1) if factors is None else (first.double()(rows), factors.double()(rows))
        return second.double()(AFTER[activation](both[0]) * both[1])

    return made, plain


def depth_of(kernel, inner):
    return max(depth for depth in range(kernel.panel_columns, 513, kernel.panel_columns) if inner % depth == 0)


@each_kernel
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_with_compiled_layers_equals_the_original(kernel, architecture, tiny):
    model = AutoModel.from_pretrained(tiny(architecture), attn_implementation="eager").eval()
    num_parameters = sum(p.numel() for p in model.parameters())
    want = model(input_ids=IDS, output_hidden_states=True).hidden_states
    use_library(model, kernel)
    got = model(input_ids=IDS, output_hidden_states=True).hidden_states
    assert max(float((g - w).abs().max()) for g, w in zip(got, want, strict=True)) <= TOLERANCE
    assert linear_backend(model) == kernel.instructions
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@each_kernel
@pytest.mark.parametrize(
    ("architecture", "blocks", "gated", "norms"),
    [
        ("bert", 3, 0, 3),
        ("roberta", 3, 0, 3),
        ("electra", 3, 0, 3),
        ("mpnet", 3, 0, 0),
        ("distilbert", 3, 0, 0),
        ("albert", 1, 0, 0),
        ("jina_embeddings_v3", 3, 0, 0),
        ("modernbert", 0, 3, 0),
        ("nomic_bert", 0, 3, 0),
        ("eurobert", 0, 3, 0),
        ("gte", 0, 3, 0),
    ],
)
def test_whole_blocks_are_replaced_in_every_known_architecture(kernel, architecture, blocks, gated, norms, tiny):
    exact = {"hidden_act": "gelu"} if architecture == "albert" else {}
    model = AutoModel.from_pretrained(tiny(architecture, **exact), attn_implementation="eager").eval()
    want = model(input_ids=IDS).last_hidden_state
    use_library(model, kernel)
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(FeedForward), kinds.count(Gated), kinds.count(LinearNorm)) == (blocks, gated, norms)
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize(("activation", "supported"), [("gelu", True), ("gelu_new", False), ("relu", False)])
def test_only_the_exact_gelu_is_supported(kernel, activation, supported, tiny):
    model = AutoModel.from_pretrained(tiny("bert", hidden_act=activation), attn_implementation="eager").eval()
    # Makes the approximations differ by more than the tolerance.
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight *= 100
    want = model(input_ids=IDS).last_hidden_state
    use_library(model, kernel)
    assert isinstance(model.encoder.layer[0].output, FeedForward) == supported
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


def test_a_block_with_known_names_but_other_code_is_not_replaced(tiny, monkeypatch):
    """As in a model with remote code: the names of a gated block, but the other half is activated."""
    gated = type(AutoModel.from_pretrained(tiny("nomic_bert")).layers[0].mlp)
    monkeypatch.setattr(
        gated, "forward", lambda self, x: self.down_proj(self.gate_proj(x) * self.act_fn(self.up_proj(x)))
    )
    plain = AutoModel.from_pretrained(tiny("nomic_bert"), attn_implementation="eager").eval()
    encoder = Encoder(Model(name=tiny("nomic_bert"), max_tokens=64), {"e": "mean@-1"}, device="cpu")
    tokens = encoder.tokenizer(["some text"])
    want = plain(input_ids=torch.from_numpy(tokens.input_ids.astype("int64"))[None]).last_hidden_state[0].mean(0)
    assert describe(encoder)["linear"] == "torch"
    assert float((torch.from_numpy(encoder.encode(tokens)["e"][0]) - want).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    ("changed", "replaced"), [({"intermediate_size": 72}, {Linear, LinearNorm}), ({"hidden_size": 24}, set())]
)
def test_widths_that_do_not_fill_registers_are_not_replaced(changed, replaced, tiny):
    model = AutoModel.from_pretrained(tiny("bert", **changed), attn_implementation="eager").eval()
    want = model(input_ids=IDS).last_hidden_state
    use_library(model, BUILT[0])
    assert {type(module) for module in model.modules()} & {Linear, LinearNorm, FeedForward} == replaced
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 5, 12, 97, 200])
def test_every_step_equals_float64(kernel, inputs, outputs, rows):
    hidden, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
    steps = [make_linear(kernel, inputs, outputs, activation) for activation in Activation]
    steps += [make_gated(kernel, inputs, outputs, Activation.GELU, halves=True)]
    steps += [make_gated(kernel, inputs, outputs, Activation.SILU, halves=False)]
    steps += [make_feed_forward(kernel, inputs, outputs, normed=normed) for normed in (True, False)]
    for step, plain in steps:
        torch.testing.assert_close(step(hidden), plain(hidden).float(), atol=5e-6, rtol=5e-6)
    step, plain = make_linear_norm(kernel, inputs, outputs)
    torch.testing.assert_close(step(hidden, residual), plain(hidden, residual).float(), atol=5e-6, rtol=5e-6)


@each_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_keeps_its_weight_and_takes_rows_of_any_shape(kernel, bias):
    linear = nn.Linear(96, 64, bias=bias)
    weight = linear.weight.clone()
    for depth in (None, 32):
        assert torch.equal(pack(kernel, linear, depth=depth).weight, weight)
    through_kernel = pack(kernel, linear, Linear)
    for shape in ((96,), (0, 96), (1, 96), (1, 1000, 96), (3, 5, 96)):
        hidden = torch.randn(shape)
        assert through_kernel(hidden).shape == (*shape[:-1], 64)
        torch.testing.assert_close(through_kernel(hidden), linear(hidden), atol=1e-6, rtol=1e-5)
    turned = torch.randn(96, 7).T  # not contiguous
    torch.testing.assert_close(through_kernel(turned), linear(turned), atol=1e-6, rtol=1e-5)


@each_kernel
@pytest.mark.parametrize("width", [384, 1024])
def test_a_row_has_the_same_bits_with_any_other_rows(kernel, width):
    hidden, residual = torch.randn(500, width), torch.randn(500, width)
    linear, _ = make_linear(kernel, width, 4 * width, Activation.SILU)
    normed, _ = make_linear_norm(kernel, width, width)
    block, _ = make_feed_forward(kernel, width, 4 * width)
    gated, _ = make_gated(kernel, width, 3 * width, Activation.GELU, halves=True)
    together = [linear(hidden), normed(hidden, residual), block(hidden), gated(hidden)]
    for rows in (1, 2, 11, 12, 13, 97, 333, 499):
        x, added = hidden[-rows:].clone(), residual[-rows:].clone()
        for got, want in zip([linear(x), normed(x, added), block(x), gated(x)], together, strict=True):
            assert torch.equal(got, want[-rows:]), rows


def test_avx2_and_avx512_give_the_same_bits():
    first, second, norm = nn.Linear(384, 1536), nn.Linear(1536, 384), nn.LayerNorm(384)
    hidden, residual = torch.randn(100, 384), torch.randn(100, 384)
    results = []
    for kernel in BUILT:
        if kernel.in_pairs:
            continue
        panels, last = pack(kernel, first), pack(kernel, second, depth=512)
        blocks = [FeedForward(panels, activation, last, norm) for activation in (Activation.GELU, Activation.SILU)]
        results.append(torch.stack([block(hidden, residual) for block in blocks]))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.skipif(not any(kernel.in_pairs for kernel in BUILT), reason="this CPU has no tiles")
@pytest.mark.parametrize(("inputs", "outputs"), [(384, 1536), (1536, 384), (1024, 1024)])
@pytest.mark.parametrize("spread", [0.0, 3.0], ids=["equal scales", "different scales"])
def test_products_by_tiles_are_as_exact_as_those_in_float32(inputs, outputs, spread):
    linear = nn.Linear(inputs, outputs)
    hidden = torch.randn(200, inputs) * torch.exp(spread * torch.randn(inputs))
    want = nn.functional.linear(hidden.double(), linear.weight.double(), linear.bias.double())
    errors = {kernel.instructions: pack(kernel, linear, Linear)(hidden) - want for kernel in BUILT}
    assert float(errors["amx"].square().mean()) <= float(errors["avx512"].square().mean())
    assert float(errors["amx"].abs().max()) <= 1.5 * float(errors["avx512"].abs().max())


def activated(kernel, activation, reach):
    """(values from -reach to reach and some extremes, the activated values)."""
    linear = nn.Linear(32, 32)
    linear.weight.copy_(torch.eye(32))
    linear.bias.zero_()
    step = pack(kernel, linear, Linear)
    step.activation = activation
    values = torch.cat([torch.linspace(-reach, reach, 320_000), torch.tensor([-1e30, -1e4, -0.0, 1e4, 1e30, 1e-40])])
    values = nn.functional.pad(values, (0, -len(values) % 32)).view(-1, 32)
    return values, step(values)


@each_kernel
def test_silu_is_exact_on_its_whole_range(kernel):
    values, got = activated(kernel, Activation.SILU, 120)
    torch.testing.assert_close(got, nn.functional.silu(values.double()).float(), atol=1e-9, rtol=1e-6)
    assert torch.equal(got[values > 20], values[values > 20])


@each_kernel
def test_gelu_is_exact_on_its_whole_range(kernel):
    values, got = activated(kernel, Activation.GELU, 12)
    torch.testing.assert_close(got, nn.functional.gelu(values.double()).float(), atol=1e-6, rtol=2e-7)
    assert (got[values < -5.6] == 0).all()
    assert torch.equal(got[values > 5.6], values[values > 5.6])


@each_kernel
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_stay_in_their_row(kernel, bad):
    hidden = torch.randn(30, 64)
    block, _ = make_feed_forward(kernel, 64, 128)
    want = block(hidden)
    broken = hidden.clone()
    broken[17, 3] = bad
    got = block(broken)
    others = torch.arange(30) != 17
    assert torch.equal(got[others], want[others])
    assert not torch.isfinite(got[17]).any()


@each_kernel
@pytest.mark.parametrize("rows", [1, 13, 96, 100])
def test_nothing_is_written_beyond_the_last_row(kernel, rows):
    linear = pack(kernel, nn.Linear(64, 96))
    hidden, out = torch.randn(rows, 64), torch.full((rows + 2, 96), 7.0)
    assert kernel.library.linear(hidden.data_ptr(), rows, linear.weights, 1, out[1:].data_ptr()) == 0
    assert (out[[0, -1]] == 7).all()
    assert (out[1:-1] != 7).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_torch_computes_linear_layers_in_half_precision(dtype, tiny):
    encoder = Encoder(Model(name=tiny("bert"), max_tokens=128, dtype=dtype), device="cpu")
    assert (describe(encoder)["linear"] == "torch") == (dtype != "float32")


def wide_bert(tiny, folder):
    """A saved model whose weights are mostly in its layers."""
    config = AutoModel.from_pretrained(tiny("bert")).config
    config.update({"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4})
    AutoModel.from_config(config).save_pretrained(folder)
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


def resident_bytes(file: Path) -> int:
    """Memory of a file's mappings in this process."""
    total, in_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:  # first line of a mapping: its addresses ... its file
            in_file = line.endswith(str(file))
        elif in_file and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_packed_weights_are_not_also_in_memory_as_pages_of_the_checkpoint(tiny, tmp_path):
    model = wide_bert(tiny, tmp_path)
    file = (tmp_path / "model.safetensors").resolve()
    want = model(input_ids=IDS).last_hidden_state
    packed_bytes = sum(m.weight.nbytes for m in model.encoder.modules() if isinstance(m, nn.Linear))
    before_bytes = resident_bytes(file)
    assert before_bytes >= packed_bytes
    use_library(model, BUILT[0])
    assert resident_bytes(file) <= before_bytes - 0.9 * packed_bytes  # pages at the edges hold other weights too
    assert float((model(input_ids=IDS).last_hidden_state - want).abs().max()) <= TOLERANCE


_DROP = """
import re, sys
from pathlib import Path
from varve.encoder.encoder import Encoder

def anonymous_bytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

import varve.encoder.loaded_model  # what imports take is not counted
before = anonymous_bytes()
encoder = Encoder(sys.argv[1], {"e": f"mean@{sys.argv[2]}"}, device="cpu", threads=1)
print(anonymous_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_dropped_layers_free_their_memory(minilm):
    def held_bytes(layer: int) -> int:
        command = [sys.executable, "-c", _DROP, minilm, str(layer)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        return int(result.stdout)

    layer_bytes = 12 * 384 * 384 * 4
    assert held_bytes(6) - held_bytes(1) >= 4 * layer_bytes
