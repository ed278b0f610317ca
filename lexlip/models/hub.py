"""Model folders and the hub: `save_pretrained` and `push_to_hub` are huggingface_hub's.

A folder holds config.json, model.safetensors, the tokenizer's files and the images' preprocessing.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from lexlip import pretrained
from lexlip.errors import CheckpointError
from lexlip.models.config import CONFIG_FILE, WEIGHTS_FILE, ModelConfig, text_dropout
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.sizes import header
from lexlip.models.source import ask_hub, load_reason, local_source
from lexlip.models.tokenizer import open_tokenizer
from lexlip.models.weights import check_shape, folder_config, load_model
from lexlip.utils.files import give_usual_rights, write_json
from lexlip_data.sources.files import replacing

if TYPE_CHECKING:
    from lexlip.models.encoders import ImageEncoder

_OF_A_MODEL = (
    "phase*.safetensors", "tokenizer*.json", "special_tokens_map.json", "vocab.txt", "modules.json",
    "config_sentence_transformers.json", CONFIG_FILE,
)  # fmt: skip
Model = TypeVar("Model", bound="FolderModel")
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # what is fetched of a name on the hub


class FolderModel(nn.Module, PyTorchModelHubMixin, library_name="lexlip", tags=["image-text-retrieval"]):
    """A module that can be saved to a folder and loaded from one; made from its config and a tokenizer."""

    head: ClassVar[str]  # of `ModelConfig.head`
    config: ModelConfig
    tokenizer: Any  # transformers', or None
    image_encoder: ImageEncoder

    def save_pretrained(self, save_directory: str | Path, *, repo_id: str | None = None, **options: Any) -> str | None:
        """huggingface_hub's; the folder's files are replaced when all are written, the config last.

        Raises:
            OSError: they cannot be written; a model that was there is as it was.
        """
        folder = Path(save_directory)
        with replacing(folder, last=CONFIG_FILE) as draft:
            for card in folder.glob("README.md"):  # somebody may have written in it
                (draft / card.name).write_bytes(card.read_bytes())
            result = super().save_pretrained(draft, repo_id=repo_id or folder.name, **options)
            # What an older model left must not pass for this one's: its phase's own parts, its vocabulary.
            for stale in (stale for pattern in _OF_A_MODEL for stale in folder.glob(pattern)):
                stale.unlink()
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        save_model(self, str(save_directory / WEIGHTS_FILE))
        give_usual_rights(save_directory / WEIGHTS_FILE)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        write_json(self.preprocessing(), save_directory / "preprocessor_config.json")
        for name, content in self.for_other_libraries().items():
            write_json(content, save_directory / name)
        write_json(dataclasses.asdict(self.config), save_directory / CONFIG_FILE)

    def preprocessing(self) -> dict:
        """What `encode_image` does to an image, as preprocessor_config.json holds it."""
        return _preprocessing(self.config.image_size)

    def for_other_libraries(self) -> dict[str, Any]:
        """Further JSON files of the folder, by name."""
        return {}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's takes any further arguments
        cls: type[Model], pretrained_model_name_or_path: str | Path, *, drop_rate: float | None = None,
        revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None,
        force_download: bool = False, local_files_only: bool = False, trust_sources: bool = False,
    ) -> Model:  # fmt: skip
        """Load a model folder or a name on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: folder, "owner/name", or a model of the package, such as "photos-small".
            drop_rate: another dropout of the text tower, for training on.
            revision, token, cache_dir, force_download, local_files_only: of `huggingface_hub.snapshot_download`.
            trust_sources: also follow a name in its config.json that leads to the hub or to another folder.

        Raises:
            CheckpointError: neither a folder nor to be fetched, no model in it, weights that do not fit its config, or
                a config that asks for more than a shape (`lexlip.models.trust`).
        """
        folder = local_folder(
            pretrained_model_name_or_path, revision=revision, token=token, cache_dir=cache_dir,
            force_download=force_download, local_files_only=local_files_only,
        )  # fmt: skip
        config = folder_config(folder, trust_sources)
        check_head(cls, config, folder)
        if isinstance(config, FrozenConfig):
            from lexlip.models.frozen.model import FrozenLexLIP  # which is built on this class

            kind: type[FolderModel] = FrozenLexLIP
        else:
            kind = cls
            if drop_rate is not None:
                config.text.update(text_dropout(drop_rate))
        try:
            check_shape(kind, config, header(folder / WEIGHTS_FILE), folder, folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is no model folder: {error}") from error
        tokenizer = None
        if any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
            tokenizer = open_tokenizer(folder)
        model = kind(config, tokenizer)
        load_model(model, folder)
        model.opened_from(folder, trust_sources)
        return cast(Model, model.eval())

    def opened_from(self, folder: Path, trust_sources: bool) -> None:
        """Called once the weights are there, for models that need more of their folder later."""


def local_folder(name: str | Path, **download) -> Path:
    """A folder as it is, that of a model of the package, or where `snapshot_download` put the files of a hub name.

    Raises:
        CheckpointError: neither a folder nor to be fetched.
    """
    try:
        local = local_source(name)
    except CheckpointError as error:
        raise CheckpointError(f"{name} is neither a model folder nor could it be fetched: {error}") from None
    if local is not None:
        pretrained.tell_of(local)
        return local
    ask_hub()
    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES, **download))
    except (OSError, HFValidationError) as error:  # hub errors are OSErrors
        raise CheckpointError(
            f"{name} is neither a model folder nor could it be fetched: {load_reason(error, name)}"
        ) from error


def check_head(cls: type[FolderModel], config: ModelConfig | FrozenConfig, path: str | Path) -> None:
    """Refuse the weights of a model with another head.

    Raises:
        CheckpointError: naming the file or folder and what it holds.
    """
    if config.head != cls.head:
        raise CheckpointError(
            f"{path} holds a model with the {config.head} head, and {cls.__name__} has the {cls.head} head; "
            f"load it with {'DenseLIP' if config.head == 'dense' else 'LexLIP'}, or train with head={config.head}"
        )


def _preprocessing(size: int) -> dict:
    """What `encode_image` does to an image, in the words of transformers' image processors."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
