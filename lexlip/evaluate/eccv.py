"""ECCV Caption (Chun et al., ECCV 2022) and Crisscrossed Captions (Parekh et al., EACL 2021) on COCO's 5K test.

COCO knows one image per caption, but many others fit too; these add the positives that people found. The package
`eccv-caption` holds them and computes the numbers; here are the rankings that it asks for. It knows captions and images
by COCO's own numbers, which the converters keep as `caption_id` and `cocoid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.evaluate.recall import BLOCK_NUMBERS, DENSE_BLOCK_NUMBERS, SparseVectors
from lexlip_data.sources.source import Source, hash_id

RANKED = 100  # items per query; no query has more than 48 positives


class CocoIds:
    """COCO's numbers of a test split.

    Args:
        sources: of the split, in the order of its captions.

    Raises:
        ConfigError: the package is not installed, or the data do not say the numbers, or not of all that it asks for.
    """

    def __init__(self, sources: Sequence[Source]):
        try:
            from eccv_caption import Metrics
        except ImportError as error:
            raise ConfigError("eccv=True needs eccv-caption: pip install eccv-caption ujson") from error
        self.metrics: Any = Metrics()
        self.images: dict[int, int] = {}  # `hash_id` -> cocoid
        captions: list[int] = []  # caption ids in the order of the split
        for source in sources:
            for i in range(len(source)):
                cocoid, ids = source.coco_ids(i)
                if not cocoid.isdigit() or len(ids) != source.caption_counts[i] or not all(map(str.isdigit, ids)):
                    raise ConfigError(
                        f"eccv=True: {source.where(i)} has no numbers of COCO (cocoid, caption_id); convert Karpathy's "
                        "dataset_coco.json again: datasets/convert.py karpathy --name coco"
                    )
                self.images[hash_id(source.name, source.image_id(i))] = int(cocoid)
                captions += map(int, ids)
        self.captions = np.array(captions, np.int64)
        asked = {"caption": set(self.metrics.coco_gts["t2i"]), "image": set(self.metrics.coco_gts["i2t"])}
        for kind, there in (("caption", set(captions)), ("image", set(self.images.values()))):
            if missing := asked[kind] - there:
                raise ConfigError(
                    f"eccv=True: {len(missing):,} of the {len(asked[kind]):,} {kind}s that it asks for are not in the "
                    f"test split, such as {min(missing)}; it is made for COCO's Karpathy test split of 5,000 images"
                )


def eccv_metrics(images: SparseVectors, texts: SparseVectors, ids: CocoIds) -> dict[str, dict[str, float]]:
    """mAP@R, R-Precision and R@1 of ECCV Caption, R@1 of CxC and of COCO 5K, both directions, in percent.

    Args:
        images, texts: one row per image and per caption, in the order of the split.

    Returns:
        {"eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_r1", "coco_5k_r1": {"t2i", "i2t"}}
    """
    known = np.isin(ids.captions[texts.order], list(ids.metrics.coco_gts["t2i"]))  # five of an image, as the package
    texts = texts.take(np.flatnonzero(known))
    image_ids = np.array([ids.images[hashed] for hashed in images.ids.tolist()])
    caption_ids = ids.captions[texts.order]
    best_images, best_texts = _best(images, texts)
    rankings = {
        "t2i": dict(zip(caption_ids.tolist(), image_ids[best_images].tolist())),
        "i2t": dict(zip(image_ids.tolist(), caption_ids[best_texts].tolist())),
    }
    found = dict(ids.metrics.eccv_metrics(rankings, "all"))
    found["cxc_r1"] = ids.metrics.cxc_recalls(rankings, "all", K=1)
    found["coco_5k_r1"] = ids.metrics.coco_5k_recalls(rankings, "all", K=1)
    return {name: {side: round(100 * float(value), 4) for side, value in of.items()} for name, of in found.items()}


def _best(images: SparseVectors, texts: SparseVectors) -> tuple[np.ndarray, np.ndarray]:
    """(captions, RANKED) image rows and (images, RANKED) caption rows, best first; fewer where there are fewer."""
    step = max(1, (DENSE_BLOCK_NUMBERS if texts.nearly_dense else BLOCK_NUMBERS) // images.vocab)
    best: Tensor = torch.zeros(len(texts), 0)
    best_rows = torch.zeros(len(texts), 0, dtype=torch.long)
    best_texts = []
    for start in range(0, len(images), step):
        block = images.between(start, min(len(images), start + step))
        scores = torch.nan_to_num(texts.times(block.columns()), nan=-torch.inf)
        best_texts.append(scores.T.topk(min(RANKED, len(texts)), dim=1).indices)
        rows = torch.arange(start, start + len(block)).expand(len(texts), -1)
        scores, rows = torch.cat([best, scores], 1), torch.cat([best_rows, rows], 1)
        best, places = scores.topk(min(RANKED, scores.shape[1]), dim=1)
        best_rows = rows.gather(1, places)
    return best_rows.numpy(), torch.cat(best_texts).numpy()


def table(metrics: dict[str, dict]) -> str:
    """Printed lines, one per number, of all data sets that have some."""
    lines = []
    for name, row in metrics.items():
        for number, sides in row.get("eccv", {}).items():
            lines.append(f"{name:24}{number:24}{sides['t2i']:8.2f} text to image{sides['i2t']:8.2f} image to text")
    return "\n".join(lines)
