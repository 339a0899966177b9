import inspect
import os
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.vit import ViT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONF = Path(__file__).parents[3] / "conf"
SMALL = {"in_channels": 3, "image_size": 12, "patch_size": 4, "out_dim": 5, "dim": 32, "depth": 2, "num_heads": 4}
LOUD = {**SMALL, "init_std": 0.2}  # weights so large that a wrong one shows in the logits
POOLS = ["class_token", "mean"]


def make(**changes: object) -> ViT:
    return ModelBuilder(partial(ViT, **{**LOUD, **changes}), seed=0)()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vit_ti16", 5_717_416), ("vit_s16", 22_050_664), ("vit_b16", 86_567_656), ("vit_l16", 304_326_632)],
)
def test_published_parameter_counts(name: str, expected: int) -> None:
    with hydra.initialize_config_dir(str(CONF / "model"), version_base="1.3"):
        config = OmegaConf.merge(hydra.compose(name), {"in_channels": 3, "image_size": 224, "out_dim": 1000})
    with torch.device("meta"):
        model = hydra.utils.instantiate(config, _convert_="all")
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_vit_yaml_names_every_argument_with_its_default() -> None:
    config = yaml.safe_load((CONF / "model/vit.yaml").read_text())
    assert config.pop("_target_") == "scaledl.models.vit.ViT"
    parameters = inspect.signature(ViT).parameters
    assert list(config) == list(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {name: config[name] for name in defaults} == defaults


RENAMES = {
    "vit.embeddings.cls_token": "class_token",
    "vit.embeddings.position_embeddings": "position_embedding",
    "vit.embeddings.patch_embeddings.projection": "patch_embedding",
    "vit.layers": "blocks",
    "layernorm_before": "attention_norm",
    "layernorm_after": "feedforward_norm",
    "_proj": "",
    "attention.o.": "attention.out.",
    "mlp.fc1": "feedforward.up",
    "mlp.fc2": "feedforward.down",
    "vit.layernorm": "norm",
    "classifier": "head",
}


def reference() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=12,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        layer_norm_eps=1e-6,
        initializer_range=0.2,
        num_labels=5,
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():  # ones and zeros would hide a norm or a bias that is not copied
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours = {}
    for name, value in theirs.state_dict().items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        ours[name] = value
    ours["class_token"], ours["position_embedding"] = ours["class_token"][0, 0], ours["position_embedding"][0]
    return theirs, ours


@torch.no_grad()
def test_logits_equal_those_of_transformers() -> None:
    theirs, weights = reference()
    ours = make().eval()
    ours.load_state_dict(weights)
    expected = theirs(images()).logits
    torch.testing.assert_close(ours(images()), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("change", [{"norm_eps": 1e-2}, {"num_heads": 2}])
def test_the_comparison_sees_a_wrong_argument(change: dict) -> None:
    theirs, weights = reference()
    ours = make(**change).eval()
    ours.load_state_dict(weights)
    assert (ours(images()) - theirs(images()).logits).abs().max() > 1e-3


@torch.no_grad()
def test_mean_pooling_is_the_mean_over_patches() -> None:
    model = make(pool="mean", depth=0)
    x = images()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(4, 9, 48)  # (B, T, C * 4 * 4)
    tokens = patches @ model.patch_embedding.weight.flatten(1).T + model.patch_embedding.bias
    expected = model.norm(tokens + model.position_embedding).mean(1)
    torch.testing.assert_close(model.forward_features(x), expected, atol=1e-5, rtol=1e-4)
    assert model(x).shape == (4, 5)


@pytest.mark.parametrize("pool", POOLS)
def test_a_gradient_for_every_parameter(pool: str) -> None:
    model = make(pool=pool)
    model(images()).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
        assert parameter.grad is not None, name
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("pool", POOLS)
def test_state_dict_round_trip_and_equal_builds(pool: str) -> None:
    model, other = make(pool=pool), make(pool=pool)
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, two), name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(images()), model(images()), atol=0, rtol=0)


def test_bf16_is_near_fp32() -> None:
    model = make(init_std=0.02)
    expected = model(images())
    found = model.bfloat16()(images().bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.05)


def test_recomputed_blocks_leave_the_same_branches_out() -> None:
    make_model = partial(ViT, **LOUD, path_dropout=0.5, dropout=0.1)
    plain = ModelBuilder(make_model, seed=0)()
    recomputed = ModelBuilder(make_model, seed=0, activation_checkpointing="full")()
    assert sum("CheckpointWrapper" in type(module).__name__ for module in recomputed.modules()) == 2
    for model in (plain, recomputed):
        torch.manual_seed(3)
        model(images()).logsumexp(1).sum().backward()
    for one, two in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_deeper_blocks_are_left_out_more_often() -> None:
    rates = [block.path_dropout.p for block in make(depth=5, path_dropout=0.2).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert make(depth=1, path_dropout=0.2).blocks[0].path_dropout.p == 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size=12 is not divisible by patch_size=5: .* choose a divisor"):
        make(patch_size=5)
    with pytest.raises(ValueError, match=r"images of shape \(1, 12, 12\), but the model was built for \(3, 12, 12\)"):
        make()(torch.zeros(2, 1, 12, 12))
