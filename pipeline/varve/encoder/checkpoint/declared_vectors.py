"""Decides what a checkpoint declares for one role: its modules, or the files of PyLate and Stanford's ColBERT.

Standard library only. Source of the rules: sentence-transformers 6.2, `encode`, `encode_query` and `encode_document`.
Invariant: a prompt is either declared or given by the user; nothing comes from a table of model names.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from varve.encoder.checkpoint.colbert_files import ColbertSettings, read_pylate, read_stanford
from varve.encoder.checkpoint.declaration import Declaration, TextRules
from varve.encoder.checkpoint.declared_text import ROLES, choose_prompt, read_expansion, read_max_tokens, read_prompts
from varve.encoder.checkpoint.head import Dense, Head, Normalize, Pooling, Splade, TokenMask
from varve.encoder.checkpoint.head_weights import find_weights
from varve.encoder.checkpoint.json_file import UnreadableFileError, read_json
from varve.encoder.checkpoint.module_files import MODULES, TOKENS, ModuleReader
from varve.encoder.checkpoint.small_files import OTHERS, JsonObject, SmallFiles
from varve.errors import JobError, one_line

SETTINGS = "config_sentence_transformers.json"
_STANFORD, _ARTIFACT = "HF_ColBERT", "artifact.metadata"
_MAX_BYTES = 2**24
_PASSAGES = ("passage", "corpus")
# Kind of the vectors → how sentence-transformers can compare them, its default first.
_SIMILARITIES = {
    "dense": ("cosine", "dot", "euclidean", "manhattan"),
    "sparse": ("dot", "cosine", "euclidean", "manhattan"),
    "late": ("maxsim", "meanmaxsim"),
}


@dataclass(frozen=True, slots=True)
class DeclaredVectors:
    """What was found in a checkpoint's folder.

    Attributes:
        body: folder of the encoder, relative to the root.
        declaration: None if the checkpoint declares nothing, or something that cannot be computed.
        problem: why what it declares cannot be computed; None without a problem.
    """

    body: str
    declaration: Declaration | None = None
    problem: str | None = None


def read_declared_vectors(root: Path, name: str, role: str, *, prompt: str | None = None) -> DeclaredVectors:
    """Read what a checkpoint declares.

    Args:
        root: folder of the checkpoint.
        name: `model.name`, for messages.
        role: of the job's texts: none, query or document.
        prompt: of the job, which replaces the declared one.

    Raises:
        JobError: the checkpoint does not define the role.
    """
    is_stanford = _STANFORD in _architectures(root)
    if not (root / MODULES).exists() and not is_stanford:
        _check_role(role, prompt, name, "it declares no prompts")
        return DeclaredVectors(body="")
    files = SmallFiles(root, name)
    reader = ModuleReader(files, role, late=is_stanford, text_defaults={})
    try:
        declaration = _read(reader)
    except JobError as e:
        return DeclaredVectors(reader.body or "", problem=str(e))
    except OSError as e:
        return DeclaredVectors(reader.body or "", problem=f"model.name: {name}: {one_line(e)}")
    if role != "none" and declaration.role == "none":
        _check_role(role, prompt, name, "it encodes queries and documents alike")
    return DeclaredVectors(declaration.body, declaration)


def _check_role(role: str, prompt: str | None, name: str, reason: str) -> None:
    """Refuse a role that a checkpoint does not define, unless the job has a prompt for it."""
    if role != "none" and prompt is None:
        msg = (
            f"model.role: {role} is not defined by {name}: {reason}. Write model.role: none, or, if its model card "
            f'names a text to put before each {role}, write it as model.prompt, for example model.prompt: "{role}: "'
        )
        raise JobError(msg)


def _read(reader: ModuleReader) -> Declaration:
    """The declaration; its role is none if the checkpoint makes no difference between roles."""
    files, role = reader.files, reader.role
    settings = files.read_if_exists(SETTINGS)
    colbert = read_pylate(settings)
    if (files.root / MODULES).exists():
        reader.late |= colbert.is_complete or settings.text("model_type") == "MultiVectorEncoder"
        reader.text_defaults = colbert.text
        reader.read_modules(_read_list(files))
    else:
        colbert = _read_stanford(reader)
    if colbert.is_complete:
        reader.mask = reader.mask or TokenMask(colbert.skipped_words if reader.task == "document" else ())
        reader.add_step(Normalize(), TOKENS, SETTINGS)
    prompts = read_prompts(settings)
    for marked, marker in colbert.markers.items():
        prompts[marked] = marker + prompts.get(marked, "").removeprefix(marker)
    distinguishes = reader.has_roles or reader.late or any(prompts.get(key) for key in ROLES)
    declaration = _assemble(reader, settings, choose_prompt(settings, prompts, role), tuple(colbert.markers.values()))
    if role == "document" and not declaration.text.prompt:
        passages = next(filter(None, map(prompts.get, _PASSAGES)), "")
        declaration = replace(declaration, passage_prompt=passages)
    return declaration if distinguishes else replace(declaration, role="none")


def _read_stanford(reader: ModuleReader) -> ColbertSettings:
    """The encoder and the projection of Stanford's ColBERT, which are in one file of weights."""
    files = reader.files
    metadata = files.read_if_exists(_ARTIFACT)
    settings = read_stanford(metadata)
    reader.body = reader.tokenizer = ""
    reader.text = JsonObject(_ARTIFACT, files.name, settings.text)
    weights = find_weights(files.root, "", files.name, "linear.weight")
    files.names.append(weights.file)
    out_features, in_features = weights.matrix("linear.weight")
    reader.add_step(Dense(weights.file, in_features, out_features, "identity", residual=False), TOKENS, "")
    return settings


def _assemble(reader: ModuleReader, settings: JsonObject, prompt: str, markers: tuple[str, ...]) -> Declaration:
    kind = _find_kind(reader)
    expansion = read_expansion(reader.text, reader.role)
    if expansion and kind != "late":
        reader.text.refuse("query_expansion", "none in a checkpoint with one vector per text")
    similarity = (settings.text("similarity_fn_name") or "").lower()
    return Declaration(
        body=reader.body or "",
        tokenizer=reader.tokenizer or "",
        head=Head(
            kind=kind,
            token_steps=tuple(reader.token_steps),
            pooling=reader.pooling,
            row_steps=tuple(reader.row_steps),
            mask=reader.mask or TokenMask(),
            token_pooling=reader.token_pooling,
            max_active_dims=settings.count("max_active_dims") if kind == "sparse" else None,
        ),
        text=TextRules(
            prompt=prompt,
            max_tokens=read_max_tokens(reader.text, reader.role, expansion),
            lower_case=reader.text.flag("do_lower_case"),
            markers=markers,
            expansion=expansion,
        ),
        role=reader.role,
        similarity=similarity if similarity in _SIMILARITIES[kind] else _SIMILARITIES[kind][0],
        files=tuple(dict.fromkeys(reader.files.names)),
    )


def _find_kind(reader: ModuleReader) -> Literal["dense", "sparse", "late"]:
    is_masked_lm = reader.masked_lm and not isinstance(reader.pooling, Splade)
    if reader.body is None or reader.tokenizer is None or is_masked_lm or not (reader.late or reader.pooling):
        problem = f"{MODULES} declares no vector: it lacks a Transformer, or a pooling of its tokens"
        reader.files.refuse(problem, OTHERS)
    if reader.late:
        return "late"
    return "dense" if isinstance(reader.pooling, Pooling) else "sparse"


def _architectures(root: Path) -> list[Any]:
    try:
        config = read_json(root / "config.json", _MAX_BYTES)
    except UnreadableFileError:
        return []
    architectures = config.get("architectures") if isinstance(config, dict) else None
    return architectures if isinstance(architectures, list) else []


def _read_list(files: SmallFiles) -> list[Any]:
    """The list of modules.json."""
    try:
        content = read_json(files.root / MODULES, _MAX_BYTES)
    except UnreadableFileError as e:
        files.refuse(f"{MODULES} {e}")
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        files.refuse(f"{MODULES} is not a JSON list of modules")
    files.names.append(MODULES)
    return content
