import inspect
import os
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bert import BERT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONF = Path(__file__).parents[3] / "conf"
SMALL = {"vocab_size": 61, "max_seq_len": 20, "dim": 32, "depth": 2, "num_heads": 4, "hidden_dim": 48}
LOUD = {**SMALL, "init_std": 0.2}  # weights so large that a wrong one shows in the logits
HEADS = {
    "mlm": {"head": "mlm"},
    "first": {"head": "classification", "out_dim": 5},
    "mean": {"head": "classification", "out_dim": 5, "pool": "mean"},
}


def make(**changes: object) -> BERT:
    return ModelBuilder(partial(BERT, **{**LOUD, **changes}), seed=0)()


def tokens(batch: int = 3, length: int = 12, low: int = 1) -> Tensor:
    return torch.randint(low, 61, (batch, length), generator=torch.Generator().manual_seed(1))


def padded() -> Tensor:
    """Samples of 12, 7 and 1 tokens."""
    ids = tokens()
    ids[1, 7:], ids[2, 1:] = 0, 0
    return ids


def count(name: str, **changes: object) -> int:
    with hydra.initialize_config_dir(str(CONF / "model"), version_base="1.3"):
        config = OmegaConf.merge(hydra.compose(name), changes)
    with torch.device("meta"):
        model = hydra.utils.instantiate(config, _convert_="all")
    return sum(parameter.numel() for parameter in model.parameters())


def test_published_parameter_counts() -> None:
    assert count("bert_base") == 109_514_298
    for name, dim, published in (("bert_base", 768, 109_482_240), ("bert_large", 1024, 335_141_888)):
        assert count(name, head="classification", out_dim=2) == published + 2 * (dim + 1)  # published without classes


def test_bert_yaml_names_every_argument_with_its_default() -> None:
    config = yaml.safe_load((CONF / "model/bert.yaml").read_text())
    assert config.pop("_target_") == "scaledl.models.bert.BERT"
    parameters = inspect.signature(BERT).parameters
    assert list(config) == list(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {name: config[name] for name in defaults} == defaults


# --- the same weights in transformers -------------------------------------------------------------------------------

RENAMES = {
    "bert.embeddings.word_embeddings": "token_embedding",
    "bert.embeddings.position_embeddings": "position_embedding",
    "bert.embeddings.token_type_embeddings": "token_type_embedding",
    "bert.embeddings.LayerNorm": "embedding_norm",
    "bert.encoder.layer": "blocks",
    "attention.self.query": "attention.q",
    "attention.self.key": "attention.k",
    "attention.self.value": "attention.v",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feedforward.up",
    "output.dense": "feedforward.down",
    "output.LayerNorm": "feedforward_norm",
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.bias": "head.bias",
    "bert.pooler.dense": "head.pooler",
    "classifier": "head.out",
}


def reference(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61,
        max_position_embeddings=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        initializer_range=0.2,
        num_labels=5,
    )
    made = transformers.BertForMaskedLM if kind == "mlm" else transformers.BertForSequenceClassification
    theirs = made(config).eval()
    with torch.no_grad():  # ones and zeros would hide a norm or a bias that is not copied
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours = {}
    for name, value in theirs.state_dict().items():
        if "decoder" not in name:  # the token embeddings and cls.predictions.bias again
            for old, new in RENAMES.items():
                name = name.replace(old, new)
            ours[name] = value
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mlm", "first"])
def test_logits_equal_those_of_transformers(kind: str) -> None:
    theirs, weights = reference(kind)
    ours = make(**HEADS[kind]).eval()
    ours.load_state_dict(weights)
    ids, types = padded(), torch.arange(12).ge(5).long().expand(3, 12)
    expected = theirs(ids, attention_mask=(ids != 0).long(), token_type_ids=types).logits
    found = ours(ids, token_type_ids=types)
    if kind == "mlm":
        expected, found = expected[ids != 0], found[ids != 0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert expected.std() > 0.1
    without_types = theirs(ids, attention_mask=(ids != 0).long()).logits
    torch.testing.assert_close(ours(ids)[0], without_types[0], atol=2e-5, rtol=1e-5)
    assert (without_types[0] - (expected[:12] if kind == "mlm" else expected[0])).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("change", [{"norm_eps": 1e-2}, {"num_heads": 2}, {"pad_id": None}])
def test_the_comparison_sees_a_wrong_argument(change: dict) -> None:
    theirs, weights = reference("first")
    ours = make(**HEADS["first"], **change).eval()
    ours.load_state_dict(weights)
    ids = padded()
    assert (ours(ids) - theirs(ids, attention_mask=(ids != 0).long()).logits).abs().max() > 1e-3


# --- heads and padding ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_at_positions_are_those_of_all_positions() -> None:
    model, ids = make().eval(), tokens()
    at = torch.tensor([[3, 0], [11, 11], [5, 2]])
    everywhere = model(ids)
    assert everywhere.shape == (3, 12, 61)
    torch.testing.assert_close(model(ids, predict_at=at), everywhere[torch.arange(3)[:, None], at])


@torch.no_grad()
@pytest.mark.parametrize("kind", HEADS)
def test_padding_does_not_change_a_sample(kind: str) -> None:
    model, short = make(**HEADS[kind]).eval(), tokens(length=7)
    long = nn.functional.pad(short, (0, 5))
    alone, among = model(short), model(long)
    torch.testing.assert_close(among[:, :7] if kind == "mlm" else among, alone, atol=1e-5, rtol=1e-5)
    seen = make(**HEADS[kind], pad_id=None).eval()(long)  # the same weights, to which a zero is a token
    assert ((seen[:, :7] if kind == "mlm" else seen) - alone).abs().max() > 1e-2


@pytest.mark.parametrize("kind", HEADS)
def test_a_sample_of_padding_alone_gives_finite_logits_and_gradients(kind: str) -> None:
    model = make(**HEADS[kind])
    logits = model(torch.zeros(2, 4, dtype=torch.int64))
    logits.logsumexp(-1).sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_every_token_sees_both_ways() -> None:
    model, ids = make().eval(), tokens(1)
    for changed in (0, 11):
        other = ids.clone()
        other[0, changed] = 62 - ids[0, changed]
        assert ((model(other) - model(ids)).abs().amax(2) > 1e-4).all()


@pytest.mark.parametrize("kind", HEADS)
def test_a_gradient_for_every_parameter(kind: str) -> None:
    model = make(**HEADS[kind])
    model(tokens()).logsumexp(-1).square().sum().backward()
    for name, parameter in model.named_parameters():
        # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
        assert parameter.grad is not None, name
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 1e-6, name


def test_heads_share_the_names_of_everything_else() -> None:
    mlm, classifier = (make(**HEADS[kind]) for kind in ("mlm", "mean"))
    bodies = [
        {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
        for model in (mlm, classifier)
    ]
    torch.testing.assert_close(*bodies, rtol=0, atol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_state_dict_round_trip_and_bf16(kind: str) -> None:
    model, other = (make(**HEADS[kind], init_std=0.02).eval() for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    other.load_state_dict(model.state_dict())
    expected = model(padded())
    torch.testing.assert_close(other(padded()), expected, atol=0, rtol=0)
    found = other.bfloat16()(padded())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.05)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    plain, recomputed = (
        ModelBuilder(partial(BERT, **LOUD), seed=0, activation_checkpointing=kind)() for kind in ("none", "full")
    )
    assert sum("CheckpointWrapper" in type(module).__name__ for module in recomputed.modules()) == 2
    for model in (plain, recomputed):
        torch.manual_seed(3)
        model(padded()).logsumexp(-1).sum().backward()
    for one, two in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"21 tokens is longer than max_seq_len=20: shorten"):
        make()(tokens(length=21))
    with pytest.raises(ValueError, match=r"head=classification with out_dim=None: a classifier needs"):
        make(head="classification")
    with pytest.raises(ValueError, match=r"head=mlm with out_dim=3: .* has none \(null\)"):
        make(out_dim=3)
