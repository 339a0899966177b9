import copy
import os
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from scaledl.layers.transformer import TransformerBlock
from scaledl.models.gpt import GPT

os.environ.setdefault("HF_HUB_OFFLINE", "1")

CONF = Path(__file__).parents[3] / "conf"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
SMALL = {"vocab_size": 61, "max_seq_len": 48, "dim": 32, "depth": 2, "num_heads": 4, "init_std": 0.2}
GPT2 = {**SMALL, "activation": "gelu_tanh"}
LLAMA = {
    **SMALL,
    "num_kv_heads": 2,
    "hidden_dim": 56,
    "norm": "rmsnorm",
    "position": "rotary",
    "rope_base": 500_000.0,
    "rope_scaling": LLAMA3,
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}
QWEN3 = {**LLAMA, "head_dim": 12, "norm_eps": 1e-6, "rope_scaling": None, "qk_norm": True, "tie_embeddings": True}
FLAVOURS = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3, "gpt2_window": {**GPT2, "window": 5}}


def make(**arguments) -> GPT:
    torch.manual_seed(0)
    return GPT(**arguments).eval()


def tokens(batch: int = 2, length: int = 24) -> Tensor:
    return torch.randint(0, 61, (batch, length), generator=torch.Generator().manual_seed(1))


# --- the same weights in transformers -------------------------------------------------------------------------------


def from_gpt2(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {
        "token_embedding.weight": theirs["transformer.wte.weight"],
        "position_embedding.weight": theirs["transformer.wpe.weight"],
        "norm.weight": theirs["transformer.ln_f.weight"],
        "norm.bias": theirs["transformer.ln_f.bias"],
    }
    parts = {"ln_1": "attention_norm", "ln_2": "feedforward_norm", "attn.c_proj": "attention.out"}
    parts |= {"mlp.c_fc": "feedforward.up", "mlp.c_proj": "feedforward.down"}
    for i in range(sum(key.endswith("ln_1.weight") for key in theirs)):
        for kind in ("weight", "bias"):
            for their_name, our_name in parts.items():
                # Conv1D keeps its matrix as (in, out): transposed. A norm's vector has nothing to transpose.
                value = theirs[f"transformer.h.{i}.{their_name}.{kind}"]
                ours[f"blocks.{i}.{our_name}.{kind}"] = value.mT if value.ndim == 2 else value
            fused = theirs[f"transformer.h.{i}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, value in zip("qkv", fused, strict=True):
                ours[f"blocks.{i}.attention.{name}.{kind}"] = value.mT if value.ndim == 2 else value
    return ours


def from_llama(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "lm_head": "head",
        "model.embed_tokens": "token_embedding",
        "model.norm": "norm",
        "model.layers": "blocks",
        "post_attention_layernorm": "feedforward_norm",
        "input_layernorm": "attention_norm",
        "self_attn": "attention",
        "_proj": "",
        "attention.o.": "attention.out.",
        "mlp": "feedforward",
    }
    ours = {}
    for name, value in theirs.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        ours[name] = value
    return ours


def reference(flavour: str) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if flavour == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=61, n_positions=48, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
        )
        theirs = transformers.GPT2LMHeadModel(config)
        convert = from_gpt2
    else:
        arguments = FLAVOURS[flavour]
        rope = {"rope_theta": 500_000.0, "rope_type": "default"}
        if arguments["rope_scaling"] is not None:
            rope |= {**LLAMA3, "rope_type": "llama3"}
            rope["original_max_position_embeddings"] = rope.pop("original_max_seq_len")
        common = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 48,
            "rms_norm_eps": arguments.get("norm_eps", 1e-5),
            "rope_parameters": rope,
            "initializer_range": 0.2,
            "tie_word_embeddings": arguments["tie_embeddings"],
        }
        if flavour == "qwen3":
            theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=12, **common))
        else:
            theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
        convert = from_llama
    with torch.no_grad():  # ones and zeros would hide a norm or a bias that is not copied
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    weights = convert(theirs.state_dict())
    if FLAVOURS[flavour].get("tie_embeddings", True):
        weights.pop("head.weight", None)
    return theirs.eval(), weights


@pytest.mark.parametrize("flavour", ["gpt2", "llama", "qwen3"])
def test_logits_and_greedy_tokens_equal_those_of_transformers(flavour: str) -> None:
    theirs, weights = reference(flavour)
    ours = make(**FLAVOURS[flavour])
    ours.load_state_dict(weights)
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
        assert expected.std() > 0.1

        prompt = ids[:, :8]
        greedy = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=20,
            max_new_tokens=20,
            pad_token_id=0,
            eos_token_id=None,
        )
        cache, generated = ours.make_cache(2, 28), prompt
        logits = ours(prompt, cache=cache)
        for _ in range(20):
            new = logits[:, -1:].argmax(-1)
            generated = torch.cat((generated, new), dim=1)
            if generated.shape[1] < 28:
                logits = ours(new, cache=cache)
    assert torch.equal(generated, greedy)


@pytest.mark.parametrize(
    ("flavour", "change"),
    [
        ("gpt2", {"activation": "gelu"}),
        ("llama", {"rope_scaling": None}),
        ("llama", {"rope_base": 10_000.0}),
        ("qwen3", {"window": 6}),
    ],
)
def test_the_comparison_sees_a_wrong_argument(flavour: str, change: dict) -> None:
    theirs, weights = reference(flavour)
    ours = make(**{**FLAVOURS[flavour], **change})
    ours.load_state_dict(weights)
    ids = tokens()
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() > 3e-4


# --- sizes from conf/ -----------------------------------------------------------------------------------------------


def from_conf(name: str) -> GPT:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = hydra.compose(
            overrides=[f"+model={name}", "+data.vocab_size=65", "+data.seq_len=64"], return_hydra_config=False
        )
    with torch.device("meta"):
        return hydra.utils.instantiate(config.model, _convert_="all")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt_nano", 804_096),
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
        ("llama3_8b", 8_030_261_248),
        ("llama3_2_1b", 1_235_814_400),
        ("qwen3_0_6b", 596_049_920),
    ],
)
def test_published_parameter_counts(name: str, expected: int) -> None:
    model = from_conf(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert not list(model.buffers())


def test_gpt_yaml_names_every_argument_with_its_default() -> None:
    import inspect

    import yaml

    config = yaml.safe_load((CONF / "model/gpt.yaml").read_text())
    assert config.pop("_target_") == "scaledl.models.gpt.GPT"
    parameters = inspect.signature(GPT).parameters
    assert list(config) == list(parameters)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    assert {name: config[name] for name in defaults} == defaults


# --- masks and the cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("chunks", [[1] * 12, [7, 1, 1, 1, 1, 1], [3, 4, 5]])
def test_cache_equals_the_full_forward(flavour: str, chunks: list[int]) -> None:
    model, ids = make(**FLAVOURS[flavour]), tokens(length=12)
    cache = model.make_cache(2, 12)
    with torch.no_grad():
        steps = [model(chunk, cache=cache) for chunk in ids.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), model(ids), atol=1e-5, rtol=1e-5)
    assert cache.length == 12


@pytest.mark.parametrize("flavour", ["llama", "qwen3"])
def test_documents_do_not_see_each_other(flavour: str) -> None:
    """Rotary positions are relative: a packed document has the logits that it has alone."""
    model, ids = make(**FLAVOURS[flavour]), tokens(length=12)
    document_ids = torch.tensor([[3] * 5 + [4] * 7, [0] * 2 + [1] * 10])
    with torch.no_grad():
        packed = model(ids, document_ids=document_ids)
        for row, cut in ((0, 5), (1, 2)):
            alone = torch.cat([model(ids[row : row + 1, :cut]), model(ids[row : row + 1, cut:])], dim=1)
            torch.testing.assert_close(packed[row : row + 1], alone, atol=1e-4, rtol=0)
        assert (packed - model(ids)).abs().max() > 1e-2


def test_window_limits_the_reach_of_every_layer() -> None:
    model, ids = make(**{**LLAMA, "window": 3}), tokens(1, 12)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 61
    with torch.no_grad():
        difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert (difference[:5] > 0).all()  # two layers reach 2 · (window - 1) = 4 tokens back
    assert (difference[5:] == 0).all()


# --- training -------------------------------------------------------------------------------------------------------


def loss_of(model: GPT, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_finite_gradient_for_every_parameter(flavour: str, dtype: torch.dtype) -> None:
    model = make(**FLAVOURS[flavour]).to(dtype).train()
    loss = loss_of(model, tokens())
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 0, name


def test_bf16_is_near_fp32() -> None:
    model, ids = make(**{**LLAMA, "init_std": 0.05}), tokens()
    with torch.no_grad():
        expected = model(ids)
        low = copy.deepcopy(model).bfloat16()(ids)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids)
            cached = model(ids, cache=model.make_cache(2, 24))
    for logits in (low, mixed, cached):
        assert logits.dtype == torch.bfloat16
        assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_it_learns_one_batch() -> None:
    model, ids = make(**{**LLAMA, "init_std": 0.02}).train(), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


def test_forward_is_logits_of_features() -> None:
    for flavour in ("gpt2", "llama"):
        model, ids = make(**FLAVOURS[flavour]), tokens()
        features = model.forward_features(ids)
        assert features.shape == (2, 24, model.num_features)
        chunks = [model.logits(chunk) for chunk in features.split(5, dim=1)]
        torch.testing.assert_close(torch.cat(chunks, dim=1), model(ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_state_dict_round_trip(flavour: str) -> None:
    model, ids = make(**FLAVOURS[flavour]), tokens()
    torch.manual_seed(7)
    other = GPT(**FLAVOURS[flavour]).eval()
    assert not torch.equal(other(ids), model(ids))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids), model(ids))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_meta_build_then_reset_gives_the_gpt2_init(flavour: str) -> None:
    arguments = {**FLAVOURS[flavour], "dim": 128, "depth": 8, "head_dim": 32, "init_std": 0.02}
    with torch.device("meta"):
        model = GPT(**arguments)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    post_order(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith(("attention.out.weight", "down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.001, name
    assert model(tokens()).isfinite().all()


def post_order(module: nn.Module) -> None:
    for child in module.children():
        post_order(child)
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def test_the_root_leaves_the_blocks_alone() -> None:
    model = make(**LLAMA)
    before = copy.deepcopy(model.state_dict())
    model.reset_parameters()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"token_embedding.weight", "head.weight"}
    assert GPT.block_types == (TransformerBlock,)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_blocks_trace_as_one_graph(flavour: str) -> None:
    model, ids = make(**FLAVOURS[flavour]), tokens()
    expected = model(ids)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(ids), expected)


def test_errors_name_value_and_way_out() -> None:
    with pytest.raises(ValueError, match=r"dim=30 is not divisible by num_heads=4.*head_dim"):
        GPT(**{**SMALL, "dim": 30})
    with pytest.raises(ValueError, match="num_heads=4 is not divisible by num_kv_heads=3"):
        GPT(**{**SMALL, "num_kv_heads": 3})
    with pytest.raises(ValueError, match=r"window=0.*1 or more"):
        GPT(**{**SMALL, "window": 0})
    with pytest.raises(ValueError, match="rope_scaling has the keys"):
        GPT(**{**LLAMA, "rope_scaling": {"factor": 2.0}})
    model = make(**SMALL)
    with pytest.raises(ValueError, match=r"49 tokens is longer than max_seq_len=48.*crop"):
        model(tokens(1, 49))
    with pytest.raises(ValueError, match=r"max_len=49.*max_seq_len=48"):
        model.make_cache(1, 49)
    cache = model.make_cache(1, 48)
    with pytest.raises(ValueError, match="document_ids and cache"):
        model(tokens(1, 4), document_ids=torch.zeros(1, 4, dtype=torch.long), cache=cache)
    model(tokens(1, 40), cache=cache)
    with pytest.raises(ValueError, match="49 tokens is longer than max_seq_len=48"):
        model(tokens(1, 9), cache=cache)
    small = model.make_cache(1, 4)
    with pytest.raises(ValueError, match=r"5 tokens do not fit.*max_len=4"):
        model(tokens(1, 5), cache=small)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("chunk_tokens", [7, None])
def test_loss_is_cross_entropy_of_forward(flavour: str, chunk_tokens: int | None) -> None:
    model, ids = make(**FLAVOURS[flavour]), tokens()
    labels, documents = ids.roll(-1, 1).masked_fill(ids % 5 == 0, -100), (torch.arange(24) // 9).expand(2, -1)
    logits = model(ids, document_ids=documents)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    found = model.loss(ids, labels, document_ids=documents, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-6 * max(b.norm(), 1.0), name


def test_documents_cost_one_mask_for_all_blocks() -> None:
    """Given a bool mask, scaled_dot_product_attention makes and keeps one of floats in every block."""
    model, ids = make(**{**GPT2, "depth": 5}), tokens()
    masks = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, __, named: masks.append(named["mask"]), with_kwargs=True)
    with torch.autocast("cpu", torch.bfloat16):
        model(ids, document_ids=torch.zeros_like(ids))
    assert len(masks) == 5
    assert {mask.data_ptr() for mask in masks} == {masks[0].data_ptr()}
    assert masks[0].dtype == torch.bfloat16
