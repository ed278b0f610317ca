"""Run files measured by ir_measures, and two of them compared by ranx.

What image-text retrieval calls R@k is a hit rate: whether any right document is among the first k. Information
retrieval's recall is the fraction of the right documents that are. For a caption with its one image they are equal; for
an image with five captions they are not, so they have names of their own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lexlip.errors import UserError
from lexlip_data.errors import one_line
from lexlip_data.sources.kinds import require_text

CUTOFFS = (1, 5, 10)
NAMES = {  # ours -> ir_measures'
    **{f"hit_rate@{k}": f"Success@{k}" for k in CUTOFFS},
    **{f"recall@{k}": f"R@{k}" for k in CUTOFFS},
    "nDCG@10": "nDCG@10",
    "RR@10": "RR@10",
}
MAX_P = 0.05


def evaluate_run(run: Path, qrels: Path, measures: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Each measure of each query of the qrels, in the order of their ids; a query that the run lacks has 0.

    Args:
        measures: names in `NAMES`, or as ir_measures has them; none: `NAMES`.

    Raises:
        UserError: ir_measures is not installed, an unknown measure, a file that is none, no common query.
    """
    library = _needed("ir_measures", "ir-measures")
    names = list(measures) or list(NAMES)
    try:
        parsed = {name: library.parse_measure(NAMES.get(name, name)) for name in names}
    except (NameError, ValueError, SyntaxError) as error:
        raise UserError(
            f"no measure {one_line(names)}: {one_line(error)}; ir_measures and {', '.join(NAMES)}"
        ) from None
    right = _read(library.read_trec_qrels, qrels, "a file of qrels: lines of QUERY 0 DOCUMENT RELEVANCE")
    found = _read(library.read_trec_run, run, "a run file: lines of QUERY Q0 DOCUMENT RANK SCORE NAME")
    queries = sorted({line.query_id for line in right})
    if not {line.query_id for line in found} & set(queries):
        raise UserError(f"{run} has no query of {qrels}; check that both are of one data set and direction")
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


def _read(read: Any, path: Path, wanted: str) -> list:
    require_text(path, wanted, json=True)
    try:
        with open(path, encoding="utf-8") as file:
            return list(read(file))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not {wanted} ({one_line(error)})") from error


def _needed(module: str, package: str) -> Any:
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(
            f'{package} is needed for this: pip install "lexlip[eval]", or pip install {package}'
        ) from error
