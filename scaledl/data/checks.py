"""Rules that the settings of several kinds of data share."""

from scaledl.data.tokenizer import Tokenizer


def one_source(path: str | None, dataset: str | None) -> None:
    """Raises ValueError: both name where the data comes from."""
    if path and dataset:
        raise ValueError(f"data.path={path!r} and data.dataset={dataset!r} name two sources; set one of them to null")


def held_out(val_fraction: float, test_fraction: float) -> None:
    """Raises ValueError: the shares held out leave nothing to train on."""
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} and test_fraction={test_fraction} must be at least 0, and together "
            "leave something below 1 to train on"
        )


def vocab_size(asked: int | None, tokenizer: Tokenizer) -> int:
    """What was asked for, or the tokenizer's. Raises ValueError: it is too small for that."""
    if asked is not None and asked < tokenizer.vocab_size:
        raise ValueError(
            f"data.vocab_size={asked} is smaller than the {tokenizer.vocab_size} of the {tokenizer.kind} tokenizer; "
            f"set it to null or to at least {tokenizer.vocab_size}"
        )
    return asked or tokenizer.vocab_size
