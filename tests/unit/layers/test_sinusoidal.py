import math

import pytest
import torch

from scaledl.layers.position import sinusoidal


def test_sinusoids_are_vaswanis_in_another_order() -> None:
    positions = [0, 1, 7, 5000]
    table = sinusoidal(torch.tensor(positions), 6)
    assert table.shape == (4, 6)
    for row, position in zip(table, positions, strict=True):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert row[i].item() == pytest.approx(math.sin(angle), abs=1e-3)
            assert row[3 + i].item() == pytest.approx(math.cos(angle), abs=1e-3)


def test_a_shift_is_the_same_rotation_everywhere() -> None:
    """Section 3.5: PE(p + k) is a linear function of PE(p); so products depend on the distance alone."""
    near, far = sinusoidal(torch.tensor([3, 10]), 32), sinusoidal(torch.tensor([53, 60]), 32)
    torch.testing.assert_close(near[0] @ near[1], far[0] @ far[1], atol=1e-4, rtol=1e-4)
    further = sinusoidal(torch.tensor([3, 11]), 32)
    assert (further[0] @ further[1] - near[0] @ near[1]).abs() > 0.1
