"""What a checkpoint declares about its vectors: the modules of sentence-transformers, as frozen types without weights.

Standard library only; `declared_vectors.py` reads a declaration, the encoder and the canary apply it, each in its own
code. Invariants: a declaration is complete (a module or value that is not represented here is refused when it is read),
and it is for one role. Paths are relative to the checkpoint's root folder.
"""

from dataclasses import dataclass

from varve.encoder.checkpoint.head import Head


@dataclass(frozen=True, slots=True)
class Expansion:
    """Tokens that are added to a short query. Their vectors are kept; other tokens do not attend to them by default."""

    fixed: bool  # also cut queries at `length`
    length: int
    attend: bool
    token: str | None  # None: the mask token, else the end token

    def __str__(self) -> str:
        return f"expanded to {self.length} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How the texts of a role become tokens.

    Attributes:
        prompt: text before each text.
        max_tokens: at which texts are cut; None: the tokenizer's or the model's maximum.
        lower_case: texts are converted to lower case.
        markers: words that must be one token, if the vocabulary has them.
        expansion: of queries, late interaction only.
    """

    prompt: str = ""
    max_tokens: int | None = None
    lower_case: bool = False
    markers: tuple[str, ...] = ()
    expansion: Expansion | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """The vectors that a checkpoint declares for one role.

    Attributes:
        body: folder of the encoder.
        tokenizer: folder of the tokenizer.
        head: what is computed from the token vectors.
        text: how texts become tokens.
        role: none, query or document.
        similarity: how two vectors are compared: cosine, dot, euclidean, manhattan or maxsim.
        files: all files that were read, and those with the weights of heads.
        passage_prompt: declared for passages or a corpus, which sentence-transformers does not use for documents; only
            if the role is document and has no prompt.
    """

    body: str
    tokenizer: str
    head: Head
    text: TextRules
    role: str
    similarity: str
    files: tuple[str, ...]
    passage_prompt: str = ""

    def describe(self, max_tokens: int, prompt: str) -> str:
        """Describe the declaration in one line.

        Args:
            max_tokens: at which the job cuts texts.
            prompt: that the job puts before texts.
        """
        expansion = [str(self.text.expansion)] if self.text.expansion else []
        steps = ["lower case"] if self.text.lower_case else []
        role = "" if self.role == "none" else f"{self.role} "
        details = [f"{role}prompt {prompt!r}"] if prompt else []
        details += [f"{max_tokens} tokens", *expansion, f"compared by {self.similarity}"]
        return "; ".join([" → ".join([*steps, *self.head.words]), *details])
