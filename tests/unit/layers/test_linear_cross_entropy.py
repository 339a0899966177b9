"""The loss in chunks against torch's own on whole logits: value, gradients, and what is in memory."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scaledl.layers import linear
from scaledl.layers import linear_cross_entropy as loss_module
from scaledl.layers.linear_cross_entropy import linear_cross_entropy

N, DIM, V = 37, 12, 50


def inputs(ignored: int = 5, **wants: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with a spread of about 10, as a trained model has; the first labels are left out."""
    generator = torch.Generator().manual_seed(0)
    features = (3 * torch.randn(N, DIM, generator=generator)).requires_grad_(wants.get("features", True))
    weight = torch.randn(V, DIM, generator=generator).requires_grad_(wants.get("weight", True))
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[:ignored] = -100
    return features, weight, labels


def plain(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(features, weight).float(), labels)


def gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [tensor for tensor in tensors if tensor.requires_grad]))


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """By the norm of the difference: what is zero in the one and rounding in the other has no relative error."""
    assert found.dtype == expected.dtype
    assert ((found - expected).norm() / expected.norm()).item() <= tolerance


@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 1000, None])
@pytest.mark.parametrize("wants", [{}, {"weight": False}, {"features": False}], ids=["both", "features", "weight"])
def test_loss_and_gradients_are_those_of_whole_logits(chunk_tokens: int | None, wants: dict[str, bool]) -> None:
    features, weight, labels = inputs(**wants)
    expected, found = plain(features, weight, labels), linear_cross_entropy(features, weight, labels, chunk_tokens)
    assert_near(found, expected, 1e-6)
    for ours, theirs in zip(
        gradients(found / 3, features, weight), gradients(expected / 3, features, weight), strict=True
    ):
        assert_near(ours, theirs, 1e-6)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(features, weight, labels, chunk_tokens), found)


def test_the_default_for_many_logits() -> None:
    features, weight, labels = torch.randn(600, 4), torch.randn(2000, 4, requires_grad=True), torch.arange(600)
    expected = plain(features, weight, labels)
    found = linear_cross_entropy(features, weight, labels)
    assert type(found.grad_fn).__name__ == "_LinearCrossEntropyBackward"
    assert_near(found, expected, 1e-6)
    assert_near(gradients(found, weight)[0], gradients(expected, weight)[0], 1e-6)


@pytest.mark.parametrize("wants", [{}, {"weight": False}, {"features": False}], ids=["both", "features", "weight"])
def test_products_by_onednn(monkeypatch: pytest.MonkeyPatch, wants: dict[str, bool]) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "processor_is_amd", lambda: True)
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)
    products = []
    monkeypatch.setattr(loss_module, "product", lambda x, w: products.append(x) or linear.product(x, w))
    test_loss_and_gradients_are_those_of_whole_logits(8, wants)
    assert products


@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_a_batch_without_a_label_teaches_nothing(chunk_tokens: int | None) -> None:
    features, weight, labels = inputs(ignored=N)
    loss = linear_cross_entropy(features, weight, labels, chunk_tokens)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, features, weight))


def test_a_hopeless_token_has_a_finite_loss() -> None:
    """Its probability is 0 in fp32; its loss is the distance of the logits."""
    features, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[500.0], [-500.0]])
    loss = linear_cross_entropy(features, weight, torch.tensor([1]), 1)
    assert loss.item() == 1000
    assert gradients(loss, features)[0].item() == 1000


def test_a_label_that_is_no_token_is_an_error() -> None:
    features, weight, labels = inputs()
    for wrong in (V, -1):
        labels[7] = wrong
        with pytest.raises((IndexError, RuntimeError)):
            linear_cross_entropy(features, weight, labels, 8)


def test_autocast_computes_products_in_bf16_and_adds_them_in_fp32() -> None:
    features, weight, labels = inputs()
    exact = gradients(plain(features, weight, labels), features, weight)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = plain(features, weight, labels), linear_cross_entropy(features, weight, labels, 1)
    assert found.dtype == torch.float32
    assert_near(found, expected, 1e-5)
    theirs, ours = gradients(expected, features, weight), gradients(found, features, weight)
    for a, b, reference in zip(ours, theirs, exact, strict=True):
        assert_near(a, b, 1e-2)
        assert (a - reference).norm() <= 1.1 * (b - reference).norm()  # in chunks of one token it loses nothing


def test_weights_in_bf16_get_gradients_in_bf16() -> None:
    features, weight, labels = (
        tensor.detach().bfloat16() if tensor.is_floating_point() else tensor for tensor in inputs()
    )
    features.requires_grad_(), weight.requires_grad_()
    expected, found = plain(features, weight, labels), linear_cross_entropy(features, weight, labels, 8)
    assert found.dtype == torch.float32
    assert_near(found, expected, 1e-5)
    for ours, theirs in zip(gradients(found, features, weight), gradients(expected, features, weight), strict=True):
        assert_near(ours, theirs, 1e-2)


class Largest(TorchDispatchMode):
    """The most elements that a tensor has that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_of_one_chunk_exist_at_a_time() -> None:
    features, weight, labels = inputs()
    with Largest() as chunked:
        linear_cross_entropy(features, weight, labels, 14).backward()
    with Largest() as whole:
        plain(features, weight, labels).backward()
    assert (chunked.elements, whole.elements) == (14 * V, N * V)


def test_it_has_shapes_without_memory() -> None:
    features, weight = torch.randn(N, DIM, device="meta", requires_grad=True), torch.randn(V, DIM, device="meta")
    loss = linear_cross_entropy(features, weight, torch.zeros(N, dtype=torch.int64, device="meta"), 8)
    loss.backward()
    assert loss.shape == ()
    assert features.grad.shape == features.shape


def test_a_chunk_has_tokens() -> None:
    with pytest.raises(ValueError, match="chunk_tokens=0: a chunk has at least one token"):
        linear_cross_entropy(*inputs(), chunk_tokens=0)
