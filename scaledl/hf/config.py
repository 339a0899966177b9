"""A GPT's arguments as a Hugging Face config.json, and back."""

import inspect
from collections.abc import Mapping
from typing import Any

from scaledl.models.gpt import GPT

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_REQUIRED = object()
# Our argument: their key, and what it is where a config.json leaves it out.
_GPT2_KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", _REQUIRED),
    "max_seq_len": ("n_positions", _REQUIRED),
    "dim": ("n_embd", _REQUIRED),
    "depth": ("n_layer", _REQUIRED),
    "num_heads": ("n_head", _REQUIRED),
    "hidden_dim": ("n_inner", None),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "init_std": ("initializer_range", 0.02),
    "tie_embeddings": ("tie_word_embeddings", True),
}
_LLAMA_KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", _REQUIRED),
    "max_seq_len": ("max_position_embeddings", _REQUIRED),
    "dim": ("hidden_size", _REQUIRED),
    "depth": ("num_hidden_layers", _REQUIRED),
    "num_heads": ("num_attention_heads", _REQUIRED),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "hidden_dim": ("intermediate_size", _REQUIRED),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "init_std": ("initializer_range", 0.02),
    "tie_embeddings": ("tie_word_embeddings", False),
}
_MIXTRAL_KEYS = _LLAMA_KEYS | {
    "num_experts": ("num_local_experts", _REQUIRED),
    "experts_per_token": ("num_experts_per_tok", 2),
}
_QWEN3_MOE_KEYS = _LLAMA_KEYS | {
    "hidden_dim": ("moe_intermediate_size", _REQUIRED),
    "num_experts": ("num_experts", _REQUIRED),
    "experts_per_token": ("num_experts_per_tok", 8),
    "normalize_router": ("norm_topk_prob", False),
}
_KEYS = {
    "gpt2": _GPT2_KEYS,
    "llama": _LLAMA_KEYS,
    "mistral": _LLAMA_KEYS,
    "qwen3": _LLAMA_KEYS,
    "mixtral": _MIXTRAL_KEYS,
    "qwen3_moe": _QWEN3_MOE_KEYS,
}
_HEAD_DIM_OF_QWEN3 = 128
_LLAMA_FIXED = {"norm": "rmsnorm", "position": "rotary", "activation": "swiglu", "bias": False}
_GPT2_FIXED = {"norm": "layernorm", "position": "learned", "bias": True, "qk_norm": False, "window": None}
_GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Read beside the tables, or of no matter to what is computed.
_FREE = ("activation", "num_kv_heads", "head_dim", "dropout", "qk_norm", "window", "rope_base", "rope_scaling")
# Settings that would change what the model computes, and the only value that ours has.
_GPT2_ONLY = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
_LLAMA_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "decoder_sparse_step": 1,
}
_LLAMA3_ROPE = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


def arguments_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the GPT that a config.json describes.

    Raises:
        ValueError: no arguments describe it; the key is named.
    """
    model_type = config.get("model_type")
    if model_type not in CLASSES:
        raise ValueError(
            f"config.json has model_type={model_type!r}; a GPT of ours can be one of {', '.join(CLASSES)}, no other"
        )
    _only(config, {"quantization_config": None})
    return _from_gpt2(config) if model_type == "gpt2" else _from_llama(config, model_type)


def config_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a GPT with these arguments; those that are left out have their defaults.

    Raises:
        ValueError: no architecture of theirs computes this; what does not fit is named.
    """
    parameters = inspect.signature(GPT).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    given = {**defaults, **arguments}
    as_llama = given["position"] == "rotary"
    fixed = _LLAMA_FIXED if as_llama else _GPT2_FIXED
    problems = [f"{key}={given[key]!r} (it has {value!r})" for key, value in fixed.items() if given[key] != value]
    if not as_llama:
        if given["activation"] not in _GPT2_ACTIVATIONS.values():
            problems.append(f"activation={given['activation']!r}")
        if given["num_kv_heads"] not in (None, given["num_heads"]):
            problems.append(f"num_kv_heads={given['num_kv_heads']} (every head has its own)")
        if given["num_heads"] * (given["head_dim"] or 0) not in (0, given["dim"]):
            problems.append(f"head_dim={given['head_dim']} (it is dim / num_heads)")
    keys: Mapping[str, Any] = _LLAMA_KEYS if as_llama else _GPT2_KEYS
    known = {*keys, *fixed, *_FREE}
    if as_llama and given["num_experts"]:
        keys = _QWEN3_MOE_KEYS if given["qk_norm"] else _MIXTRAL_KEYS
        known |= {*keys, "balance", "balance_rate", "router_z_loss"}  # the last two matter in training alone
        if given["balance"] == "bias":
            problems.append("balance='bias' (it chooses experts without; train with model.balance=loss)")
    problems += [f"{key}={v!r}" for key, v in given.items() if key not in known and v != defaults.get(key)]
    if problems:
        nearest = "Llama and its like have" if as_llama else "GPT-2 has"
        raise ValueError(
            f"transformers has no architecture that computes this model; {nearest} no place for: {'; '.join(problems)}"
            " (--format torch_export writes any model)"
        )
    return _to_llama(given) if as_llama else _to_gpt2(given)


def _read(config: Mapping[str, Any], keys: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    missing = [key for key, default in keys.values() if default is _REQUIRED and config.get(key) is None]
    if missing:
        raise ValueError(f"config.json has no {', '.join(missing)}; copy it again from where the weights come from")
    return {ours: config.get(key, default) for ours, (key, default) in keys.items()}


def _only(config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json has {key}={config[key]!r}, but our GPT has only {key}={value!r}")


def _from_gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    _only(config, _GPT2_ONLY)
    activation = config.get("activation_function", "gelu_new")
    if activation not in _GPT2_ACTIVATIONS:
        known = ", ".join(_GPT2_ACTIVATIONS)
        raise ValueError(f"config.json has activation_function={activation!r}; our GPT has one of {known}")
    rates = {key: config.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(rates.values())) > 1:
        raise ValueError(f"config.json has {rates}; our GPT has one rate of dropout: make them equal there")
    return {
        **_read(config, _GPT2_KEYS),
        **_GPT2_FIXED,
        "activation": _GPT2_ACTIVATIONS[activation],
        "dropout": float(rates["resid_pdrop"]),
    }


def _to_gpt2(given: Mapping[str, Any]) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in _GPT2_ACTIVATIONS.items() if ours == given["activation"])
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), given["dropout"])
    return _named("gpt2", _GPT2_KEYS, given) | {"activation_function": activation, **rates}


def _from_llama(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    _only(config, _LLAMA_ONLY)
    if model_type == "qwen3_moe" and "num_experts" not in config:
        config = {**config, "num_experts": config.get("num_local_experts")}  # as transformers 5 calls it
    given = _read(config, _KEYS[model_type])
    if given.get("num_experts"):
        if config.get("mlp_only_layers"):
            raise ValueError(
                f"config.json has mlp_only_layers={config['mlp_only_layers']}; ours has experts in all layers"
            )
        learns_balance = config.get("output_router_logits", False)
        given["balance"] = "loss" if learns_balance else "none"
        given["balance_rate"] = config.get("router_aux_loss_coef", 1e-3)
    if model_type == "qwen3" and given["head_dim"] is None:
        given["head_dim"] = _HEAD_DIM_OF_QWEN3
    base, scaling = _rope_of(config)
    return {
        **given,
        **_LLAMA_FIXED,
        "rope_base": base,
        "rope_scaling": scaling,
        "qk_norm": model_type.startswith("qwen3"),
        "window": _window_of(config, model_type),
    }


def _rope_of(config: Mapping[str, Any]) -> tuple[float, dict[str, float] | None]:
    """Base and Llama 3's stretching, from `rope_parameters` or, as it was before, rope_theta and rope_scaling."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    _only(scaling, {"partial_rotary_factor": 1.0})
    if kind == "default" and not any(isinstance(value, dict) for value in scaling.values()):
        return base, None
    if kind != "llama3" or any(theirs not in scaling for theirs in _LLAMA3_ROPE.values()):
        raise ValueError(
            f"config.json has rotary positions with {dict(scaling)}; our GPT has rope_type 'default', and 'llama3' "
            f"with {', '.join(_LLAMA3_ROPE.values())}"
        )
    return base, {ours: scaling[theirs] for ours, theirs in _LLAMA3_ROPE.items()}


def _window_of(config: Mapping[str, Any], model_type: str) -> int | None:
    if model_type == "llama" or (model_type.startswith("qwen3") and not config.get("use_sliding_window")):
        return None
    window = config.get("sliding_window", None if model_type == "mixtral" else 4096)
    depth = config["num_hidden_layers"]
    first = config.get("max_window_layers", 28) if model_type == "qwen3" else 0
    kinds = config.get("layer_types") or ["sliding_attention" if i >= first else "" for i in range(depth)]
    sliding = [kind == "sliding_attention" for kind in kinds]
    if any(sliding) != all(sliding):
        raise ValueError(
            f"config.json has sliding_window={window} in {sum(sliding)} of {depth} layers (layer_types, "
            "max_window_layers); our GPT has a window in all or in none"
        )
    return window if all(sliding) else None


def _to_llama(given: Mapping[str, Any]) -> dict[str, Any]:
    dim, num_heads = given["dim"], given["num_heads"]
    sizes = {
        "num_kv_heads": given["num_kv_heads"] or num_heads,
        "head_dim": given["head_dim"] or dim // num_heads,
        "hidden_dim": given["hidden_dim"] or 4 * dim,
    }
    window = given["window"]
    # LlamaConfig refuses heads that do not divide the model's width; Mistral without a window computes the same.
    plain = "mistral" if window or dim % num_heads else "llama"
    model_type = "qwen3" if given["qk_norm"] else plain
    if given["num_experts"]:
        model_type = "qwen3_moe" if given["qk_norm"] else "mixtral"
    scaling = given["rope_scaling"]
    config = _named(model_type, _KEYS[model_type], {**given, **sizes}) | {
        "rope_theta": given["rope_base"],
        "rope_scaling": scaling and {"rope_type": "llama3", **{_LLAMA3_ROPE[key]: v for key, v in scaling.items()}},
        "hidden_act": "silu",
    }
    if model_type in ("mistral", "mixtral"):
        config["sliding_window"] = window
    if model_type.startswith("qwen3") and window:
        config |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    if given["num_experts"]:
        config["router_aux_loss_coef"] = given["balance_rate"] if given["balance"] == "loss" else 0.0
    return config


def _named(model_type: str, keys: Mapping[str, tuple[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {theirs: given[ours] for ours, (theirs, _) in keys.items()}
    return {"architectures": [CLASSES[model_type]], "model_type": model_type, **sizes}
