"""Where a model, a tokenizer or weights come from: a folder, or the hub, and whether the hub answers at all.

Loads no torch, so that a command can refuse a name before seconds of imports. A name is a path if it looks like one:
a mistyped folder is never looked up among strangers' models. The hub is asked once whether it answers, because its
library tries each file again and again for minutes.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from pathlib import Path

from lexlip import pretrained
from lexlip.errors import CheckpointError
from lexlip_data.errors import one_line

PATIENCE = 4.0  # seconds for the hub to answer anything
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".json", ".txt", ".zip", ".arrow")


def local_source(name: str | Path, what: str = "", wanted: str = "a model folder") -> Path | None:
    """The folder that a name means, of the disk or of this package; None for a name on the hub.

    Args:
        what: is looked for, for the message: "--model ", "tokenizer="

    Raises:
        CheckpointError: a file, or a path where nothing is.
    """
    path, text = Path(name), str(name)
    if path.is_dir():
        return path
    if (folder := pretrained.find(name)) is not None:
        return folder
    if path.exists():
        raise CheckpointError(f"{what}{text} is a file, not {wanted}")
    if isinstance(name, Path) or not _NAME.fullmatch(text) or text.endswith(_FILES):
        raise CheckpointError(f"{what}{text}: no such folder; {_name_wanted(wanted)}")
    if len(path.parts) > 1 and Path(path.parts[0]).is_dir():
        raise CheckpointError(f"{what}{text}: no such folder in {path.parts[0]}/; {_name_wanted(wanted)}")
    return None


def check_source(what: str, name: str, wanted: str = "a model folder") -> Path | None:
    """`local_source`, but a name that the hub cannot give either is refused, before anything else is tried.

    Args:
        what, name, wanted: as `local_source`.

    Raises:
        CheckpointError: as `local_source`, or the hub cannot be reached and nothing of the name is in the cache.
    """
    if (folder := local_source(name, what, wanted)) is not None:
        return folder
    ask_hub()
    if hub_trouble() and not _cached(name):
        raise CheckpointError(f"{what}{name} is no folder here; {load_reason(FileNotFoundError(), name)}")
    return None


def _cached(name: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir()


def _name_wanted(wanted: str) -> str:
    return f"give {wanted}, or a name on the hub such as owner/name"


def ask_hub() -> None:
    """Before anything is asked of the hub: where it does not answer, its library takes what it has on the disk.

    Costs one request of a process, at most `PATIENCE` seconds.
    """
    if hub_trouble():
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True


def load_reason(error: Exception, name: str | Path) -> str:
    """Why a folder or a name on the hub could not be loaded, in one line that says what would do."""
    if isinstance(error, OSError) and not Path(name).exists() and (trouble := hub_trouble()):
        return (
            f"{trouble}, and it is not in the cache of this machine; give a folder, set HF_ENDPOINT to a mirror or "
            "HTTPS_PROXY to a proxy, or fetch it elsewhere and copy it"
        )
    return one_line(" ".join(str(error).split()) or type(error).__name__)


@cache
def hub_trouble() -> str:
    """Why the hub cannot be reached, "" if it can."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub is not asked"
    found: list[str] = [f"no answer for {PATIENCE:.0f} s"]

    def look() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
            found.append("")
        except urllib.error.HTTPError:  # it answered
            found.append("")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            # A certificate that only the hub library's settings know is no sign that nothing answers.
            found.append("" if "CERTIFICATE" in str(reason) else str(getattr(reason, "strerror", None) or reason))

    # In a thread, because looking up a name knows no limit.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return f"the hub {constants.ENDPOINT} cannot be reached ({found[-1].lower()})" if found[-1] else ""
