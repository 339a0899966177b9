"""GPT with experts: Mixtral and Qwen3-MoE by their arguments."""

import os

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.gpt import GPT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

MIXTRAL = {
    "vocab_size": 61,
    "max_seq_len": 48,
    "dim": 32,
    "depth": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim": 56,
    "norm": "rmsnorm",
    "position": "rotary",
    "rope_base": 500_000.0,
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
    "init_std": 0.2,
    "num_experts": 6,
    "balance": "loss",
}
QWEN3 = {**MIXTRAL, "head_dim": 12, "norm_eps": 1e-6, "qk_norm": True, "experts_per_token": 3}
FLAVOURS = {
    "mixtral": MIXTRAL,
    "qwen3": QWEN3,
    "qwen3_as_is": {**QWEN3, "normalize_router": False},
    "deepseek": {**MIXTRAL, "balance": "bias", "router_score": "sigmoid", "num_shared_experts": 1},
}


def make(**arguments) -> GPT:
    torch.manual_seed(0)
    return GPT(**arguments).eval()


def tokens(batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(1))


def reference(flavour: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    arguments = FLAVOURS[flavour]
    common = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 48,
        "rms_norm_eps": arguments.get("norm_eps", 1e-5),
        "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "num_experts_per_tok": arguments.get("experts_per_token", 2),
    }
    torch.manual_seed(0)
    if flavour == "mixtral":
        config = transformers.MixtralConfig(intermediate_size=56, num_local_experts=6, **common)
        theirs = transformers.MixtralForCausalLM(config)
    else:
        normalize = arguments.get("normalize_router", True)
        config = transformers.Qwen3MoeConfig(
            moe_intermediate_size=56, num_experts=6, head_dim=12, norm_topk_prob=normalize, **common
        )
        theirs = transformers.Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return theirs.eval()


def from_theirs(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "lm_head": "head",
        "model.embed_tokens": "token_embedding",
        "model.norm": "norm",
        "model.layers": "blocks",
        "post_attention_layernorm": "feedforward_norm",
        "input_layernorm": "attention_norm",
        "self_attn": "attention",
        "mlp.gate.": "feedforward.router.",
        "mlp": "feedforward",
        "_proj": "",
        "attention.o.": "attention.out.",
    }
    ours = {}
    for name, value in theirs.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        if name.endswith("experts.gate_up"):
            gate, up = value.chunk(2, dim=1)
            ours |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            ours[name] = value
    return ours


@pytest.mark.parametrize("flavour", ["mixtral", "qwen3", "qwen3_as_is"])
def test_logits_equal_those_of_transformers(flavour: str) -> None:
    theirs, ours, ids = reference(flavour), make(**FLAVOURS[flavour]), tokens()
    ours.load_state_dict(from_theirs(theirs.state_dict()))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.1
        for change in ({"experts_per_token": 1}, {"router_score": "sigmoid"}):
            wrong = make(**{**FLAVOURS[flavour], **change})
            wrong.load_state_dict(ours.state_dict())
            assert (wrong(ids) - expected).abs().max() > 3e-3, change


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mixtral_8x7b", 46_702_792_704), ("qwen3_30b_a3b", 30_532_122_624)],
)
def test_published_parameter_counts(from_yaml, name: str, expected: int) -> None:
    with torch.device("meta"):
        model = from_yaml(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert not list(model.buffers())


def test_the_small_one_uses_about_as_many_parameters_for_a_token_as_the_dense_one(from_yaml) -> None:
    sizes = {"vocab_size": 65, "max_seq_len": 64}
    dense, experts = (
        {name: p.numel() for name, p in from_yaml(model, **sizes).named_parameters()}
        for model in ("llama_nano", "moe_nano")
    )
    routers = sum(size for name, size in experts.items() if "router" in name)
    used = sum(size // 4 if ".experts." in name else size for name, size in experts.items())
    assert used - routers == pytest.approx(sum(dense.values()), rel=0.02)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_cache_equals_the_full_forward(flavour: str) -> None:
    model, ids = make(**FLAVOURS[flavour]), tokens(length=12)
    cache = model.make_cache(2, 12)
    with torch.no_grad():
        steps = [model(chunk, cache=cache) for chunk in ids.split([7, 1, 1, 1, 2], dim=1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_finite_gradient_for_every_parameter_in_bf16_and_from_the_meta_device(flavour: str) -> None:
    arguments = {**FLAVOURS[flavour], "activation": "gelu"}
    model = ModelBuilder(lambda: GPT(**arguments), seed=3)().bfloat16().train()
    ids = tokens()
    loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
    auxiliary = model.auxiliary_losses()
    assert list(auxiliary) == (["balance_loss"] if arguments["balance"] == "loss" else [])
    sum(auxiliary.values(), loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_initial_weights(from_yaml) -> None:
    model = ModelBuilder(lambda: GPT(**{**FLAVOURS["deepseek"], "init_std": 0.02, "dim": 128, "depth": 8}), seed=3)()
    for name, parameter in model.named_parameters():
        if "feedforward." in name and "norm" not in name:
            std = 0.02 / 4 if "down" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
    assert all(not buffer.any() for buffer in model.buffers())


def test_counts_of_a_step_and_what_follows_from_them() -> None:
    model, ids = make(**{**FLAVOURS["deepseek"], "balance_rate": 0.5}).train(), tokens()
    model(ids)
    counts = model.step_counts()
    assert counts.shape == (2, 6)
    assert (counts.sum(1) == 2 * 24 * 2).all()
    before = make(**{**MIXTRAL, "num_experts": None}).train()
    before(ids)
    assert before.step_counts() is None
    assert not before.auxiliary_losses()
    model.after_step(counts, torch.tensor(True))
    for block, load in zip(model.blocks, counts, strict=True):
        assert torch.equal(block.feedforward.router.bias, 0.5 * (16 - load).sign())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_activation_checkpointing_changes_nothing(balance: str, compiled: bool) -> None:
    found = []
    for how in ("none", "full"):
        arguments = {**FLAVOURS["deepseek"], "balance": balance, "balance_rate": 0.1}
        model = ModelBuilder(lambda a=arguments: GPT(**a), seed=3, activation_checkpointing=how)()
        if compiled:
            for block in model.blocks:
                block.compile(backend="aot_eager")
        loss = model(tokens()).float().square().mean() + sum(model.auxiliary_losses().values())
        counts = model.step_counts()
        loss.backward()
        assert torch.equal(model.step_counts(), counts)
        found.append((counts, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])
