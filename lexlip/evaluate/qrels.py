"""What belongs together, by a data set's own pairs, in TREC's format; and its captions as queries for `lexlip search`.

    lexlip qrels --arrow coco_caption_karpathy_test.arrow --out t2i.qrels --queries captions.tsv

Ids are those of `lexlip encode`: images by their id, captions by IMAGE#NUMBER. A line is `query 0 document 1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lexlip.errors import UserError
from lexlip.index.run_files import trec_id
from lexlip.utils.files import write_whole
from lexlip_data.errors import one_line
from lexlip_data.sources.skipped import Skipped


def write_qrels(captions: Iterable[tuple[str, str] | Skipped], out: Path, direction: str = "t2i") -> tuple[int, int]:
    """Write the right documents of each query.

    Args:
        captions: id and text of each, as `lexlip.encode.tables` gives them with what="texts".
        direction: "t2i", a caption looks for its image; "i2t", an image for its captions.

    Returns:
        Numbers of queries and of lines.

    Raises:
        UserError: a caption that cannot be used, or none.
    """
    queries, lines = set[str](), []
    for item in captions:
        if isinstance(item, Skipped):
            raise UserError(f"{item}: a test leaves nothing out; repair or remove it")
        caption = trec_id(item[0])
        image = trec_id(item[0].rpartition("#")[0])
        query, document = (caption, image) if direction == "t2i" else (image, caption)
        queries.add(query)
        lines.append(f"{query} 0 {document} 1\n")
    if not lines:
        raise UserError("no caption, so there is nothing to look for")
    write_whole(out, lambda file: file.write("".join(lines).encode()))
    return len(queries), len(lines)


def write_queries(captions: Iterable[tuple[str, str] | Skipped], out: Path) -> None:
    """Write ID<TAB>TEXT of each caption; line breaks and TABs in a text become spaces."""
    pairs = [item for item in captions if not isinstance(item, Skipped)]
    if bad := next((id for id, _ in pairs if "\t" in id or "\n" in id), None):
        raise UserError(f"the id {one_line(bad)!r} holds a TAB or a line break, which a file of queries cannot")
    text = "".join(f"{id}\t{' '.join(text.split())}\n" for id, text in pairs)
    write_whole(out, lambda file: file.write(text.encode()))
