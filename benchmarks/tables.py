"""The benchmark's rows as a table for people."""

from __future__ import annotations

from lexlip.evaluate.recall import CUTOFFS


def print_synthetic(rows: list[dict]) -> None:
    """Rows of one collection."""
    heads = ["qps", "p50 ms", "p99 ms", "MB", "recall@10", "faster", "smaller", "batch qps", "x product"]
    print("\n" + _line("", heads))
    for row in rows:
        print(_line(row["engine"], [*_speed(row), _cell(row["recall@10"], 4), *_ratios(row)]))
    _print_builds(rows)


def print_trained(rows: list[dict]) -> None:
    """Rows of several directions and collections, a table each."""
    recalls = [f"R@{cutoff}" for cutoff in CUTOFFS]
    heads = ["qps", "p50 ms", "p99 ms", "MB", *recalls, "faster", "smaller", "batch qps", "x product"]
    tables: dict[tuple, list[dict]] = {}
    for row in rows:
        tables.setdefault((row["direction"], row["distractors"]), []).append(row)
    for (direction, distractors), group in tables.items():
        queries = f"{group[0]['queries']:,} queries, the same for all"
        print(f"\n{direction}, {distractors:,} distractors, {queries}\n" + _line("", heads))
        for row in group:
            recall = [_cell(row[name], 2) for name in recalls]
            print(_line(row["engine"], [*_speed(row), *recall, *_ratios(row)]))
        _print_builds(group)
        _print_fewest(group)


def fewest_terms(rows: list[dict], most_lost: float = 1.0) -> tuple[dict, dict] | None:
    """Our rows, by exact search, of uncut vectors and of the fewest terms that lose at most `most_lost` points of R@1.

    Args:
        rows: of one direction and collection.

    Returns:
        Both rows, the same one twice where every cut loses more; None without a row of uncut vectors.
    """
    ours = [row for row in rows if "top_k" in row and row["engine"].startswith("lexlip") and "drop" not in row]
    uncut = next((row for row in ours if row["top_k"] is None), None)
    if uncut is None:
        return None
    enough = [row for row in ours if row["top_k"] and row["R@1 lost"] <= most_lost]
    return uncut, min(enough, key=lambda row: row["top_k"], default=uncut)


def _print_fewest(rows: list[dict]) -> None:
    pair = fewest_terms(rows)
    if pair is None:
        return
    uncut, row = pair
    ratios = [
        f"{row[name]:,.1f} times {what}"
        for name, what in (
            ("faster_than_flat", "faster than single flat queries"),
            ("batch_faster_than_product", "faster than batched products"),
            ("smaller_than_flat", "smaller"),
        )
        if row.get(name) is not None
    ]
    lost = f" ({row['R@1 lost']:.1f} ± {row['R@1 lost, error']:.1f} lost)" if row is not uncut else ""
    print(
        f"fewest terms within one point of R@1: {row['engine'].removeprefix('lexlip, ')}, R@1 {row['R@1']:.1f} of "
        f"{uncut['R@1']:.1f}{lost}; {', '.join(ratios)}"
    )


def _speed(row: dict) -> list[str]:
    return [_cell(row["qps"], 1), _cell(row["p50_ms"], 3), _cell(row["p99_ms"], 3), _cell(row["bytes"] / 1e6, 1)]


def _ratios(row: dict) -> list[str]:
    names = ("faster_than_flat", "smaller_than_flat", "batch_qps", "batch_faster_than_product")
    return [_cell(row[name], 1) for name in names]


def _print_builds(rows: list[dict]) -> None:
    for row in rows:
        if "build_s" in row:
            memory = f" with {row['build_memory_mb']:,.0f} MB" if "build_memory_mb" in row else ""
            opened = f", opened in {row['open_ms']:.1f} ms" if "open_ms" in row else ""
            print(
                f"{row['engine']}: built in {row['build_s']:.1f} s{memory}{opened}, "
                f"{row['bytes_per_document']:.2f} bytes a document"
            )


def _line(name: str, cells: list[str]) -> str:
    return f"{name:42}" + "".join(f"{cell:>11}" for cell in cells)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
