"""What is read from the small files of checkpoints that declare their vectors."""

import json
import shutil
import string

import pytest

from tests.declarations import change, declaration, read, write_modules
from tests.declared_checkpoints import CLUSTERED, SHAPES
from tests.tiny_bodies import VOCABULARY
from varve.encoder.checkpoint.declaration import Expansion, TextRules
from varve.encoder.checkpoint.declared_vectors import DeclaredVectors
from varve.encoder.checkpoint.head import Normalize, Pooling, TokenMask

PUNCTUATION = tuple(string.punctuation)
SPLADE = "masked-LM head → log1p(relu) → "
COLBERT = "Dense 32→8 → length 1"
DOCUMENT, QUERY = f"token vectors (without 32 skipped words) → {COLBERT}", f"token vectors (all tokens) → {COLBERT}"
WORDS = {
    "the real MiniLM": {"none": "mean → length 1"},
    **{f"pooling {mode}": {"none": mode} for mode in ("cls", "max", "mean", "weightedmean", "lasttoken")},
    "pooling mean_sqrt_len_tokens": {"none": "mean_sqrt_len_tokens"},
    "pooling mean, cls and max concatenated": {"none": "mean + cls + max"},
    "prompts without a default": {
        "none": "mean → length 1",
        "query": "mean → length 1; query prompt 'query: '",
        "document": "mean → length 1",
    },
    "prompts with a default": {
        "none": "mean → length 1; prompt 'passage: '",
        "query": "mean → length 1; query prompt 'query: '",
        "document": "mean → length 1",
    },
    **{
        f"pooling {mode} without the prompt": {
            "none": f"{mode} without the prompt",
            "query": f"{mode} without the prompt; query prompt 'Represent the question: '",
            "document": f"{mode} without the prompt; document prompt 'Represent: '",
        }
        for mode in ("mean", "weightedmean", "cls", "max")
    },
    "two Dense, LayerNorm and Normalize": {"none": "mean → Dense 32→48 tanh → Dense 48→16 → LayerNorm → length 1"},
    "residual Dense": {"none": "mean → Dense 32→16 gelu residual"},
    "lower case": {"none": "lower case → mean"},
    "older keys of a Pooling": {"none": "cls + mean"},
    "Router with two bodies": {
        "none": "mean → length 1",
        "query": "cls → length 1",
        "document": "mean → length 1",
    },
    "SPLADE max": {"none": f"{SPLADE}max"},
    "the real SPLADE": {"none": f"{SPLADE}max"},
    "SPLADE sum": {"none": f"{SPLADE}sum"},
    "SPLADE max of log1p twice": {"none": "masked-LM head → log1p(log1p(relu)) → max"},
    "SPLADE with max_active_dims": {"none": f"{SPLADE}max → the 20 largest weights"},
    "SPLADE without inference for queries": {
        "none": "masked-LM head → log1p(log1p(relu)) → max",
        "query": "fixed weights of the tokens",
        "document": "masked-LM head → log1p(log1p(relu)) → max",
    },
    "MultiVectorEncoder": {
        "none": DOCUMENT,
        "query": f"{QUERY}; query prompt '[Q] '",
        "document": f"{DOCUMENT}; document prompt '[D] '",
    },
    "MultiVectorEncoder with attended expansion": {"none": QUERY, "query": QUERY, "document": QUERY},
    **{
        shape: {
            "none": DOCUMENT,
            "query": f"{QUERY}; query prompt {query!r}",
            "document": f"{DOCUMENT}; document prompt {document!r}",
        }
        for shape, query, document in (
            ("PyLate with expansion", "[unused0] ", "[unused1] "),
            ("PyLate without expansion", "[unused0] ", "[unused1] "),
            ("PyLate with markers outside of the vocabulary", "[Q] ", "[D] "),
            ("Stanford's ColBERT", "[unused0] ", "[unused1] "),
        )
    },
    CLUSTERED: {
        "none": f"{DOCUMENT} → clusters of 2 tokens",
        "query": QUERY,
        "document": f"{DOCUMENT} → clusters of 2 tokens",
    },
}
FIXED = Expansion(fixed=True, length=24, attend=False, token=None)
UNUSED = ("[unused0] ", "[unused1] ")
TEXT_RULES = {
    ("the real MiniLM", "none"): TextRules(max_tokens=256),
    ("pooling mean", "none"): TextRules(),
    ("prompts with a default", "none"): TextRules(prompt="passage: "),
    ("lower case", "none"): TextRules(lower_case=True),
    ("MultiVectorEncoder", "none"): TextRules(),
    ("MultiVectorEncoder", "document"): TextRules(prompt="[D] ", max_tokens=48),
    ("MultiVectorEncoder with attended expansion", "query"): TextRules(
        expansion=Expansion(fixed=False, length=16, attend=True, token=None)
    ),
    ("PyLate with expansion", "none"): TextRules(max_tokens=63, markers=UNUSED),
    ("PyLate with expansion", "query"): TextRules(prompt="[unused0] ", max_tokens=24, markers=UNUSED, expansion=FIXED),
    ("PyLate with expansion", "document"): TextRules(prompt="[unused1] ", max_tokens=40, markers=UNUSED),
    ("PyLate without expansion", "query"): TextRules(prompt="[unused0] ", max_tokens=24, markers=UNUSED),
    ("Stanford's ColBERT", "query"): TextRules(prompt="[unused0] ", max_tokens=24, markers=UNUSED, expansion=FIXED),
    ("Stanford's ColBERT", "document"): TextRules(prompt="[unused1] ", max_tokens=40, markers=UNUSED),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_described_in_words_for_each_role(shape, declared):
    folder = declared(shape)
    words = {}
    for role in SHAPES[shape].roles:
        found = declaration(folder, role)
        words[role] = found.describe(64, found.text.prompt).partition("; 64 tokens")[0]
        assert found.role == role
    assert words == WORDS[shape]


@pytest.mark.parametrize(("shape", "role"), TEXT_RULES)
def test_rules_for_texts_are_read_for_each_role(shape, role, declared):
    assert declaration(declared(shape), role).text == TEXT_RULES[shape, role]


def test_end_of_the_description_names_length_expansion_and_similarity(declared):
    late, sparse, dense = (
        declaration(declared(shape), role).describe(24, "x ")
        for shape, role in (("PyLate with expansion", "query"), ("SPLADE max", "none"), ("pooling mean", "none"))
    )
    assert late.endswith("; query prompt 'x '; 24 tokens; expanded to 24 tokens; compared by maxsim")
    assert sparse.endswith("; prompt 'x '; 24 tokens; compared by dot")
    assert dense.endswith("; prompt 'x '; 24 tokens; compared by cosine")


def test_similarity_is_the_declared_one_where_sentence_transformers_has_it(tmp_path):
    folder = write_modules(tmp_path, ("Pooling", {"pooling_mode": "mean"}), similarity_fn_name="dot")
    assert declaration(folder).similarity == "dot"
    change(folder / "config_sentence_transformers.json", similarity_fn_name="MaxSim")
    assert declaration(folder).similarity == "cosine"


def test_folders_of_a_router_are_those_of_the_role(declared):
    folder = declared("Router with two bodies")
    assert declaration(folder, "query").body == declaration(folder, "query").tokenizer == "query_0_Transformer"
    assert declaration(folder, "none").body == declaration(folder, "document").body == "document_0_Transformer"


def test_layers_of_a_role_without_encoder_come_from_the_other_role(declared):
    found = declaration(declared("SPLADE without inference for queries"), "query")
    assert (found.body, found.tokenizer) == ("document_0_Transformer", "query_0_SparseStaticEmbedding")
    assert found.head.pooling.file == "query_0_SparseStaticEmbedding/model.safetensors"
    assert found.head.pooling.vocab_size == VOCABULARY


def test_files_of_all_modules_and_their_weights_are_listed(declared):
    found = declaration(declared("two Dense, LayerNorm and Normalize"))
    assert set(found.files) == {
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Dense/config.json",
        "3_Dense/model.safetensors",
        "4_LayerNorm/config.json",
        "4_LayerNorm/model.safetensors",
        "5_Normalize/config.json",
    }
    assert declaration(declared("Stanford's ColBERT")).files == (
        "artifact.metadata",
        "model.safetensors",
    )
    assert "query_0_SparseStaticEmbedding/model.safetensors" in (
        declaration(declared("SPLADE without inference for queries"), "query").files
    )


def test_mask_of_late_interaction_skips_words_of_documents_only(declared):
    folder = declared("MultiVectorEncoder")
    assert declaration(folder, "document").head.mask == declaration(folder).head.mask == TokenMask(PUNCTUATION)
    assert declaration(folder, "query").head.mask == TokenMask()


def test_mask_keeps_only_some_tokens_of_documents_and_skips_words_of_its_tasks(tmp_path):
    mask = {"skiplist_words": ["the"], "skiplist_tasks": ["query"], "keep_only_token_ids": [7, 8]}
    folder = write_modules(tmp_path, ("MultiVectorMask", mask), model_type="MultiVectorEncoder")
    assert declaration(folder, "document").head.mask == TokenMask((), (7, 8))
    assert declaration(folder, "query").head.mask == TokenMask(("the",), ())


def test_options_of_token_pooling_and_their_defaults_are_read(tmp_path, declared):
    pooling = declaration(declared(CLUSTERED), "document").head.token_pooling
    assert (pooling.factor, pooling.protected, pooling.normalize) == (2.0, 1, True)
    options = {"pool_factor": 1.5, "num_protected_tokens": 0, "tasks": ["query"]}
    folder = write_modules(tmp_path, ("HierarchicalTokenPooling", options), model_type="MultiVectorEncoder")
    pooling = declaration(folder, "query").head.token_pooling
    assert (pooling.factor, pooling.protected, pooling.normalize) == (1.5, 0, False)
    assert declaration(folder, "document").head.token_pooling is None


def test_files_of_pylate_without_a_type_of_model_are_read_as_late_interaction(declared, tmp_path):
    folder = shutil.copytree(declared("PyLate with expansion"), tmp_path / "model")
    before = declaration(folder, "document")
    change(folder / "config_sentence_transformers.json", model_type=...)
    assert declaration(folder, "document") == before


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"query_length": ..., "document_length": ...}, (32, 63)),
        ({"query_expansion": {"strategy": "min", "length": 9, "attend": True}}, (24, 40)),
        ({"query_expansion": None, "query_length": 11}, (11, 40)),
        ({"skiplist_words": ...}, (24, 40)),
    ],
)
def test_lengths_of_pylate_have_the_defaults_of_sentence_transformers(settings, expected, declared, tmp_path):
    folder = shutil.copytree(declared("PyLate with expansion"), tmp_path / "model")
    change(folder / "config_sentence_transformers.json", **settings)
    query, document = declaration(folder, "query"), declaration(folder, "document")
    assert (query.text.max_tokens, document.text.max_tokens) == expected
    assert document.head.mask == TokenMask(PUNCTUATION)


def test_keys_of_the_transformer_win_over_those_of_pylate(declared, tmp_path):
    folder = shutil.copytree(declared("PyLate with expansion"), tmp_path / "model")
    change(folder / "sentence_bert_config.json", document_length=33, query_expansion=None)
    assert declaration(folder, "document").text.max_tokens == 33
    assert declaration(folder, "query").text.expansion is None


def test_stanford_files_without_metadata_have_its_defaults(declared, tmp_path):
    folder = shutil.copytree(declared("Stanford's ColBERT"), tmp_path / "model")
    (folder / "artifact.metadata").unlink()
    text = declaration(folder, "query").text
    assert text == TextRules(
        prompt="[unused0] ", max_tokens=32, markers=UNUSED, expansion=Expansion(True, 32, attend=False, token=None)
    )
    assert declaration(folder, "document").text.max_tokens is None
    assert declaration(folder, "document").head.mask == TokenMask(PUNCTUATION)


def test_older_layout_with_subfolders_and_options_of_modules_is_read(tmp_path):
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    entries = [
        {
            "idx": place,
            "name": str(place),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
            "kwargs": ["task"],
        }
        for place, (path, kind) in enumerate(kinds.items())
    ]
    for path in kinds:
        (tmp_path / path).mkdir()
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "0_Transformer/sentence_xlm-roberta_config.json").write_text(
        '{"max_seq_length": 77, "do_lower_case": true}'
    )
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_lasttoken": true, "pooling_mode_max_tokens": true}')
    found = declaration(tmp_path)
    assert (found.body, found.tokenizer) == ("0_Transformer", "0_Transformer")
    assert found.text == TextRules(max_tokens=77, lower_case=True)
    assert found.head.pooling == Pooling(("max", "lasttoken"), include_prompt=True)
    assert found.head.row_steps == (Normalize(),)


def test_pooling_without_a_mode_is_the_mean(tmp_path):
    folder = write_modules(tmp_path, ("Pooling", {"word_embedding_dimension": 32}))
    assert declaration(folder).head.pooling == Pooling(("mean",), include_prompt=True)


def test_length_of_a_tokenizer_without_a_maximum_is_no_limit(tmp_path):
    folder = write_modules(tmp_path, ("Pooling", {"pooling_mode": "cls"}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10**30}))
    assert declaration(folder).text.max_tokens is None


def test_checkpoint_without_modules_declares_nothing(tiny):
    assert read(tiny("bert")) == DeclaredVectors(body="")
