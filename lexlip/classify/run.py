"""Images against labels: a label is the mean of its prompts' vectors, and the image takes the nearest.

As CLIP does it (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, 3.1.4).
A lexicon model has a second way that encodes no text: the weight of a label's own words in the image's vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lexlip.encode.files import FolderImages
from lexlip.errors import UserError
from lexlip.models.retrieval import LexiconModel
from lexlip_data.errors import one_line

TEMPLATES = ("{}", "a photo of a {}.", "a picture of a {}.", "a close-up photo of a {}.", "a photo of the {}.")


@dataclass(frozen=True)
class Classified:
    """An image's labels.

    Attributes:
        name: of the image.
        labels: the nearest, nearest first.
        scores: their dot products, or weights of words.
    """

    name: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a UTF-8 file, each once, without empty ones.

    Raises:
        UserError: no such file, no text, no lines, or a line twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"{path} holds no {what}, one a line")
    seen: set[str] = set()
    for line in lines:
        if line in seen:
            raise UserError(f"{path} holds {one_line(line, 40)!r} twice")
        seen.add(line)
    return lines


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template without a place for the label.

    Raises:
        UserError: naming it.
    """
    for template in templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{"):
            raise UserError(f"template {one_line(template, 60)!r}: {{}} must stand in it once, for the label")


def label_vectors(model: LexiconModel, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """(labels, V): of each label the mean of its prompts' vectors, of length 1.

    Raises:
        UserError: a label of which the model knows no word.
    """
    check_templates(templates)
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    vectors = model.encode_text(prompts).view(len(labels), len(templates), -1).mean(dim=1)
    norms = vectors.norm(dim=1, keepdim=True)
    if not norms.all():
        raise UserError(f"the model knows no word of the label {labels[int((norms[:, 0] == 0).nonzero()[0])]!r}")
    return vectors / norms


def word_vectors(model: LexiconModel, labels: Sequence[str]) -> Tensor:
    """(labels, V): of each label the mean over the terms that its own words are; no text is encoded.

    Raises:
        UserError: a label of no word of the vocabulary.
    """
    if model.tokenizer is None:
        raise UserError("the model has no tokenizer, which labels need; save one into its folder")
    vectors = torch.zeros(len(labels), model.vocab_size)
    for row, label in enumerate(labels):
        terms = set(model.tokenizer(label, add_special_tokens=False)["input_ids"]) - {model.tokenizer.unk_token_id}
        if not terms:
            raise UserError(f"no word of the label {label!r} is in the model's vocabulary")
        vectors[row, sorted(terms)] = 1 / len(terms)
    return vectors.to(model.device)


def classify(
    vectors: Tensor, names: Sequence[str], labels: Sequence[str], of_labels: Tensor, top: int = 5
) -> Iterator[Classified]:
    """The nearest labels of (B, V) vectors of images; of equal scores, the label that comes first."""
    scores = (vectors @ of_labels.T).cpu()
    best, order = scores.sort(dim=1, descending=True, stable=True)
    for name, row, values in zip(names, order[:, :top].tolist(), best[:, :top].tolist()):
        yield Classified(name, tuple(labels[number] for number in row), tuple(values))


def accuracy(results: Sequence[Classified], truth: Mapping[str, str]) -> dict[str, float]:
    """top1 and top5, as fractions of the images that the truth knows.

    Raises:
        UserError: it knows none of them.
    """
    known = [result for result in results if result.name in truth]
    if not known:
        raise UserError("the truth names none of the images")
    right = {top: sum(truth[result.name] in result.labels[:top] for result in known) for top in (1, 5)}
    return {**{f"top{top}": count / len(known) for top, count in right.items()}, "images": len(known)}


def truth_of_folders(names: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Of images that lie in folders named as the labels (`dog/1.jpg`), the label of each."""
    known = {label.casefold().replace("_", " "): label for label in labels}
    found = {}
    for name in names:
        for folder in name.split("/")[:-1]:
            if (label := known.get(folder.casefold().replace("_", " "))) is not None:
                found[name] = label
    return found


def truth_of_table(path: Path, labels: Sequence[str]) -> dict[str, str]:
    """Of a table of two columns, image and label, by a TAB or a comma; a first line without a label is a head.

    Raises:
        UserError: a line of another form, or a label that is none of them.
    """
    found, known = {}, set(labels)
    for number, line in enumerate(read_lines(path, "lines of image and label"), 1):
        name, _, label = line.partition("\t") if "\t" in line else line.rpartition(",")
        if label.strip() not in known:
            if number == 1:
                continue
            raise UserError(f"{path}, line {number}: {one_line(label, 40)!r} is none of the labels")
        found[name.strip()] = label.strip()
    return found


def encoded_images(
    model: LexiconModel, corpus: FolderImages, batch_size: int, broken: dict[str, str]
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and (B, V) vectors of a folder's images in batches, as the sync and the encoder see them.

    Args:
        model: in evaluation mode.
        batch_size: at once.
        broken: what cannot be read is put here, and why.
    """
    from lexlip.encode.vectors import decoded_batches
    from lexlip_data.sources.images import open_image
    from lexlip_data.sources.skipped import Skipped

    side, transform = model.least_side, model.image_transform()
    numbers = list(range(len(corpus)))
    batches = (numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size))
    for batch in decoded_batches(corpus, lambda data: transform(open_image(data, side)), batches, 0):
        broken |= {item.image_id: item.reason for item in batch if isinstance(item, Skipped)}
        good = [item for item in batch if not isinstance(item, Skipped)]
        if good:
            names, pixels = zip(*good)
            yield list(names), model.encode_image(torch.stack(pixels))
