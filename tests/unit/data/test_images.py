"""Images come out of files, folders and tables as they were written; what is wrong with them is named."""

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scaledl.data.base import Data
from scaledl.data.image_sources import Decoded, Pictures, read_idx, read_pickle
from scaledl.data.images import Images, stratified


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def made(path: Path, **settings: Any) -> Images:
    data = Images(4, 4, path=str(path), cache_dir=str(path.parent / "cache"), **settings)
    data.prepare()
    return data


def whole(data: Data, split: str) -> dict[str, torch.Tensor]:
    found = data.split(split)
    return found.__getitems__(np.arange(len(found)))


def pixels_of(data: Images, split: str) -> np.ndarray:
    """uint8 (N, C, S, S), back from the standardised values."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    return ((whole(data, split)["x"] * std + mean) * 255).round().to(torch.uint8).numpy()


# -- MNIST -------------------------------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(head + array.tobytes())


def write_mnist(folder: Path, part: str, images: np.ndarray, labels: np.ndarray, end: str = ".gz") -> None:
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{part}-images-idx3-ubyte{end}", images)
    write_idx(folder / f"{part}-labels-idx1-ubyte{end}", labels.astype(np.uint8))


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_files_are_read_as_published(tmp_path: Path, end: str) -> None:
    train, test = noise(60, 28, 28), noise(20, 28, 28, seed=1)
    write_mnist(tmp_path / "m", "train", train, np.arange(60) % 10, end)
    write_mnist(tmp_path / "m", "t10k", test, np.arange(20) % 10, end)
    data = made(tmp_path / "m", val_fraction=0.5)
    assert [(name, len(split)) for name, split in data.splits()] == [("train", 30), ("val", 30), ("test", 20)]
    np.testing.assert_array_equal(pixels_of(data, "test"), test[:, None])
    assert whole(data, "test")["y"].tolist() == [*range(10)] * 2
    together = np.concatenate([pixels_of(data, "train"), pixels_of(data, "val")])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in train)


def test_one_part_alone_is_divided_alike_whatever_the_seed(tmp_path: Path) -> None:
    images, labels = noise(200, 8, 8), np.repeat([0, 1, 2], [100, 60, 40])
    write_mnist(tmp_path / "m", "t10k", images, labels)
    data, other = made(tmp_path / "m"), made(tmp_path / "m", seed=5)
    sizes = {"train": 144, "val": 16, "test": 40}
    assert {name: len(split) for name, split in data.splits()} == sizes
    for split in sizes:
        assert torch.equal(whole(data, split)["x"], whole(other, split)["x"])
        np.testing.assert_allclose(np.bincount(whole(data, split)["y"]) / sizes[split], [0.5, 0.3, 0.2], atol=0.02)
    together = np.concatenate([pixels_of(data, split) for split in sizes])
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in images)
    assert {name for name, _ in made(tmp_path / "m", val_fraction=0).splits()} == {"train", "test"}
    assert {name for name, _ in made(tmp_path / "m", test_fraction=0).splits()} == {"train", "val"}


def test_channels_are_standardised_over_the_training_part(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m", "train", noise(300, 8, 8) // 3, np.arange(300) % 2)
    data = made(tmp_path / "m")
    x = whole(data, "train")["x"]
    assert (x.shape, x.dtype) == ((216, 1, 8, 8), torch.float32)
    assert x.mean().item() == pytest.approx(0, abs=2e-3)
    assert x.std().item() == pytest.approx(1, abs=2e-3)
    given = made(tmp_path / "m", mean=[0.0], std=[1.0])
    np.testing.assert_allclose(whole(given, "test")["x"] * 255, pixels_of(data, "test"), atol=0.01)


def test_facts_fit_and_can_be_given_back(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m", "train", noise(60, 8, 8), np.arange(60) % 3)
    facts = made(tmp_path / "m").facts()
    found = {name: facts[name] for name in ("num_classes", "in_channels", "image_size", "in_dim", "class_names")}
    assert found == {
        "num_classes": 3,
        "in_channels": 1,
        "image_size": 8,
        "in_dim": 64,
        "class_names": ["0", "1", "2"],
    }
    assert made(tmp_path / "m", **facts).facts() == facts
    assert made(tmp_path / "m", class_names=["a", "b", "c"]).facts()["num_classes"] == 3


# -- CIFAR -------------------------------------------------------------------------------------------------------------


class _Python2(pickle._Pickler):  # the pure-Python one, whose methods can be replaced
    """Writes bytes as Python 2 wrote its strings, and numpy's old module names."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())

    dispatch[bytes] = save_bytes
    dispatch[type] = save_global
    dispatch[type(len)] = save_global


def _dump_2(value: Any, path: Path) -> None:
    with open(path, "wb") as file:
        _Python2(file, protocol=2).dump(value)


def _dump_3(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=4))


def write_cifar10(folder: Path, dump: Callable[[Any, Path], None]) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir()
    pixels, labels = noise(60, 3, 32, 32), np.arange(60) % 10
    for batch in range(5):
        own = slice(10 * batch, 10 * batch + 10)
        content = {b"data": pixels[own].reshape(10, -1), b"labels": labels[own].tolist(), b"batch_label": b"some of 5"}
        dump(content, folder / f"data_batch_{batch + 1}")
    dump({b"data": pixels[50:].reshape(10, -1), b"labels": labels[50:].tolist()}, folder / "test_batch")
    dump({b"label_names": [f"kind {label}".encode() for label in range(10)]}, folder / "batches.meta")
    return pixels, labels


@pytest.mark.parametrize("dump", [_dump_2, _dump_3], ids=["pickled by Python 2", "by Python 3"])
def test_cifar_10_in_its_python_version(tmp_path: Path, dump: Callable[[Any, Path], None]) -> None:
    pixels, labels = write_cifar10(tmp_path / "c", dump)
    data = made(tmp_path / "c", val_fraction=0)
    assert data.class_names == [f"kind {label}" for label in range(10)]
    assert (data.facts()["in_channels"], data.facts()["image_size"]) == (3, 32)
    for split, own in (("train", slice(50)), ("test", slice(50, None))):
        np.testing.assert_array_equal(pixels_of(data, split), pixels[own])
        assert whole(data, split)["y"].tolist() == labels[own].tolist()
    assert len(data.mean) == len(data.std) == 3


def test_cifar_10_in_its_binary_version(tmp_path: Path) -> None:
    folder, pixels = tmp_path / "c", noise(40, 3, 32, 32)
    folder.mkdir()
    rows = np.concatenate([(np.arange(40) % 10).astype(np.uint8)[:, None], pixels.reshape(40, -1)], 1)
    for name, own in (("data_batch_1", slice(15)), ("data_batch_2", slice(15, 30)), ("test_batch", slice(30, None))):
        rows[own].tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"kind{label}" for label in range(10)) + "\n\n")
    data = made(folder, val_fraction=0)
    np.testing.assert_array_equal(pixels_of(data, "train"), pixels[:30])
    assert whole(data, "test")["y"].tolist() == [*range(10)]
    assert data.class_names[-1] == "kind9"


@pytest.mark.parametrize("binary", [False, True])
def test_cifar_100_has_its_fine_labels(tmp_path: Path, binary: bool) -> None:
    folder, pixels, fine = tmp_path / "c", noise(20, 3, 32, 32), np.arange(20) + 80
    folder.mkdir()
    for part, own in (("train", slice(15)), ("test", slice(15, None))):
        if binary:
            both = np.stack([fine[own] // 5, fine[own]], 1).astype(np.uint8)
            np.concatenate([both, pixels[own].reshape(len(both), -1)], 1).tofile(folder / f"{part}.bin")
        else:
            content = {b"coarse_labels": (fine[own] // 5).tolist(), b"fine_labels": fine[own].tolist()}
            _dump_2(content | {b"data": pixels[own].reshape(-1, 3072)}, folder / part)
    data = made(folder, val_fraction=0, num_classes=100)
    assert whole(data, "train")["y"].tolist() == fine[:15].tolist()
    np.testing.assert_array_equal(pixels_of(data, "test"), pixels[15:])


class _Harmful:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harm"),)


def test_a_pickle_that_would_run_something_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (_Harmful(), {b"data": _Harmful()}, [len]):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"data_batch_1 is no file of CIFAR's python version: it names \w+"):
            read_pickle(tmp_path / "data_batch_1")
    assert not (tmp_path / "harm").exists()


# -- folders of pictures -----------------------------------------------------------------------------------------------


def write_pictures(folder: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            depth = (3,) if mode == "RGB" else ()
            array = noise(size[1], size[0], *depth, seed=100 * label + index)
            Image.fromarray(array, "RGB" if mode == "RGB" else "L").save(folder / name / f"{index}.png")
    return folder


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", {"dog": 10, "cat": 10})
    (folder / ".hidden").mkdir()
    (folder / "read.me").write_text("no picture")
    data = made(folder, val_fraction=0.25)
    assert data.class_names == ["cat", "dog"]
    assert {name: len(split) for name, split in data.splits()} == {"train": 12, "val": 4, "test": 4}
    files = {
        noise(8, 8, 3, seed=seed).transpose(2, 0, 1).tobytes(): seed < 100 for seed in [*range(10), *range(100, 110)]
    }
    for split in ("train", "val", "test"):
        for x, y in zip(pixels_of(data, split), whole(data, split)["y"].tolist(), strict=True):
            assert files[x.tobytes()] == bool(y)  # seeds below 100 are dogs, whose number is 1


def test_parts_of_a_folder_stay_what_they_are(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("validation", 2), ("test", 3)):
        write_pictures(tmp_path / "f" / part, {"a": count, "b": count})
    data = made(tmp_path / "f")
    assert {name: len(split) for name, split in data.splits()} == {"train": 12, "val": 4, "test": 6}
    write_pictures(tmp_path / "f" / "test", {"c": 1})
    with pytest.raises(ValueError, match=r"test/c: there is no class 'c' in the training part"):
        made(tmp_path / "f")


def test_small_pictures_are_decoded_once_and_large_ones_at_every_reading(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", {"a": 10, "b": 10})
    lazy, kept = made(folder, cache_bytes=10), made(folder)
    assert isinstance(lazy.split("train").pixels, Pictures)
    assert isinstance(kept.split("train").pixels, Decoded)
    for split in ("train", "val", "test"):
        for name in ("x", "y"):
            assert torch.equal(whole(lazy, split)[name], whole(kept, split)[name])
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:40] + b"broken")  # other content: another entry of the cache
    with pytest.raises(ValueError, match=r"the picture .*\.png cannot be read"):
        whole(lazy, "train")
    assert whole(kept, "train")["x"].shape == (14, 3, 8, 8)
    with pytest.raises(ValueError, match="cannot be read"):
        made(folder)


def test_loader_processes_open_pictures_and_the_cache_themselves(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", {"a": 10, "b": 10})
    for settings in ({"cache_bytes": 10}, {}):
        split = made(folder, **settings).split("train")
        sent = pickle.dumps(split)
        assert len(sent) < 6_000 if not settings else True  # not the pixels
        assert torch.equal(pickle.loads(sent).__getitems__(np.arange(3))["x"], split.__getitems__(np.arange(3))["x"])
    data = made(folder, cache_bytes=10, num_workers=1)
    first = next(iter(data.train_dataloader()))
    assert torch.equal(first["x"], next(iter(made(folder).train_dataloader()))["x"])


def test_pictures_of_other_sizes_are_scaled_and_cut_around_their_centre(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            wide = np.zeros((8, 24), np.uint8)
            wide[:, 4:20] = 200  # the centre, with what resampling looks at around it
            Image.fromarray(wide).resize((24 * (index + 1), 8 * (index + 1)), 0).save(folder / name / f"{index}.png")
    with pytest.raises(ValueError, match=r"not squares of one size \(24x8 as .*; set data.image_size"):
        made(folder)
    data = made(folder, image_size=8, val_fraction=0)
    assert data.facts()["in_channels"] == 1
    assert (pixels_of(data, "train") == 200).all()
    assert made(folder, image_size=8, in_channels=3, val_fraction=0).facts()["in_dim"] == 192


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_8_bits_becomes_colour(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "f"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            picture = Image.new("RGB", (6, 6), (255, 255, 255)).convert(mode)
            picture.save(folder / name / f"{index}.{'jpg' if mode == 'CMYK' else 'png'}")
    data = made(folder, in_channels=3, val_fraction=0, test_fraction=0.25, mean=[0.0] * 3, std=[1.0] * 3)
    assert (pixels_of(data, "train") == 255).all()
    assert made(folder, val_fraction=0, test_fraction=0.25).facts()["in_channels"] == (
        1 if mode in ("1", "L", "LA") else 3
    )


def test_broken_pictures_are_named_together(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", {"a": 8, "b": 8})
    (folder / "a" / "3.png").write_bytes(b"no picture")
    (folder / "b" / "5.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 pictures cannot be read: .*a/3.png .*; .*b/5.png .* take them away"):
        made(folder)


def test_a_picture_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "f", {"a": 8, "b": 8}, mode="L")
    Image.fromarray(noise(8, 8).astype(np.uint16) * 200).save(folder / "a" / "0.png")
    with pytest.raises(ValueError, match=r"a/0.png cannot be read: its mode I;16 has more than 8 bits a pixel"):
        made(folder)


# -- a dataset of the Hub, here a folder of its own format -------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Images]:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def make(labels: list[Any], feature: Any, **settings: Any) -> Images:
        features = datasets.Features({"picture": datasets.Image(), "kind": feature})
        pictures = [Image.fromarray(noise(8, 8, 3, seed=index)) for index in range(len(labels))]
        rows = datasets.Dataset.from_dict({"picture": pictures, "kind": labels}, features=features)
        (tmp_path / "hub").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
        columns = {"image_column": "picture", "label_column": "kind"} | settings
        data = Images(4, 4, dataset=str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"), **columns)
        data.prepare()
        return data

    return make


@pytest.mark.parametrize("kind", ["names", "text", "numbers"])
def test_a_dataset_of_the_hub(hub: Callable[..., Images], kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    numbers = [index % 2 for index in range(20)]
    feature, labels, names = {
        "names": (datasets.ClassLabel(names=["cat", "dog"]), numbers, ["cat", "dog"]),
        "text": (datasets.Value("string"), [["cat", "dog"][label] for label in numbers], ["cat", "dog"]),
        "numbers": (datasets.Value("int64"), numbers, ["0", "1"]),
    }[kind]
    data = hub(labels, feature)
    assert data.class_names == names
    assert {name: len(split) for name, split in data.splits()} == {"train": 14, "val": 2, "test": 4}
    seeds = {noise(8, 8, 3, seed=index).transpose(2, 0, 1).tobytes(): index for index in range(20)}
    for x, y in zip(pixels_of(data, "train"), whole(data, "train")["y"].tolist(), strict=True):
        assert seeds[x.tobytes()] % 2 == y


def test_wrong_columns_and_labels_of_the_hub_are_named(hub: Callable[..., Images]) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(
        ValueError, match=r"data.image_column='img' and data.label_column='kind' are no images and labels"
    ):
        hub([0, 1] * 5, datasets.Value("int64"), image_column="img")
    with pytest.raises(ValueError, match=r"1 labels out of range, such as -1: they must lie in \[0, 2\)"):
        hub([0, 1] * 5 + [None], datasets.Value("int64"))


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.dataset='.*nothing' \(config None\) was not loaded: .*give data.path"):
        Images(4, 4, dataset=str(tmp_path / "nothing")).prepare()


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m", "train", noise(60, 8, 8), np.arange(60) % 3)
    images, labels = (tmp_path / "m" / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    good = images.read_bytes()
    for content, message in (
        (good[:-200], "is damaged"),
        (b"no gzip", "is damaged"),
        (gzip.compress(gzip.decompress(good)[:-1]), r"an array \(60, 8, 8\) has 3840 bytes, not 3839"),
        (gzip.compress(b"\0\0\x0d\x01"), "is no idx file of bytes: it begins with 00 00 0d 01"),
        (gzip.compress(b""), "is no idx file of bytes: it begins with nothing"),
        (labels.read_bytes(), "holds an array of 1 axes; images have 3"),
    ):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.gz {message}|{message}"):
            made(tmp_path / "m")
    images.write_bytes(good)
    write_idx(labels, np.zeros(59, np.uint8))
    with pytest.raises(ValueError, match=r"the train part of .* has 60 images and 59 labels"):
        made(tmp_path / "m")
    labels.unlink()
    with pytest.raises(ValueError, match=r"has no labels beside it; bring train-labels-idx1-ubyte.gz there"):
        made(tmp_path / "m")


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 1, 12] * 20, {"num_classes": 10}, r"20 labels out of range, such as 12: they must lie in \[0, 10\)"),
        ([0, 1] * 20 + [2], {}, r"test_fraction=0.2 of 41 images is 9, .*each of the 3 classes.*\('2' has 1 in all\)"),
        ([*range(9)] * 2, {}, r"test_fraction=0.2 of 18 images is 4, which must hold one of each of the 9 classes"),
        (
            [0, 1] * 20,
            {"image_size": 9},
            "data.image_size=9, but the images of .* have image_size=8; set it to null or 8",
        ),
        ([0, 1] * 20, {"class_names": ["a", "b"], "num_classes": 3}, "data.num_classes=3 and 2 data.class_names"),
        ([0, 1] * 20, {"mean": [0.1, 0.1, 0.1]}, "give a number for each of the 1 channels"),
        ([0, 1] * 20, {"std": [0.0]}, "std above 0"),
        ([0, 1] * 20, {"in_channels": 2}, r"images have 1 \(gray\) or 3 \(colour\)"),
        ([0, 1] * 20, {"test_fraction": 1.0}, r"data.test_fraction=1.0 must lie in \[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, labels: list[int], settings: dict, message: str) -> None:
    write_mnist(tmp_path / "m", "train", noise(len(labels), 8, 8), np.array(labels))
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "m", **settings)


def test_images_that_are_no_squares_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "m", "train", noise(60, 8, 9), np.arange(60) % 3)
    with pytest.raises(ValueError, match="are 8x9, but must be squares"):
        made(tmp_path / "m")


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images to train on: looked for"):
        made(tmp_path / "empty")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(ValueError, match="empty holds no images to train on: looked for"):
        made(tmp_path / "empty")
    write_pictures(tmp_path / "empty", {"dog": 3})
    with pytest.raises(ValueError, match="cat holds no pictures"):
        made(tmp_path / "empty")
    with pytest.raises(ValueError, match="is no folder"):
        made(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no images are named: set data.path"):
        Images(4, 4).prepare()


def test_idx_files_of_any_number_of_axes(tmp_path: Path) -> None:
    for shape in ((7,), (2, 3), (2, 3, 4, 5)):
        write_idx(tmp_path / "a", noise(*shape))
        np.testing.assert_array_equal(read_idx(tmp_path / "a"), noise(*shape))


def test_the_stratified_split_holds_as_much_of_each_class() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 10])
    rest, held_out = stratified(y, 0.2)
    assert np.bincount(y[held_out]).tolist() == [20, 10, 2]
    assert sorted([*rest, *held_out]) == [*range(160)]
