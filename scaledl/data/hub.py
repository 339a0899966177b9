"""Datasets of the Hugging Face Hub."""

from typing import Any

OURS = {"train": "train", "validation": "val", "test": "test"}  # names of splits


def load_splits(dataset: str, config: str | None) -> Any:
    """The splits of a dataset, by the Hub's names.

    Raises:
        ValueError: it was not loaded, or has no training split.
    """
    import datasets

    try:
        splits = datasets.load_dataset(dataset, config)
    except Exception as error:  # the library raises a dozen kinds, from DNS failures to bad names
        raise ValueError(
            f"data.dataset={dataset!r} (config {config}) was not loaded: {error}; check the name or, without a network "
            "here, run `scaledl prepare` once where there is one"
        ) from error
    if "train" not in splits:
        raise ValueError(f"data.dataset={dataset!r} has the splits {', '.join(splits)}, and none is called train")
    return splits
