"""A Hugging Face folder: its config, and its tensors, of which one at a time is read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scaledl.safetensors_file import CODES

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READ = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt"]
_UNREAD = ["*/*", "consolidated*"]  # the weights again, for other programs
_DTYPES = {code: dtype for dtype, code in CODES.items()}


def local_folder(source: str) -> Path:
    """The folder `source` or, where there is none, what the Hugging Face Hub has under that name.

    Raises:
        ValueError: it is neither, or the Hub was not reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(source, allow_patterns=_READ, ignore_patterns=_UNREAD))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise ValueError(
            f"{source} is no folder here, and was not brought from the Hugging Face Hub: "
            f"{next(iter(str(error).splitlines()), type(error).__name__)}; give a folder made by save_pretrained, or "
            "a name on the Hub (reached or cached from this machine)"
        ) from error


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; give a folder made by save_pretrained")
    return settings_of(path)


def settings_of(path: Path) -> dict[str, Any]:
    """What a JSON file of settings says.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings; copy it again")
    return settings


class Tensors:
    """The tensors of a folder's safetensors files by name, read when they are asked for.

    Raises:
        ValueError: there are no such files, or one is missing or damaged.
    """

    def __init__(self, folder: Path):
        self._files: dict[str, Any] = {}
        for file in _files_of(folder):
            try:
                opened = safe_open(folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{folder / file} cannot be read ({error}); copy it again") from error
            self._files |= dict.fromkeys(opened.keys(), opened)

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def like(self, name: str) -> Tensor:
        """The tensor without its values."""
        described = self._files[name].get_slice(name)
        code = described.get_dtype()
        if code not in _DTYPES:
            raise ValueError(f"{name} is of {code}, which cannot be trained on; take weights of another dtype")
        return torch.empty(described.get_shape(), dtype=_DTYPES[code], device="meta")

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def _files_of(folder: Path) -> list[str]:
    if (folder / _INDEX).is_file():
        try:
            found = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            files = sorted({str(Path(file)) for file in found})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / _INDEX} is no list of files; copy it again") from error
        strange = [file for file in files if Path(file).name != file]
        missing = [file for file in files if not (folder / file).is_file()]
        if strange or missing:
            raise ValueError(f"{folder} lacks {(strange or missing)[0]}, which its {_INDEX} names; copy it again")
        return files
    if (folder / _WHOLE).is_file():
        return [_WHOLE]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    raise ValueError(
        f"{folder} holds no {_WHOLE}"
        + (
            f", only {pickled[0]}: pickles can run code and are not read. Save it again as safetensors"
            if pickled
            else ""
        )
    )
