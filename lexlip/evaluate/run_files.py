"""Run files measured by ir_measures, and two of them compared by ranx.

What image-text retrieval calls R@k is a hit rate: whether any right document is among the first k. Information
retrieval's recall is the fraction of the right documents that are. For a caption with its one image they are equal; for
an image with five captions they are not, so they have names of their own here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lexlip.errors import UserError
from lexlip.evaluate.trec_files import read_qrels, read_run
from lexlip_data.errors import one_line

PREFIXES = {"hit_rate": "Success", "recall": "R"}  # ours -> ir_measures'
NAMES = (*(f"{name}@{k}" for name in PREFIXES for k in (1, 5, 10)), "nDCG@10", "RR@10")
MAX_P = 0.05
MAX_CUTOFF = 1_000_000


def evaluate_run(
    run: Path, qrels: Path, measures: Sequence[str] = (), note: Callable[[str], None] = lambda _: None
) -> dict[str, np.ndarray]:
    """Each measure of each query of the qrels, in the order of their ids; a query that the run lacks has 0.

    Args:
        measures: names in `NAMES`, with any cutoff, or as ir_measures has them; none: `NAMES`.
        note: gets a line for what lowers the numbers and may be an error: queries without a document, other ids.

    Raises:
        UserError: ir_measures is not installed, an unknown measure, a file or line that is none, no common query.
    """
    library = _needed("ir_measures", "ir-measures")
    names = list(measures) or list(NAMES)
    try:
        parsed = {name: _measure(library, name) for name in names}
    except (NameError, ValueError, SyntaxError, AssertionError) as error:  # the last: a parameter
        raise UserError(
            f"no measure {one_line(names)}: {one_line(error)}; ir_measures' names, or {', '.join(NAMES)}"
        ) from None
    right, found = read_qrels(qrels), read_run(run)
    queries = sorted(right)
    if not found.keys() & right.keys():
        raise UserError(f"{run} has no query of {qrels}; check that both are of one data set and direction")
    if missing := len(right.keys() - found.keys()):
        note(f"{missing:,} of the {len(right):,} queries of {qrels} are not in {run}; they count as 0")
    if set().union(*right.values()).isdisjoint(set().union(*found.values())):
        note(f"no document of {qrels} is in {run}; check that ids are of one kind (lexlip qrels has lexlip encode's)")
    values = {name: dict.fromkeys(queries, 0.0) for name in names}
    of_measure: dict[str, list[str]] = {}
    for name, measure in parsed.items():
        of_measure.setdefault(str(measure), []).append(name)  # one may have two names: ours, and the library's
    for metric in library.iter_calc(list(parsed.values()), right, found):
        for name in of_measure[str(metric.measure)]:
            values[name][metric.query_id] = metric.value
    return {name: np.array([of_query[query] for query in queries]) for name, of_query in values.items()}


def compare(one: dict[str, np.ndarray], other: dict[str, np.ndarray], test: str = "fisher") -> dict[str, float]:
    """p value of each measure: how likely such a difference is where both are equally good.

    Args:
        one, other: of `evaluate_run`, of the same qrels.
        test: "fisher", a randomisation test with 1,000 permutations, or "student", the paired t-test.

    Raises:
        UserError: ranx is not installed.
    """
    _needed("ranx", "ranx")
    from ranx.statistical_tests.fisher_randomization_test import fisher_randomization_test
    from ranx.statistical_tests.paired_student_t_test import paired_student_t_test

    values = {}
    for name, scores in one.items():
        if (scores == other[name]).all():
            values[name] = 1.0  # a t-test of differences that are all 0 is not defined
        elif test == "student":
            values[name] = float(paired_student_t_test(scores, other[name], max_p=MAX_P)[0])
        else:
            values[name] = float(fisher_randomization_test(scores, other[name], max_p=MAX_P)[0])
    return values


def _measure(library: Any, name: str) -> Any:
    """Raises NameError, ValueError, SyntaxError or AssertionError where ir_measures has none such."""
    ours, at, cutoff = name.partition("@")
    measure = library.parse_measure(f"{PREFIXES[ours]}@{cutoff}" if at and ours in PREFIXES else name)
    measure.validate_params()
    if not 1 <= measure.params.get("cutoff", 1) <= MAX_CUTOFF:  # asked for 0, trec_eval ends its process
        raise ValueError(f"a cutoff is from 1 to {MAX_CUTOFF:,}")
    return measure


def _needed(module: str, package: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(
            f'{package} is needed for this: pip install "lexlip[eval]", or pip install {package}'
        ) from error
