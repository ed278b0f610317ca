"""Qrels and run files, every line checked: ir_measures takes a score of nan, and the last of two lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from lexlip.errors import UserError
from lexlip_data.errors import one_line
from lexlip_data.sources.kinds import require_text

MAX_RELEVANCE = 1_000_000  # trec_eval counts documents per relevance, in memory
_QRELS = "a file of qrels: lines of QUERY 0 DOCUMENT RELEVANCE"
_RUN = "a run file: lines of QUERY Q0 DOCUMENT RANK SCORE NAME"


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Relevance by query and document.

    Raises:
        UserError: a line that is none, two that disagree, no relevant document, text that is not UTF-8.
        DataError: a file of another kind.
    """
    right: dict[str, dict[str, int]] = {}
    for where, (query, _, document, text) in _lines(path, _QRELS, 4):
        try:
            relevance = int(text)
        except ValueError:
            raise UserError(
                f"{where}: the relevance {one_line(text, 100)!r} is no whole number; not {_QRELS}"
            ) from None
        if abs(relevance) > MAX_RELEVANCE:
            raise UserError(f"{where}: the relevance {one_line(text, 100)} is more than {MAX_RELEVANCE:,}")
        if right.setdefault(query, {}).setdefault(document, relevance) != relevance:
            raise UserError(f"{where}: {_pair(query, document)} came before with another relevance")
    if not any(relevance > 0 for documents in right.values() for relevance in documents.values()):
        raise UserError(f"{path}: no line with a relevance above 0, so there is nothing to find")
    return right


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Score by query and document; ranks are not read, as by trec_eval.

    Raises:
        UserError: a line that is none, a document that comes twice for a query, text that is not UTF-8.
        DataError: a file of another kind.
    """
    found: dict[str, dict[str, float]] = {}
    for where, (query, _, document, _, text, _) in _lines(path, _RUN, 6):
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: the score {one_line(text, 100)!r} is no finite number; not {_RUN}")
        documents = found.setdefault(query, {})
        if document in documents:
            raise UserError(f"{where}: {_pair(query, document)} came before")
        documents[document] = score
    return found


def _lines(path: Path, wanted: str, fields: int) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, and its fields; blank lines are passed over."""
    require_text(path, wanted, json=True)
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                parts = line.split()
                if parts and len(parts) != fields:
                    shown = one_line(line.strip(), 100)
                    raise UserError(f"{path}, line {number}: {shown!r} has {len(parts)} fields; not {wanted}")
                if parts:
                    yield f"{path}, line {number}", parts
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not {wanted} ({one_line(error)})") from error


def _pair(query: str, document: str) -> str:
    return f"document {one_line(document, 100)!r} of query {one_line(query, 100)!r}"
