import pytest
import torch

from scaledl import judge
from scaledl.data.digits import Digits
from scaledl.data.points import Points


def features(samples: int = 500, dim: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, dim, generator=generator, dtype=torch.float64) @ torch.randn(
        dim, dim, generator=generator, dtype=torch.float64
    )


def test_the_distance_of_a_scaled_and_moved_set_has_a_closed_form() -> None:
    real, shift = features(), torch.arange(6, dtype=torch.float64)
    expected = real.T.cov().trace() * (1.5 - 1) ** 2 + (real.mean(0) * 0.5 + shift).square().sum()
    assert judge.frechet_distance(real, 1.5 * real + shift) == pytest.approx(float(expected))
    assert judge.frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_the_distance_is_that_of_a_general_matrix_root() -> None:
    one, other = features(), features().flip(1) * torch.tensor([1, 2, 3, 1, 1, 1])  # covariances that do not commute
    s, t = one.T.cov(), other.T.cov()
    root = torch.linalg.eigvals(s @ t).real.clamp(min=0).sqrt().sum()  # the trace of (S S')^(1/2)
    expected = (one.mean(0) - other.mean(0)).square().sum() + s.trace() + t.trace() - 2 * root
    assert judge.frechet_distance(one, other) == pytest.approx(float(expected))
    assert judge.frechet_distance(other, one) == pytest.approx(float(expected))


def test_the_distance_of_few_samples_whose_covariance_has_no_full_rank_is_finite() -> None:
    few = features(4)
    assert judge.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_precision_and_recall_equal_a_hand_example() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=torch.float64)  # radii to the nearest: 1, 1, 1, 8
    generated = torch.tensor([[0.5], [2.5], [-3.0], [1.0]], dtype=torch.float64)  # radii: 0.5, 1.5, 3.5, 0.5
    # 0.5, 2.5 and 1 lie in a ball around a real one, -3 in none; of the real, 0, 1 and 2 do, 10 does not.
    assert judge.precision_recall(real, generated, k=1) == (0.75, 0.75)
    assert judge.precision_recall(real, generated[:1].repeat(4, 1), k=1) == (1.0, 0.0)  # one mode
    with pytest.raises(ValueError, match="3 samples have no 3 neighbours each"):
        judge.precision_recall(real[:3], generated)


def test_coverage_is_the_share_of_classes_seen_often_enough() -> None:
    real = torch.eye(4).repeat(25, 1)
    generated = torch.cat([torch.eye(4)[[0]].repeat(95, 1), torch.eye(4)[[1]].repeat(3, 1), torch.eye(4)[[2, 2]]])
    assert judge.coverage(real, generated) == 0.5  # 3 % of class 1 is a tenth of 25 %, 2 % of class 2 is not
    assert judge.coverage(real, torch.full((100, 4), 0.25)) == 0  # nothing that the judge is sure of


def test_a_judge_is_a_function_of_its_images_and_the_seed(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "MAX_STEPS", 3)
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path))
    x, y = judge.images_of(Digits(8, 8).split("val"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = judge.trained_judge(x, y, 10)
    assert torch.equal(before, torch.get_rng_state())
    kept = list((tmp_path / "judges").iterdir())
    again = judge.trained_judge(x, y, 10)
    assert list((tmp_path / "judges").iterdir()) == kept  # read, not learned again
    for path in kept:
        path.unlink()
    anew = judge.trained_judge(x, y, 10)
    for one, two, three in zip(*(j.state_dict().values() for j in (first, again, anew)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    other = judge.trained_judge(x, y, 10, seed=1)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert len(list((tmp_path / "judges").iterdir())) == 2


def test_samples_are_shown_beside_images_with_classes() -> None:
    with pytest.raises(ValueError, match=r"gives x \(\d+, 2\), y \(\d+,\); take such data, or remove"):
        judge.images_of(Points("moons", 4, 4, num_samples=40).split("train"))
