"""config.json to arguments and back; what does not fit is named."""

from typing import Any

import pytest

from scaledl.hf.config import arguments_of, config_of
from scaledl.models.gpt import GPT

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "max_position_embeddings": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 56,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_positions": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
OURS: dict[str, Any] = {"vocab_size": 61, "max_seq_len": 48, "dim": 32, "depth": 2, "num_heads": 4}
ROTARY = {**OURS, "position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "hidden_dim": 56}


def test_what_a_short_config_leaves_out_is_as_in_transformers() -> None:
    llama = arguments_of(LLAMA)
    assert llama["norm_eps"] == 1e-6
    assert llama["rope_base"] == 10_000.0
    assert llama["num_kv_heads"] is None
    assert llama["tie_embeddings"] is False
    assert llama["window"] is None
    gpt2 = arguments_of(GPT2)
    assert (gpt2["activation"], gpt2["dropout"], gpt2["tie_embeddings"]) == ("gelu_tanh", 0.1, True)
    qwen3 = arguments_of({**LLAMA, "model_type": "qwen3"})
    assert (qwen3["head_dim"], qwen3["qk_norm"]) == (128, True)
    assert arguments_of({**LLAMA, "model_type": "mistral"})["window"] == 4096
    for arguments in (llama, gpt2):
        GPT(**arguments)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **ROPE}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **ROPE}},
    ],
)
def test_rotary_settings_of_old_and_new_files(rope: dict[str, Any]) -> None:
    found = arguments_of({**LLAMA, **rope})
    assert found["rope_base"] == 5e5
    assert found["rope_scaling"] == {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 16,
    }


QWEN3 = {**LLAMA, "model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert"}, "model_type='bert'"),
        ({}, "model_type=None"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "no hidden_size"),
        ({**LLAMA, "hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({**LLAMA, "attention_bias": True}, "attention_bias=True"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias=True"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'default', and 'llama3'"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, "'type': 'linear'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor"),
        ({**LLAMA, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({**QWEN3, "max_window_layers": 1}, "sliding_window=8 in 1 of 2 layers"),
        ({**QWEN3, "layer_types": ["sliding_attention", "full_attention"]}, "in 1 of 2 layers"),
        ({**GPT2, "activation_function": "tanh"}, "activation_function='tanh'"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights=False"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
        ({**GPT2, "resid_pdrop": 0.2}, "resid_pdrop"),
        ({**LLAMA, "model_type": "qwen3_moe", "moe_intermediate_size": 8}, "num_experts"),
        (
            {
                **LLAMA,
                "model_type": "qwen3_moe",
                "moe_intermediate_size": 8,
                "num_experts": 4,
                "mlp_only_layers": [0],
            },
            "mlp_only_layers",
        ),
    ],
)
def test_a_config_that_our_gpt_cannot_be_is_refused_by_its_key(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"config\.json") as error:
        arguments_of(config)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "model_type"),
    [
        (OURS, "gpt2"),
        ({**OURS, "activation": "gelu_tanh", "tie_embeddings": False, "head_dim": 8, "num_kv_heads": 4}, "gpt2"),
        (ROTARY, "llama"),
        ({**ROTARY, "num_heads": 3, "head_dim": 12}, "mistral"),
        ({**ROTARY, "window": 9}, "mistral"),
        ({**ROTARY, "qk_norm": True, "head_dim": 12}, "qwen3"),
        ({**ROTARY, "qk_norm": True, "window": 9}, "qwen3"),
        ({**ROTARY, "num_experts": 4, "balance": "loss", "window": 9}, "mixtral"),
        ({**ROTARY, "num_experts": 4, "balance": "none", "qk_norm": True, "normalize_router": False}, "qwen3_moe"),
    ],
)
def test_arguments_come_back(arguments: dict[str, Any], model_type: str) -> None:
    """As far as they decide what is computed: a GPT of what came back has the same tensors."""
    config = config_of(arguments)
    assert config["model_type"] == model_type
    back = arguments_of(config)
    for key in ("window", "qk_norm", "rope_base", "normalize_router", "activation", "norm_eps", "tie_embeddings"):
        assert back.get(key, arguments.get(key)) == arguments.get(key, back.get(key)), key
    shapes = [{name: value.shape for name, value in GPT(**each).state_dict().items()} for each in (arguments, back)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({**OURS, "norm": "rmsnorm"}, "norm='rmsnorm'"),
        ({**OURS, "activation": "swiglu"}, "activation='swiglu'"),
        ({**OURS, "qk_norm": True}, "qk_norm=True"),
        ({**OURS, "window": 4}, "window=4"),
        ({**OURS, "bias": False}, "bias=False"),
        ({**OURS, "num_kv_heads": 2}, "num_kv_heads=2"),
        ({**OURS, "head_dim": 12}, "head_dim=12"),
        ({**OURS, "num_experts": 4}, "num_experts=4"),
        ({**ROTARY, "bias": True}, "bias=True"),
        (
            {**ROTARY, "activation": "gelu", "norm": "layernorm"},
            "norm='layernorm' (it has 'rmsnorm'); activation='gelu'",
        ),
        ({**ROTARY, "num_experts": 4}, "balance='bias'"),
        ({**ROTARY, "num_experts": 4, "balance": "loss", "num_shared_experts": 1}, "num_shared_experts=1"),
        ({**ROTARY, "num_experts": 4, "balance": "loss", "router_score": "sigmoid"}, "router_score='sigmoid'"),
        ({**ROTARY, "num_experts": 4, "balance": "loss", "normalize_router": False}, "normalize_router=False"),
    ],
)
def test_a_gpt_that_no_architecture_of_theirs_is_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="no architecture") as error:
        config_of(arguments)
    assert said in str(error.value)
