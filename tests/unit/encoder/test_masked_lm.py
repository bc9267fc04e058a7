"""Sparse rows from the masked-LM head, compared with plain transformers, one window at a time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from tests.docstrings import docstrings
from tests.models import ARCHITECTURES, BERT, leave_all_to_torch
from tests.splade_checkpoint import splade_folder
from varve.encoder.checkpoint.head import Splade
from varve.encoder.kernels.cpu_library import find_cpu_library
from varve.encoder.model.masked_lm import MaskedLmHead, check_masked_lm_head
from varve.errors import JobError

TOLERANCE = 1e-5  # absolute, of the weights
# The sign of a logit this close to 0 depends on the order of its sum, and with it whether the token has a weight.
NEAR_ZERO = 1e-6
VOCABULARY = 1003  # fills neither whole panels nor whole registers
SPLADES = {f"{strategy} {twice}": Splade(strategy, twice) for strategy in ("max", "sum") for twice in (False, True)}
LENGTHS = [1, 9, 1, 64, 128, 3, 127]
HEADS = [*ARCHITECTURES, "camembert", "big_bird", "convbert"]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def backend(request, monkeypatch):
    if request.param == "torch":
        leave_all_to_torch(monkeypatch)
    elif find_cpu_library() is None:
        pytest.skip("no compiled code for this machine")
    return request.param


def make_model(architecture="bert", **changes):
    """A random masked-LM model, whose biases and norms are random too."""
    torch.manual_seed(0)
    options = ARCHITECTURES.get(architecture, ARCHITECTURES["roberta"]) | {"vocab_size": VOCABULARY} | changes
    config = AutoConfig.for_model(architecture, **options)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model.eval().requires_grad_(requires_grad=False)


def starts_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def draw_hidden(tokens, width=32):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(1))


def plain_weights(logits_TV, splade):
    positive = logits_TV.relu().log1p()
    positive = positive.log1p() if splade.twice else positive
    return positive.amax(0) if splade.strategy == "max" else positive.sum(0)


def dense(rows, vocabulary=VOCABULARY):
    """(W, V); the ids of each window are distinct and ascend."""
    assert (rows.counts.dtype, rows.ids.dtype, rows.weights.dtype) == (torch.int64, torch.int32, torch.float32)
    windows = torch.arange(len(rows.counts)).repeat_interleave(rows.counts)
    places = windows * vocabulary + rows.ids
    assert bool((places.diff() > 0).all())
    out = torch.zeros(len(rows.counts) * vocabulary)
    out[places] = rows.weights
    return out.view(-1, vocabulary)


def assert_equal_weights(got, want):
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= TOLERANCE
    above = torch.maximum(got, want) > NEAR_ZERO
    assert torch.equal((got > 0) & above, (want > 0) & above)


def assert_equal_rows(one, other):
    for name in ("counts", "ids", "weights"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@torch.inference_mode()
def reduce(head, hidden, lengths, splades=SPLADES):
    return head.reduce(hidden, starts_of(lengths), splades)


@pytest.mark.parametrize("architecture", HEADS)
@torch.inference_mode()
def test_weights_of_every_architecture_equal_plain_transformers(architecture):
    model = make_model(architecture)
    head = MaskedLmHead.of(model)
    check_masked_lm_head(model, head, 128, token_types=False)
    generator = torch.Generator().manual_seed(2)
    windows = [torch.randint(5, VOCABULARY, (1, length), generator=generator) for length in LENGTHS]
    outputs = [model(input_ids=window, attention_mask=torch.ones_like(window)) for window in windows]
    hidden = [
        model.base_model(input_ids=window, attention_mask=torch.ones_like(window)).last_hidden_state[0]
        for window in windows
    ]
    got = reduce(head, torch.cat(hidden), LENGTHS)
    for name, splade in SPLADES.items():
        want = torch.stack([plain_weights(output.logits[0], splade) for output in outputs])
        # The rounding of a sum grows with its terms: compared per token.
        terms = torch.tensor(LENGTHS)[:, None] if splade.strategy == "sum" else 1
        assert_equal_weights(dense(got[name]) / terms, want / terms)


@torch.inference_mode()
def test_windows_longer_than_a_chunk_are_reduced_across_chunks():
    model, lengths = make_model(), [2, 700, 1, 255, 257, 513, 5]
    hidden = draw_hidden(sum(lengths)) / 4
    got = reduce(MaskedLmHead.of(model), hidden, lengths)
    logits = [model.cls(window) for window in hidden.split(lengths)]
    for name in ("max False", "max True"):
        assert_equal_weights(dense(got[name]), torch.stack([plain_weights(one, SPLADES[name]) for one in logits]))
    for name in ("sum False", "sum True"):
        want = torch.stack([plain_weights(one.double(), SPLADES[name]) for one in logits])
        assert float(((dense(got[name]) - want) / torch.tensor(lengths)[:, None]).abs().max()) <= TOLERANCE


def test_many_windows_of_one_token_equal_one_window_at_a_time(backend):
    head, hidden = MaskedLmHead.of(make_model(vocab_size=30522)), draw_hidden(300)
    got = dense(reduce(head, hidden, [1] * 300)["max False"], 30522)
    alone = [dense(reduce(head, row[None], [1])["max False"], 30522) for row in hidden[::50]]
    assert_equal_weights(got[::50], torch.cat(alone))


def test_bits_of_a_window_do_not_depend_on_the_others(backend):
    head, hidden = MaskedLmHead.of(make_model()), draw_hidden(sum(LENGTHS))
    if not head.is_batch_invariant:
        assert backend == "torch"
        return
    together = reduce(head, hidden, LENGTHS)
    for window, rows in enumerate(hidden.split(LENGTHS)):
        alone = reduce(head, rows, [len(rows)])
        for name, rows_of_splade in together.items():
            assert torch.equal(dense(rows_of_splade)[window], dense(alone[name])[0])


def test_zero_windows_have_zero_rows():
    for rows in reduce(MaskedLmHead.of(make_model()), torch.zeros(0, 32), []).values():
        assert dense(rows).shape == (0, VOCABULARY)


@pytest.mark.parametrize("token", [0, 5])
def test_nan_of_a_token_is_kept_and_stays_in_its_window(token):
    head, hidden, lengths = MaskedLmHead.of(make_model()), draw_hidden(600), [20, 6, 574]
    want = reduce(head, hidden, lengths)
    hidden[20 + token, 3] = float("nan")
    for name, rows in reduce(head, hidden, lengths).items():
        weights, clean = dense(rows), dense(want[name])
        assert bool(weights[1].isnan().all())
        assert_equal_weights(weights[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_head_stays_in_float32_when_the_model_is_cast(dtype):
    model, hidden = make_model(), draw_hidden(64)
    head = MaskedLmHead.of(model)
    want = reduce(head, hidden.to(dtype).float(), [64])
    model.to(dtype)
    for name, rows in reduce(head, hidden.to(dtype), [64]).items():
        assert_equal_rows(rows, want[name])


def test_tied_weight_is_shared_if_torch_computes(backend):
    """A change of the embeddings changes the head; the compiled library has a copy."""
    model, hidden = make_model(), draw_hidden(8)
    head = MaskedLmHead.of(model)
    before = reduce(head, hidden, [8])["max False"]
    model.bert.embeddings.word_embeddings.weight.mul_(2)
    after = reduce(head, hidden, [8])["max False"]
    assert torch.equal(before.weights, after.weights) == (backend == "compiled")


def test_threads_get_the_rows_of_their_own_windows():
    head, inputs = MaskedLmHead.of(make_model()), draw_hidden(40 * 30).split(30)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda hidden: reduce(head, hidden, [10, 20])["max False"], inputs))
    for rows, hidden in zip(got, inputs, strict=True):
        assert_equal_rows(rows, reduce(head, hidden, [10, 20])["max False"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_logits_of_all_tokens_are_never_in_memory(strategy, backend):
    """4,096 tokens have 500 MB of logits."""
    code = f"""
import resource, torch
from tests.unit.encoder.test_masked_lm import MaskedLmHead, Splade, draw_hidden, make_model, reduce
{"torch.backends.cpu.get_cpu_capability = lambda: 'DEFAULT'" if backend == "torch" else ""}
head = MaskedLmHead.of(make_model(vocab_size=30522))
hidden, splades = draw_hidden(4096) - 0.5, dict(s=Splade({strategy!r}))
reduce(head, hidden[:8], [8], splades)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reduce(head, hidden, [1, 2048, *[64] * 31, 63], splades)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= 120e6


class Doubled(BertForMaskedLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * 2
        return output


class WithEmbeddings(BertForMaskedLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits + self.bert.embeddings(inputs["input_ids"]).sum()
        return output


class Summed(BertForMaskedLM):
    """Reads the other tokens of the text as well."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits + output.logits.mean(1, keepdim=True)
        return output


@pytest.mark.parametrize("changed", [Doubled, WithEmbeddings, Summed])
def test_head_that_does_more_than_layers_and_projection_is_refused(changed):
    model = make_model()
    model.__class__ = changed
    with pytest.raises(JobError, match=rf"masked-LM head of {changed.__name__} does more than .* `splade` is not"):
        check_masked_lm_head(model, MaskedLmHead.of(model), 128, token_types=False)


def test_head_without_a_linear_projection_is_refused():
    model = make_model()
    model.cls.predictions.decoder = torch.nn.Sequential(model.cls.predictions.decoder)
    with pytest.raises(JobError, match="BertForMaskedLM has no linear layer that projects to the vocabulary"):
        MaskedLmHead.of(model)


@pytest.mark.slow
def test_rows_of_a_real_checkpoint_equal_sentence_transformers(tmp_path):
    from sentence_transformers import SparseEncoder

    folder = splade_folder(tmp_path / "splade")
    texts, sparse_encoder = docstrings("transformers", 48), SparseEncoder(folder, device="cpu")
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    head = MaskedLmHead.of(model)
    with torch.inference_mode():
        hidden = [model.bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    rows = reduce(head, torch.cat(hidden), [len(one) for one in hidden], {"s": Splade("max")})["s"]
    want = [sparse_encoder.encode([text], convert_to_sparse_tensor=False)[0] for text in texts]
    got = dense(rows, BERT["vocab_size"])
    assert float((got - torch.stack(want)).abs().max()) <= TOLERANCE
    assert torch.equal(got > 0, torch.stack(want) > 0)
