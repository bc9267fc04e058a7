"""A tiny checkpoint with the files of BGE-M3, and its three outputs by the formulas of FlagEmbedding."""

from pathlib import Path

import numpy as np
import torch
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from tests.tiny_bodies import MAX_TOKENS, WIDTH, Bodies, save, shake


def bge_m3_folder(bodies: Bodies) -> Path:
    """A tiny checkpoint with the files of BGE-M3: a body of XLM-RoBERTa, and two heads in pickles of FlagEmbedding."""
    torch.manual_seed(0)
    tokenizer = _unigram_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    body = bodies.new_folder()
    shake(XLMRobertaModel(config)).save_pretrained(body)
    tokenizer.save_pretrained(body)
    modules = [Transformer(str(body), max_seq_length=MAX_TOKENS), Pooling(WIDTH, "cls"), Normalize()]
    folder = save(modules, bodies)
    for name, width in (("sparse", 1), ("colbert", WIDTH)):
        torch.save(shake(torch.nn.Linear(WIDTH, width)).state_dict(), folder / f"{name}_linear.pt")
    return folder


def _unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A small sentencepiece-like tokenizer with the special tokens of XLM-RoBERTa, at its ids."""
    special = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    words = ["the", "quick", "brown", "fox", "over", "lazy", "dog", "short", "text", "hello", "world", "nearly"]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyzTHA.,!?'();", *(f"▁{word}" for word in words)]
    scores = [(token, 0.0) for token in list(special.values())[:4]]
    scores += [(piece, -8.0 + len(piece)) for piece in dict.fromkeys(pieces)]
    scores.append((special["mask_token"], 0.0))
    backend = Tokenizer(models.Unigram(scores, unk_id=3))
    backend.normalizer = normalizers.Replace("  ", " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=128, cls_token="<s>", sep_token="</s>", **special
    )


@torch.inference_mode()
def bge_m3_vectors(folder: str, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dense vector (dims,), the sparse one (vocabulary,), and the late one (tokens - 1, dims) of a text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]
    sparse, colbert = (
        torch.load(Path(folder, f"{name}_linear.pt"), weights_only=True) for name in ("sparse", "colbert")
    )
    weights = torch.relu(hidden @ sparse["weight"][0] + sparse["bias"][0])
    largest = torch.zeros(len(tokenizer)).scatter_reduce(0, inputs["input_ids"][0], weights, "amax")
    largest[[0, 1, 2, 3]] = 0  # <s>, <pad>, </s> and <unk>
    late = normalize(hidden[1:] @ colbert["weight"].T + colbert["bias"], dim=-1)
    return normalize(hidden[0], dim=-1).numpy(), largest.numpy(), late.numpy()
