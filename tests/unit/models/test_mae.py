import inspect
import os
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mae import MAE
from scaledl.models.vit import ViT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONF = Path(__file__).parents[3] / "conf"
SIZES = {"dim": 32, "depth": 2, "num_heads": 4}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def make(**changes: object) -> MAE:
    return ModelBuilder(partial(MAE, 3, 12, 4, **{**SIZES, **DECODER, "init_std": 0.2, **changes}))()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def orders(batch: int = 4) -> Tensor:
    return torch.rand(batch, 9, generator=torch.Generator().manual_seed(2)).argsort(1)


RENAMES = {
    "vit.embeddings.cls_token": "class_token",
    "vit.embeddings.position_embeddings": "position_embedding",
    "vit.embeddings.patch_embeddings.projection": "patch_embedding",
    "vit.layers": "blocks",
    "vit.layernorm": "norm",
    "decoder.decoder_pos_embed": "decoder_position_embedding",
    "decoder.decoder_embed.": "decoder_embedding.",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_pred": "head",
    "decoder.": "",
    "layernorm_before": "attention_norm",
    "layernorm_after": "feedforward_norm",
    "_proj": "",
    "attention.o.": "attention.out.",
    "mlp.fc1": "feedforward.up",
    "mlp.fc2": "feedforward.down",
}


@torch.no_grad()
def test_it_is_the_one_of_transformers_with_its_weights() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        image_size=12,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        layer_norm_eps=1e-6,
        initializer_range=0.2,
        mask_ratio=0.6,
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    for of_theirs in (*theirs.modules(), *theirs.parameters()):
        of_theirs._is_hf_initialized = False  # which keeps the tables of positions at zero
    theirs.vit.embeddings.initialize_weights()
    theirs.decoder.initialize_weights(9)
    for parameter in theirs.parameters():  # ones and zeros would hide a norm or a bias that is not copied
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    ours, weights = make().eval(), {}
    for name, value in theirs.state_dict().items():
        for old, new in RENAMES.items():
            name = name.replace(old, new)
        weights[name] = value.reshape(ours.state_dict()[name].shape)
    for table in ("position_embedding", "decoder_position_embedding"):
        torch.testing.assert_close(ours.state_dict()[table], weights[table], atol=1e-6, rtol=0)
    ours.load_state_dict(weights)
    x, order = images(), orders()
    expected = theirs(x, noise=order.argsort(1).float())
    kept = int(9 * (1 - 0.6))
    found = ours(x, order, kept)
    torch.testing.assert_close(found, expected.logits, atol=1e-5, rtol=1e-5)
    assert expected.logits.std() > 0.1
    torch.testing.assert_close(ours.patches(x), theirs.patchify(x))
    hidden = order[:, kept:, None]
    loss = (found - ours.patches(x)).square().mean(2, keepdim=True).take_along_dim(hidden, dim=1).mean()
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_hidden_patches_are_not_read_and_places_are_known() -> None:
    model, x, order = make(), images(), orders()
    expected = model(x, order, 4)
    patches = model.patches(x)
    other = model.images(patches.scatter(1, order[:, 4:, None].expand(-1, -1, 48), 7.0))
    assert not torch.equal(other, x)
    torch.testing.assert_close(model(other, order, 4), expected)
    shown_in_another_order = torch.cat((order[:, :4].flip(1), order[:, 4:].flip(1)), dim=1)
    torch.testing.assert_close(model(x, shown_in_another_order, 4), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.images(patches), x)


def test_a_gradient_for_every_parameter() -> None:
    model = make()
    model(images(), orders(), 4).logsumexp(2).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_a_vit_begins_with_its_encoder() -> None:
    model, vit = make(), ModelBuilder(partial(ViT, 3, 12, 4, 5, **SIZES))()
    weights = {name: value for name, value in model.state_dict().items() if name in vit.state_dict()}
    same = {name for name, value in vit.state_dict().items() if name in weights and weights[name].shape == value.shape}
    assert set(vit.state_dict()) - same == {"head.weight", "head.bias"}
    vit.load_state_dict({name: weights[name] for name in same}, strict=False)
    torch.testing.assert_close(vit.forward_features(images()), model._encode(images(), None)[:, 0])


def test_the_yaml_names_every_argument_with_its_default() -> None:
    config = yaml.safe_load((CONF / "model/mae.yaml").read_text())
    assert config.pop("_target_") == "scaledl.models.mae.MAE"
    parameters = inspect.signature(MAE).parameters
    assert list(config) == list(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {name: config[name] for name in defaults} == defaults


def test_bf16_is_near_fp32() -> None:
    model = make(init_std=0.02)
    expected = model(images(), orders(), 4)
    found = model.bfloat16()(images().bfloat16(), orders(), 4)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30, "num_heads": 2}, "dim=30 holds sines and cosines of two axes: make it a multiple of 4"),
        ({"decoder_dim": 18}, "decoder_dim=18 holds"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
    with pytest.raises(ValueError, match="image_size=12 is not divisible by patch_size=5"):
        MAE(3, 12, 5)
    with pytest.raises(ValueError, match=r"images of shape \(1, 12, 12\)"):
        make()(torch.zeros(2, 1, 12, 12), orders(2), 4)
