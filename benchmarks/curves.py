"""Curves of the trained run as PNG and SVG: recall over speed, recall over size, and how common terms are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from trained_set import TrainedSet

_MARKERS = "s^vD"  # a colour comes again every ten rows


def frequencies(data: TrainedSet, distractors: dict[str, int]) -> dict[str, np.ndarray]:
    """Of each kind, the fraction of documents that each term is in, most common first."""
    result = {}
    for kind, count in distractors.items():
        counts, documents = np.zeros(0, np.int64), 0
        for rows in data.rows(kind, count):
            batch = np.bincount(rows.terms, minlength=len(counts))
            batch[: len(counts)] += counts
            counts, documents = batch, documents + len(rows)
        result[kind] = np.sort(counts[counts > 0])[::-1] / documents
    return result


def write_curves(rows: list[dict], fractions: dict[str, np.ndarray], folder: Path) -> list[str]:
    """Write all curves, and the document frequencies as text.

    Returns:
        Lines about what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for kind, of_term in fractions.items():
        np.savetxt(folder / f"document_frequencies_{kind}.txt", of_term, fmt="%.6g")
        ranks = [rank for rank in (1, 10, 100, 1000, 10_000) if rank <= len(of_term)]
        named = ", ".join(f"term {rank:,}: {of_term[rank - 1]:.2%}" for rank in ranks)
        lines.append(f"{kind}: {len(of_term):,} terms in use; fraction of documents with {named}")
    try:
        import matplotlib
    except ImportError:
        return [*lines, "no curves: pip install matplotlib"]
    matplotlib.use("Agg")
    most = max(row["distractors"] for row in rows)
    for name, key, label in (("speed", "qps", "queries per second, one thread"), ("size", "bytes", "bytes on disk")):
        lines.append(_scatter([row for row in rows if row["distractors"] == most], key, label, folder / name, most))
    lines.append(_frequency_curve(fractions, folder / "document_frequencies"))
    return lines


def _scatter(rows: list[dict], key: str, label: str, stem: Path, distractors: int) -> str:
    import matplotlib.pyplot as plt

    directions = sorted({row["direction"] for row in rows}, reverse=True)
    figure, axes = plt.subplots(1, len(directions), figsize=(6.4 * len(directions), 6.4), squeeze=False)
    for axis, direction in zip(axes[0], directions):
        group = [row for row in rows if row["direction"] == direction]
        ours = [row for row in group if row["engine"].startswith("lexlip") and "drop" not in row]
        ours.sort(key=lambda row: row["top_k"] or np.inf)
        axis.plot([row[key] for row in ours], [row["R@1"] for row in ours], "o-", label="lexlip, by terms kept")
        for row in ours:
            text = str(row["top_k"] or "all")
            axis.annotate(text, (row[key], row["R@1"]), textcoords="offset points", xytext=(4, 4), fontsize=8)
        others = [row for row in group if row not in ours and not row["engine"].startswith("bm25s")]  # it has captions
        for number, row in enumerate(others):
            axis.plot(row[key], row["R@1"], _MARKERS[number // 10 % len(_MARKERS)], label=row["engine"])
        axis.set(xscale="log", xlabel=label, ylabel="R@1, %", title=f"{direction}, {distractors:,} distractors")
        axis.set_ylim(bottom=0)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return _save(figure, stem)


def _frequency_curve(fractions: dict[str, np.ndarray], stem: Path) -> str:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.8))
    for kind, of_term in fractions.items():
        axis.loglog(np.arange(1, len(of_term) + 1), of_term, label=kind)
    axis.set(xlabel="term, most common first", ylabel="fraction of documents with it")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()
    return _save(figure, stem)


def _save(figure, stem: Path) -> str:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150)
    plt.close(figure)
    return f"{stem}.png, {stem}.svg"
