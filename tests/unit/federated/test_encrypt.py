"""A sum of ciphertexts decrypts to the sum, and the server cannot decrypt."""

import pytest
import torch

from scaledl.federated.encrypt import Encrypted

tenseal = pytest.importorskip("tenseal")


def test_the_encrypted_sum_is_the_plain_one() -> None:
    dim, members = 5000, [0, 1, 2, 3]  # two ciphertexts
    shares = torch.randn(4, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    aggregation = Encrypted()
    aggregation.begin(members, dim, seed=0, round=0)
    messages = [aggregation.send(client, shares[client]) for client in members]
    for message in messages[:3]:  # the last one is lost
        aggregation.receive(message)
    assert torch.allclose(aggregation.finish([0, 1, 2]), shares[:3].sum(0), atol=1e-6, rtol=0)
    assert aggregation.size_of(messages[0]) > 8 * dim
    seen = aggregation.seen(messages[0])
    assert abs(torch.corrcoef(torch.stack((seen, shares[0])))[0, 1]) < 0.1


def test_the_server_has_no_secret_key() -> None:
    aggregation = Encrypted()
    aggregation.begin([0], 3, seed=0, round=0)
    message = aggregation.send(0, torch.ones(3))
    with pytest.raises(ValueError, match="secret"):
        tenseal.ckks_vector_from(aggregation._server, message[0]).decrypt()
