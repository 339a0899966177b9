"""Augmentations are the geometry that they say, drawn for each sample from its position alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.data.augment import BrightnessContrast, Cutout, HorizontalFlip, RandomAffine, RandomCrop
from scaledl.distributed.noise import Noise

Change = Callable[[Tensor, Noise, str], Tensor]
ALL: dict[str, Change] = {
    "crop": RandomCrop(2),
    "reflect": RandomCrop(3, "reflect"),
    "flip": HorizontalFlip(),
    "affine": RandomAffine(degrees=15, translate=0.1, scale=0.1),
    "light": BrightnessContrast(),
    "cutout": Cutout(4),
}


def images(count: int = 64, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def noise(first: int = 0, count: int = 64, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(first, first + count))


@pytest.mark.parametrize("name", ALL)
def test_each_sample_has_its_own_draw_whatever_batch_it_is_in(name: str) -> None:
    x, change = images(), ALL[name]
    together = change(x, noise(), "a")
    assert (together.shape, together.dtype) == (x.shape, x.dtype)
    assert not torch.equal(together, x)
    parts = [change(x[at : at + 16], noise(at, 16), "a") for at in range(0, 64, 16)]
    torch.testing.assert_close(torch.cat(parts), together, rtol=0, atol=1e-6)
    for other in (change(x, noise(64), "a"), change(x, noise(seed=1), "a"), change(x, noise(), "b")):
        assert not torch.equal(other, together)


@pytest.mark.parametrize("name", ALL)
def test_bf16_stays_bf16(name: str) -> None:
    found = ALL[name](images().bfloat16(), noise(), "a")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), ALL[name](images(), noise(), "a"), atol=0.1, rtol=0.05)


@pytest.mark.parametrize(("mode", "outside"), [("constant", "constant"), ("reflect", "reflect")])
def test_a_crop_is_a_shift_by_at_most_the_padding_and_each_comes_as_often(mode: str, outside: str) -> None:
    x = images(1).expand(4000, -1, -1, -1)
    found = RandomCrop(2, mode)(x, noise(count=4000), "a")
    padded = F.pad(x[:1], [2] * 4, mode=outside)
    shifts = torch.stack([padded[0, :, r : r + 8, c : c + 8] for r in range(5) for c in range(5)])  # (25, C, H, W)
    equal = (found[:, None] == shifts[None]).all(-1).all(-1).all(-1)  # (4000, 25)
    assert (equal.sum(1) == 1).all()
    assert equal.float().mean(0).sub(1 / 25).abs().max() < 0.015


def test_a_flip_mirrors_columns_with_its_probability() -> None:
    x = images(4000, 1, 4)
    found = HorizontalFlip(0.3)(x, noise(count=4000), "a")
    flipped = (found == x.flip(3)).all(-1).all(-1).all(-1)
    assert ((found == x).all(-1).all(-1).all(-1) ^ flipped).all()
    assert flipped.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_an_affine_change_of_nothing_changes_nothing() -> None:
    torch.testing.assert_close(RandomAffine()(images(), noise(), "a"), images(), atol=1e-5, rtol=0)


def test_a_rotation_turns_around_the_centre_and_scaling_keeps_it() -> None:
    """A blob at the centre stays; one to the right goes on a circle, within the angle, on both sides."""
    place = torch.arange(33) - 16.0

    def blob(row: float, column: float) -> Tensor:
        return torch.exp(-((place[:, None] - row) ** 2 + (place[None] - column) ** 2) / 8).expand(256, 1, 33, 33)

    def centres(x: Tensor) -> tuple[Tensor, Tensor]:
        mass = x.sum((1, 2, 3))
        return (x.sum((1, 3)) @ place) / mass, (x.sum((1, 2)) @ place) / mass

    turned = RandomAffine(degrees=30)
    for value in centres(turned(blob(0, 0), noise(count=256), "a")):
        torch.testing.assert_close(value, torch.zeros(256), atol=0.02, rtol=0)
    row, column = centres(turned(blob(0, 8), noise(count=256), "a"))
    torch.testing.assert_close(row.hypot(column), torch.full((256,), 8.0), atol=0.05, rtol=0)
    angles = torch.rad2deg(torch.atan2(row, column))
    assert angles.min() < -25
    assert angles.max() > 25
    assert angles.abs().max() <= 30.3

    _, column = centres(RandomAffine(scale=0.2)(blob(0, 8), noise(count=256), "a"))
    assert 8 * 0.79 < column.min() < 8 * 0.85
    assert 8 * 1.15 < column.max() < 8 * 1.21
    row, column = centres(RandomAffine(translate=0.1)(blob(0, 0), noise(count=256), "a"))
    for value in (row, column):
        assert 2.8 < value.abs().max() <= 3.31  # a tenth of 33
    assert torch.corrcoef(torch.stack([row, column]))[0, 1].abs() < 0.2


def test_light_moves_mean_and_deviation_within_bounds() -> None:
    x = images(2000)
    found = BrightnessContrast(0.3, 0.4)(x, noise(count=2000), "a")
    moved = found.mean((1, 2, 3)) - x.mean((1, 2, 3))
    stretched = found.std((1, 2, 3)) / x.std((1, 2, 3))
    assert moved.abs().max() <= 0.3 + 1e-5
    assert moved.abs().max() > 0.29
    assert 0.6 - 1e-4 <= stretched.min() < 0.61
    assert 1.39 < stretched.max() <= 1.4 + 1e-4
    assert torch.corrcoef(torch.stack([moved, stretched]))[0, 1].abs() < 0.1


def test_cutout_covers_a_square_around_any_pixel() -> None:
    covered = Cutout(4)(torch.ones(5000, 2, 8, 8), noise(count=5000), "a") == 0
    assert torch.equal(covered[:, 0], covered[:, 1])
    rows, columns = covered[:, 0].any(2).sum(1), covered[:, 0].any(1).sum(1)  # heights and widths
    assert torch.equal(covered[:, 0].sum((1, 2)), rows * columns)
    # Centres 0 .. 7 leave squares of these heights inside the image.
    assert sorted(rows.unique().tolist()) == [2, 3, 4]
    shares = torch.bincount(rows, minlength=5)[2:] / 5000
    torch.testing.assert_close(shares, torch.tensor([1, 2, 5]) / 8, atol=0.02, rtol=0)
    assert torch.equal(Cutout(1)(torch.ones(9, 1, 5, 5), noise(count=9), "a").sum((1, 2, 3)), torch.full((9,), 24.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "padding=0 pixels must be at least 1"),
        (lambda: HorizontalFlip(1.5), "p=1.5 is no probability"),
        (lambda: RandomAffine(scale=1.0), "scale=1.0 are the largest changes"),
        (lambda: RandomAffine(degrees=-1), "degrees=-1"),
        (lambda: BrightnessContrast(contrast=2), "contrast=2 lie in"),
        (lambda: Cutout(0), "size=0 pixels must be at least 1"),
        (lambda: RandomCrop(8, "reflect")(images(), noise(), "a"), "padding=8 is more than 8x8 images can reflect"),
        (
            lambda: HorizontalFlip()(torch.ones(4, 5), noise(count=4), "a"),
            r"HorizontalFlip changes images .* is \(5,\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
