"""How the texts of a role become tokens: prompt, length and query expansion, as a checkpoint's files say.

Standard library only. Source of the rules: sentence-transformers 6.2, `Transformer.preprocess` and `encode_document`.
Invariant: nothing comes from a table of model names.
"""

from collections.abc import Mapping

from varve.encoder.checkpoint.declaration import Expansion
from varve.encoder.checkpoint.small_files import JsonObject

ROLES = ("query", "document")
_NO_LIMIT = 2**31  # tokenizers without a maximum length have 10**30


def read_prompts(settings: JsonObject) -> dict[str, str]:
    """Name → text of the declared prompts."""
    prompts = settings.mapping("prompts")
    return {name: prompts.text(name) or "" for name in prompts.content}


def choose_prompt(settings: JsonObject, prompts: Mapping[str, str], role: str) -> str:
    """The prompt of a role. A role's absent prompt is empty: it is not the default prompt.

    Raises:
        JobError: the default prompt does not exist.
    """
    name = settings.text("default_prompt_name") if role == "none" else role
    if role == "none" and name and name not in prompts:
        settings.refuse("default_prompt_name", f"one of the prompts, {', '.join(prompts) or 'but there are none'}")
    return prompts.get(name or "", "")


def read_expansion(text: JsonObject, role: str) -> Expansion | None:
    """Tokens added to queries.

    Args:
        text: of the Transformer.
        role: none, query or document.

    Raises:
        JobError: a value is not known.
    """
    values = text.mapping("query_expansion")
    if role != "query" or not values.content:
        return None
    strategy = values.choice("strategy", ("fixed", "min"), "")
    length = values.count("length")
    if not strategy or length is None:
        text.refuse("query_expansion", "a strategy, fixed or min, and a length")
    return Expansion(
        fixed=strategy == "fixed", length=length, attend=values.flag("attend"), token=values.text("token") or None
    )


def read_max_tokens(text: JsonObject, role: str, expansion: Expansion | None) -> int | None:
    """Tokens at which a text of a role is cut; None: the tokenizer's or the model's maximum."""
    limit = text.count("max_seq_length")
    if expansion and expansion.fixed:
        limit = expansion.length
    elif role in ROLES and (of_role := text.count(f"{role}_length")):
        limit = max(of_role, expansion.length if expansion else 0)
    return limit if limit and limit < _NO_LIMIT else None
