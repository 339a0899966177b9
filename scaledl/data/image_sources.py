"""Where labelled images come from: published files of MNIST and CIFAR, pictures in folders, Hugging Face datasets.

A source gives parts (`train`, `test`, ...), each of pixels and labels (N,) int64. `pixels[indices]` is uint8
(n, C, H, W), of an array in memory or mapped from a file, or of pictures that are decoded when they are asked for.
"""

import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # by a source's name
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
CACHE_FORMAT = 1
_OF_ARRAYS = {("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class Pixels(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, indices: np.ndarray) -> np.ndarray: ...


Parts = dict[str, tuple[Pixels, np.ndarray]]
Names = list[str] | None  # of the classes


def read_source(
    path: Path | None, dataset: str | None, config: str | None, image: str, label: str
) -> tuple[Parts, Names]:
    """What a folder, or without one a name on the Hub, holds: parts called train, val or test, or one part.

    Raises:
        ValueError: no images are there, or they are damaged.
    """
    names: Names = None
    if path is None:
        if dataset is None:
            raise ValueError("no images are named: set data.path to a folder or data.dataset to a name on the Hub")
        parts, names = _hub_parts(dataset, config, image, label)
    elif not path.is_dir():
        raise ValueError(f"data.path={path} is no folder; give the one that the images lie in")
    elif any(path.glob("*images*idx3-ubyte*")):
        parts = _mnist_parts(path)
    else:
        parts, names = _cifar_parts(path)
        if not parts:
            parts, names = _folder_parts(path)
    where = path or dataset
    parts = {SPLITS[part]: found for part, found in parts.items() if part in SPLITS}
    if not parts or ("train" not in parts and len(parts) > 1):
        raise ValueError(
            f"{where} holds no images to train on: looked for MNIST's *-images-idx3-ubyte, CIFAR's data_batch_* or "
            "train, a folder of pictures for each class, or (on the Hub) a part called train"
        )
    for part, (pixels, y) in parts.items():
        if len(pixels) != len(y) or not len(y):
            raise ValueError(f"the {part} part of {where} has {len(pixels)} images and {len(y)} labels")
    return parts, names


# -- arrays, in the formats in which they are published ----------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file (LeCun et al. 1998), gzipped or not.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); bring it here again") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    shape = np.frombuffer(content, ">u4", content[3], offset=4).tolist()
    found = len(content) - 4 - 4 * len(shape)
    if found != math.prod(shape):
        raise ValueError(f"{path} is damaged: an array {tuple(shape)} has {math.prod(shape)} bytes, not {found}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _mnist_parts(folder: Path) -> Parts:
    parts: Parts = {}
    for path in sorted(folder.glob("*images*idx3-ubyte*")):
        labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        if not labels.is_file():
            raise ValueError(f"{path} has no labels beside it; bring {labels.name} there")
        images = read_idx(path)
        if images.ndim != 3:
            raise ValueError(f"{path} holds an array of {images.ndim} axes; images have 3: number, height, width")
        part = "test" if "t10k" in path.name or "test" in path.name else "train"
        parts[part] = images[:, None], read_idx(labels).astype(np.int64)
    return parts


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts, lists, numbers, text and numpy arrays; a pickle that names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name since numpy 2
        if (module, name) not in _OF_ARRAYS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays are read")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict of a CIFAR file, pickled by Python 2 or 3; nothing in it is executed.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    with open(path, "rb") as file:
        try:
            found = _ArraysOnly(file, encoding="bytes").load()
            return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        except Exception as error:  # a damaged pickle raises almost anything
            raise ValueError(f"{path} is no file of CIFAR's python version: {error}") from error


def _read_cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 3, 32, 32) and labels (N,) of one file."""
    hundred = path.stem in ("train", "test")  # whose images have a coarse label and a fine one
    if path.suffix == ".bin":
        content, row = np.fromfile(path, np.uint8), 3072 + 1 + hundred
        if not len(content) or len(content) % row:
            raise ValueError(f"{path} is damaged: its {len(content)} bytes are not rows of {row}")
        rows = content.reshape(-1, row)
        pixels, labels = rows[:, -3072:], rows[:, int(hundred)]
    else:
        found, key = read_pickle(path), "fine_labels" if hundred else "labels"
        if not {"data", key} <= found.keys():
            raise ValueError(f"{path} holds {', '.join(map(str, found))}, but CIFAR's files hold data and {key}")
        pixels, labels = found["data"], np.asarray(found[key])
        if getattr(pixels, "dtype", None) != np.uint8 or pixels.shape != (len(labels), 3072):
            shape = getattr(pixels, "shape", type(pixels).__name__)
            raise ValueError(f"{path}: data is {shape}, but must be uint8 ({len(labels)}, 3072), a row for each label")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _cifar_parts(folder: Path) -> tuple[Parts, Names]:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), python or binary version."""
    parts: Parts = {}
    for part, of_ten in (("train", "data_batch_*"), ("test", "test_batch*")):
        paths = [*sorted(folder.glob(of_ten)), folder / part, folder / f"{part}.bin"]
        files = [_read_cifar(path) for path in paths if path.is_file()]
        if files:
            parts[part] = np.concatenate([pixels for pixels, _ in files]), np.concatenate([y for _, y in files])
    for file, key in (("batches.meta", "label_names"), ("meta", "fine_label_names")):
        if (folder / file).is_file():
            words = read_pickle(folder / file)[key]
            return parts, [word.decode() if isinstance(word, bytes) else word for word in words]
    listed = [path for name in ("batches.meta.txt", "fine_label_names.txt") if (path := folder / name).is_file()]
    return parts, listed[0].read_text().split() if listed else None


# -- pictures: encoded images of any size and mode ---------------------------------------------------------------------


class Pictures:
    """Encoded images, which become `channels` x `size` x `size` when they are decoded.

    Args:
        open_one: gives the picture of an index, not decoded yet.
        names: of the pictures, for messages.
        fingerprint: JSON that changes when the pictures may have changed.
    """

    size = channels = 0

    def __init__(
        self, open_one: Callable[[int], Image.Image], names: Sequence[Any], fingerprint: Callable[[], Any]
    ) -> None:
        self.open_one, self.names, self.fingerprint = open_one, names, fingerprint

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._decoded(int(index)) for index in indices])

    def header(self, index: int) -> tuple[tuple[int, int], str] | str:
        """(width, height) and mode, without decoding; or why there are none."""
        try:
            with self.open_one(index) as image:
                return image.size, image.mode
        except Exception as error:  # decoders raise what they like
            return f"{self.names[index]} ({error})"

    def _decoded(self, index: int) -> np.ndarray:
        """uint8 (channels, size, size).

        Raises:
            ValueError: the picture is broken, or has more than 8 bits a channel.
        """
        mode, square = "L" if self.channels == 1 else "RGB", (self.size, self.size)
        try:
            with self.open_one(index) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its mode {image.mode} has more than 8 bits a pixel; make it a picture of 8")
                image.draft(mode, square)  # a JPEG is decoded no larger than needed
                found = image.convert(mode)
        except Exception as error:  # decoders raise what they like
            raise ValueError(
                f"the picture {self.names[index]} cannot be read: {error}; replace it or take it away"
            ) from error
        if found.size != square:
            found = ImageOps.fit(found, square, Image.Resampling.BICUBIC)
        return np.asarray(found).reshape(*square, self.channels).transpose(2, 0, 1)


def settle(parts: Parts, size: int | None, channels: int | None) -> None:
    """Give the pictures of all parts one size and number of channels: what they have, where these are None.

    Raises:
        ValueError: pictures cannot be read, or they have several sizes and none is given.
    """
    pictures = [pixels for pixels, _ in parts.values() if isinstance(pixels, Pictures)]
    if size is None or channels is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            headers = [found for of in pictures for found in pool.map(of.header, range(len(of)))]
        names = [name for of in pictures for name in of.names]
        if broken := [found for found in headers if isinstance(found, str)]:
            shown = "; ".join(broken[:5]) + "; ..." * (len(broken) > 5)
            raise ValueError(f"{len(broken)} pictures cannot be read: {shown}. Replace them or take them away")
        examples = {found[0]: name for found, name in zip(headers, names, strict=True)}  # one of each size
        if size is None and (len(examples) > 1 or any(width != height for width, height in examples)):
            shown = ", ".join(f"{width}x{height} as {examples[width, height]}" for width, height in [*examples][:3])
            raise ValueError(
                f"the pictures are not squares of one size ({shown}); set data.image_size, to which they are scaled "
                "and cut around their centre"
            )
        size = size or next(iter(examples))[0]
        channels = channels or (1 if all(found[1] in ("1", "L", "LA") for found in headers) else 3)
    for of in pictures:
        of.size, of.channels = size, channels


class Decoded:
    """Pixels in a file of the cache, mapped into memory; a loader process maps it itself."""

    def __init__(self, path: Path):
        self.path = path
        self.pixels = np.asarray(np.load(path, mmap_mode="r"))  # a plain view: a memmap's own indexing is slower

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels[indices]

    def __reduce__(self) -> tuple:
        return Decoded, (self.path,)


def decoded(pictures: Pictures, folder: Path) -> Decoded:
    """All pictures, decoded once into a file of `folder`; safe to call from many processes at once."""
    form = [CACHE_FORMAT, pictures.fingerprint(), pictures.size, pictures.channels]
    path = folder / f"{hashlib.sha256(json.dumps(form).encode()).hexdigest()[:16]}.npy"
    if path.exists():
        return Decoded(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 (held until the end)
    except OSError as error:
        raise ValueError(f"the image cache {folder} cannot be written ({error}); set data.cache_dir") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            beside, shape = path.with_suffix(".part"), (len(pictures), pictures.channels, pictures.size, pictures.size)
            pixels = np.lib.format.open_memmap(beside, "w+", np.uint8, shape)
            some = np.array_split(np.arange(len(pictures)), -(-len(pictures) // 64))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for indices, found in zip(some, pool.map(pictures.__getitem__, some), strict=True):
                    pixels[indices] = found
            pixels.flush()
            beside.replace(path)
    return Decoded(path)


def _folder_parts(folder: Path) -> tuple[Parts, Names]:
    """A folder of pictures for each class, in `folder` or in its parts; classes are numbered as their names sort."""
    roots = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    parts: Parts = {}
    classes: list[str] = []
    for part, root in (roots if "train" in roots else {"train": folder}).items():
        inside = {
            sub.name: sorted(f for f in sub.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            for sub in sorted(root.iterdir())
            if sub.is_dir() and not sub.name.startswith(".")
        }
        if not any(inside.values()):
            continue
        classes = classes or list(inside)
        for name, paths in inside.items():
            if name not in classes:
                raise ValueError(f"{root / name}: there is no class {name!r} in the training part")
            if not paths:
                raise ValueError(f"{root / name} holds no pictures ({', '.join(sorted(SUFFIXES))}); take it away")
        labels = [classes.index(name) for name, paths in inside.items() for _ in paths]
        parts[part] = _files([path for paths in inside.values() for path in paths]), np.array(labels, np.int64)
    return parts, classes


def _files(paths: list[Path]) -> Pictures:
    return Pictures(partial(_open_file, paths), paths, partial(_file_stamps, paths))


def _open_file(paths: list[Path], index: int) -> Image.Image:
    return Image.open(paths[index])


def _file_stamps(paths: list[Path]) -> list[list[Any]]:
    return [[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for path in paths if (stat := path.stat())]


def _hub_parts(dataset: str, config: str | None, image: str, label: str) -> tuple[Parts, Names]:
    """Of a dataset of the Hub, or a local folder that the `datasets` library loads."""
    import datasets

    try:
        loaded = datasets.load_dataset(dataset, config)
    except Exception as error:  # the library raises a dozen kinds, from DNS failures to bad names
        raise ValueError(
            f"data.dataset={dataset!r} (config {config}) was not loaded: {error}; check the name or, without a network "
            "here, give data.path a folder with the files"
        ) from error
    parts: Parts = {}
    names: Names = None
    for part, rows in loaded.items():
        features = rows.features
        if label not in features or not isinstance(features.get(image), datasets.Image):
            raise ValueError(
                f"data.image_column={image!r} and data.label_column={label!r} are no images and labels of {dataset}; "
                f"its columns are: {', '.join(features)}"
            )
        names, labels = getattr(features[label], "names", names), list(rows[label])
        if any(isinstance(word, str) for word in labels):
            names = names or sorted(set(labels))
            labels = [names.index(word) if word in names else len(names) for word in labels]
        y = np.array([-1 if number is None else number for number in labels], np.int64)
        if (y >= 0).any():  # competitions keep the labels of their tests
            undecoded = rows.cast_column(image, datasets.Image(decode=False))
            parts[part] = Pictures(partial(_open_row, undecoded, image), range(len(y)), partial(_stamp, rows, image)), y
    return parts, names


def _open_row(rows: Any, column: str, index: int) -> Image.Image:
    cell = rows[index][column]
    return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])


def _stamp(rows: Any, column: str) -> list[str]:
    return [rows._fingerprint, column]
