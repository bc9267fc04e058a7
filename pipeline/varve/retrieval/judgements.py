"""Judgements of relevance (qrels): which documents answer which question.

A file has one judgement a line, in columns that blanks or tabs separate: TREC's four, `question 0 document relevance`,
or three, `question document relevance`, with a header or without. A document with a blank in its id needs tabs.
Knows nothing of rankings.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from varve.errors import JobError
from varve.indexing.query_file import read_small_file

_EXPECTED = "expected `question document relevance`, or TREC's `question 0 document relevance`, where relevance is a "
_EXPECTED += "whole number"
_NUM_COLUMNS = (3, 4)


@dataclass(frozen=True, slots=True)
class Judgements:
    """question → document → relevance; 0 and less mean that it is not relevant."""

    of_question: Mapping[str, Mapping[str, int]]

    def relevant(self, question: str) -> dict[str, int]:
        """The relevant documents of a question, with their relevance."""
        return {document: grade for document, grade in self.of_question.get(question, {}).items() if grade > 0}


def read_judgements(address: str) -> Judgements:
    """Read a file of judgements.

    Raises:
        JobError: the file does not exist, or a line is not a judgement, or one document is judged twice for a question.
    """
    try:
        lines = read_small_file(address).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        msg = f"{address} is not text in UTF-8"
        raise JobError(msg) from e
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if number == 1 and len(columns) in _NUM_COLUMNS and not _is_number(columns[-1]):
            continue  # a header
        if len(columns) not in _NUM_COLUMNS or not _is_number(columns[-1]):
            msg = f"{PurePosixPath(address)}, line {number}: {line!r:.80}: {_EXPECTED}"
            raise JobError(msg)
        question, document, relevance = columns[0].strip(), columns[-2].strip(), int(columns[-1])
        if found[question].setdefault(document, relevance) != relevance:
            msg = f"{address}, line {number}: {document} has two relevances for question {question}"
            raise JobError(msg)
    if not found:
        msg = f"{address} holds no judgement: {_EXPECTED}"
        raise JobError(msg)
    return Judgements(found)


def _is_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
