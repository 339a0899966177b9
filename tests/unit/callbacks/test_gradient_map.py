"""Where gradients are added up they are drawn, and where they cannot be, a run goes on without the picture."""

from pathlib import Path

import pytest
import torch

from scaledl.callbacks.gradient_map import GradientMap
from scaledl.distributed.strategy import Single


def test_its_columns_are_the_norms_of_each_steps_gradient(fit, tmp_path: Path) -> None:
    class Noted(GradientMap):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
            noted.append(pl_module.model.weight.grad.square().sum())
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    noted: list[torch.Tensor] = []
    callback = Noted()
    fit(callback, max_steps=4)
    assert callback._steps == [1, 2, 3, 4]
    torch.testing.assert_close(torch.cat(callback._squares), torch.stack(noted))
    assert (tmp_path / "plots" / "gradients.png").stat().st_size > 1000


def test_columns_thin_out_as_they_become_many(fit) -> None:
    callback = GradientMap(max_columns=4)
    fit(callback, max_steps=9)
    assert callback._steps == [1, 5, 9]


def test_a_strategy_that_keeps_no_gradients_goes_without_it(fit, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Single, "strategy_name", "deepspeed_2")
    with pytest.warns(UserWarning, match="under strategy=single, ddp, fsdp, not under deepspeed_2"):
        fit(GradientMap(), max_steps=2)
    assert not (tmp_path / "plots").exists()
