import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from scaledl.data.photographs import Photographs


def test_squares_are_cut_from_the_photographs() -> None:
    splits = dict(Photographs(8, 8, image_size=32, stride=32).splits())
    china, flower = load_sample_images().images
    train = splits["train"].__getitems__(np.arange(len(splits["train"])))
    assert train["x"].shape == (2 * 13 * 12, 3, 32, 32)
    assert train["y"].bincount().tolist() == [13 * 12] * 2
    np.testing.assert_allclose(train["x"][0].movedim(0, -1) * 255, china[:32, :32], atol=1e-4)
    np.testing.assert_allclose(train["x"][13 * 12 + 13].movedim(0, -1) * 255, flower[32:64, 32:64], atol=1e-4)


def test_splits_share_no_pixel() -> None:
    splits = dict(Photographs(8, 8, image_size=16, stride=1).splits())
    assert list(splits) == ["train", "val", "test"]
    last_of_train = splits["train"].__getitems__(np.array([368]))["x"][0]  # the end of the first row
    china = torch.from_numpy(load_sample_images().images[0][:16].copy()).movedim(-1, 0) / 255
    torch.testing.assert_close(last_of_train, china[:, :, 384 - 16 : 384])
    torch.testing.assert_close(splits["val"].__getitems__(np.array([0]))["x"][0], china[:, :, 384 : 384 + 16])


def test_squares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.image_size=200 .* 1 to 128 pixels"):
        Photographs(8, 8, image_size=200)
