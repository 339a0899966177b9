"""Who takes part, who is lost, and how much each counts."""

import numpy as np
import pytest

from scaledl.federated.aggregate import Plain
from scaledl.federated.fedavg import FedAvg
from scaledl.federated.partition import IID
from scaledl.federated.privacy import ClientPrivacy


def federation(num_clients: int = 10, fraction: float = 1.0, dropout: float = 0.0, private: bool = False) -> FedAvg:
    privacy = ClientPrivacy(clip=1.0, noise_multiplier=1.0, delta=1e-6) if private else None
    return FedAvg(IID(), Plain(), num_clients, fraction, dropout=dropout, privacy=privacy)


def test_a_round_chooses_its_own_clients() -> None:
    rounds = [federation(fraction=0.3).chosen(0, number) for number in range(200)]
    assert all(len(chosen) == 3 and chosen == sorted(set(chosen)) for chosen in rounds)
    assert np.bincount(np.concatenate(rounds), minlength=10).min() > 30
    assert federation().chosen(0, 0) == list(range(10))
    assert federation(fraction=0.01).chosen(0, 0) != []


def test_with_privacy_each_client_comes_by_itself() -> None:
    rounds = [federation(1000, 0.1, private=True).chosen(0, number) for number in range(50)]
    sizes = [len(chosen) for chosen in rounds]
    assert np.mean(sizes) == pytest.approx(100, rel=0.05)
    assert np.std(sizes) == pytest.approx(90**0.5, rel=0.4)


def test_clients_are_lost_at_the_stated_rate() -> None:
    lost = [len(federation(dropout=0.2).lost(0, number, list(range(10)))) for number in range(500)]
    assert np.mean(lost) == pytest.approx(2, rel=0.1)
    assert federation().lost(0, 0, list(range(10))) == []


def test_a_client_counts_by_its_samples_or_with_privacy_like_any_other() -> None:
    assert federation(3).weights([10, 30, 60], [0, 2]) == {0: 10 / 70, 2: 60 / 70}
    assert federation(4, 0.5, private=True).weights([10, 30, 60, 0], [0, 2]) == {0: 0.5, 2: 0.5}


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction=0 must lie in \(0, 1\]"):
        federation(fraction=0)
    with pytest.raises(ValueError, match="num_clients=0 and local_epochs=1 must be at least 1"):
        federation(0)
    privacy = ClientPrivacy(clip=1.0, noise_multiplier=1.0, delta=0.1)
    with pytest.raises(ValueError, match=r"privacy.delta=0.1 is not below 1 / num_clients.*take 0.01, say"):
        FedAvg(IID(), Plain(), 10, privacy=privacy)
