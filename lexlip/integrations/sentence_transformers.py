"""A model folder as a SparseEncoder of sentence-transformers: the same vectors behind that library's methods.

    from lexlip.integrations.sentence_transformers import sparse_encoder
    model = sparse_encoder("model_folder")
    model.similarity(model.encode_query(["a dog"]), model.encode_document([image]))

Folders say so in modules.json, so `SparseEncoder(folder)` works too. Version 6 asks for `trust_remote_code=True` there,
as it does for every class that is not its own; lexlip as installed is what runs, no code is fetched. Vectors have
length 1, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from lexlip.errors import EncodingError
from lexlip.models.lexlip import LexLIP
from lexlip.models.retrieval import LexiconModel

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")  # by which version 6 tells paths from texts


class LexLIPModule(nn.Module):
    """The only module of such a model; its methods are those that version 5 and 6 call.

    Texts travel as they are: the model itself tokenizes and decodes, so that vectors are those of `encode_text` and
    `encode_image`.
    """

    save_in_root = True  # rather than in a folder of its own below

    def __init__(self, model: LexiconModel):
        super().__init__()
        self.model = model

    @property
    def tokenizer(self) -> Any:
        """Names the terms."""
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.model.context

    @property
    def modalities(self) -> list[str]:
        """Version 6 refuses other inputs by these, and batches that mix them."""
        return ["text", "image"]

    def get_sentence_embedding_dimension(self) -> int:
        """V, the terms."""
        return self.model.vocab_size

    get_embedding_dimension = get_sentence_embedding_dimension  # version 6's name

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Any]:
        """Texts, or PIL images and paths of images, as features for `forward`.

        Raises:
            EncodingError: both at once, or something else.
        """
        values = [_plain(value) for value in inputs]
        images = [isinstance(value, (Image.Image, Path)) for value in values]
        if any(images) and not all(images):
            raise EncodingError("a batch holds either texts or images; encode them in two calls")
        if images and images[0]:
            return {"images": values}
        return {"texts": [f"{prompt or ''}{text}" for text in values]}

    def tokenize(self, texts: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Version 5's name for it."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, (B, V) float32 of length 1."""
        if "images" in features:
            features["sentence_embedding"] = self.model.encode_image(features["images"])
        else:
            features["sentence_embedding"] = self.model.encode_text(features.get("texts", []))
        return features

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> LexLIPModule:
        """From a model folder, or a name on the hub.

        Args:
            options: of SparseEncoder; revision, token, cache_folder and local_files_only say what is fetched, and how.
        """
        name = str(Path(model_name_or_path, subfolder)) if subfolder else model_name_or_path
        return cls(LexLIP.from_pretrained(name, **_of_fetching(options)))

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """As a model folder."""
        self.model.save_pretrained(output_path)


def sparse_encoder(name: str | Path, **options: Any) -> Any:
    """A SparseEncoder of a model folder or name, an older one too, in version 5 or 6.

    Args:
        options: of SparseEncoder, such as device, max_active_dims or the revision of a name.
    """
    from sentence_transformers import SparseEncoder

    module = LexLIPModule.load(str(name), **options)
    return SparseEncoder(modules=[module], **{"similarity_fn_name": "dot", **options})


def _of_fetching(options: dict[str, Any]) -> dict[str, Any]:
    """Those of SparseEncoder's options that `from_pretrained` has too, in its words."""
    found = {name: options[name] for name in ("revision", "token", "local_files_only") if name in options}
    return found | ({"cache_dir": options["cache_folder"]} if "cache_folder" in options else {})


def _plain(value: Any) -> str | Path | Image.Image:
    if isinstance(value, dict) and len(value) == 1:  # {"text": ...} or {"image": ...}
        value = next(iter(value.values()))
    if isinstance(value, (Image.Image, Path)):
        return value
    if isinstance(value, str):
        return Path(value) if value.lower().endswith(IMAGE_ENDINGS) and Path(value).is_file() else value
    kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise EncodingError(f"{kind}: a text, a PIL image or the path of one is wanted")
