"""Roles that a checkpoint defines, and the refusal of others."""

import pytest

from tests.declarations import declaration, read, write_modules
from varve.encoder.checkpoint.declared_vectors import DeclaredVectors
from varve.errors import JobError


@pytest.mark.parametrize("role", ["query", "document"])
def test_role_of_a_checkpoint_that_declares_nothing_is_refused_with_what_to_write(role, tiny):
    message = (
        f"model.role: {role} is not defined by the-model: it declares no prompts. Write model.role: none, or, if its "
        f"model card names a text to put before each {role}, write it as model.prompt, for example "
        f'model.prompt: "{role}: "'
    )
    with pytest.raises(JobError) as error:
        read(tiny("bert"), role)
    assert str(error.value) == message
    assert read(tiny("bert"), role, prompt="q: ") == DeclaredVectors(body="")


@pytest.mark.parametrize("shape", ["the real MiniLM", "pooling mean", "SPLADE max"])
def test_role_of_a_checkpoint_that_makes_no_difference_needs_a_prompt(shape, declared):
    with pytest.raises(JobError, match="role: query is not defined by the-model: it encodes queries and documents"):
        read(declared(shape), "query")
    found = declaration(declared(shape), "query", "q: ")
    assert found == declaration(declared(shape))


@pytest.mark.parametrize("prompts", [{"query": "q: "}, {"document": "d: "}, {"query": "q: ", "document": ""}])
def test_any_prompt_of_a_role_defines_both_roles(prompts, tmp_path):
    folder = write_modules(tmp_path, ("Pooling", {"pooling_mode": "mean"}), prompts=prompts)
    for role in ("query", "document"):
        assert declaration(folder, role).text.prompt == prompts.get(role, "")


@pytest.mark.parametrize("prompts", [{}, {"query": "", "document": None}, {"clustering": "c: "}, None])
def test_other_prompts_define_no_role(prompts, tmp_path):
    folder = write_modules(tmp_path, ("Pooling", {"pooling_mode": "mean"}), prompts=prompts)
    with pytest.raises(JobError, match="role: document is not defined"):
        read(folder, "document")
