"""Which tensors of a GPT are which of a Hugging Face checkpoint, in both directions.

Rotary weights need no permutation: both pair feature i with feature i + head_dim/2.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Tensors = list[Tensor]


@dataclass(frozen=True)
class Match:
    """Tensors of ours that together hold the values of tensors of theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_theirs: Callable[[Tensors], Tensors] = list
    to_ours: Callable[[Tensors], Tensors] = list


@dataclass(frozen=True)
class Layout:
    """Their names of our modules, outside of the blocks and inside block i."""

    outer: dict[str, str]
    block: str
    inside: dict[str, str]
    base: str  # the prefix that a checkpoint of the bare model leaves out
    experts: str = ""  # the folder of a block's experts, and how each calls its matrices
    expert: dict[str, str] = field(default_factory=dict)


_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.up": "mlp.up_proj",
    "feedforward.down": "mlp.down_proj",
}
_GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "attention.out": "attn.c_proj",
    "feedforward_norm": "ln_2",
    "feedforward.up": "mlp.c_fc",
    "feedforward.down": "mlp.c_proj",
}
_LLAMA = Layout(
    {"token_embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    "model.layers",
    _LLAMA_BLOCK,
    "model.",
)
_GPT2 = Layout(
    {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    "transformer.h",
    _GPT2_BLOCK,
    "transformer.",
)
_MIXTRAL = replace(
    _LLAMA,
    inside=_LLAMA_BLOCK | {"feedforward.router": "block_sparse_moe.gate"},
    experts="block_sparse_moe.experts",
    expert={"gate": "w1", "down": "w2", "up": "w3"},
)
_QWEN3_MOE = replace(
    _LLAMA,
    inside=_LLAMA_BLOCK | {"feedforward.router": "mlp.gate"},
    experts="mlp.experts",
    expert={"gate": "gate_proj", "down": "down_proj", "up": "up_proj"},
)
LAYOUTS = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen3": _LLAMA,
    "mixtral": _MIXTRAL,
    "qwen3_moe": _QWEN3_MOE,
}


def matches(model_type: str, ours: Mapping[str, Tensor], there: Collection[str] = ()) -> list[Match]:
    """The tensors of a GPT, by the names of its state dict, beside those of a checkpoint of `model_type`.

    Args:
        there: the names in a checkpoint that is read. Some leave out the prefix of the bare model, some hold a block's
            experts as one tensor; one that is written is as `save_pretrained` writes it.

    Raises:
        ValueError: a tensor has no place there.
    """
    layout = LAYOUTS[model_type]
    found = _matches(model_type, layout, ours, any(name.endswith(".experts.gate_up_proj") for name in there))
    return [replace(match, theirs=tuple(_as_stored(name, layout, there) for name in match.theirs)) for match in found]


def _as_stored(name: str, layout: Layout, there: Collection[str]) -> str:
    stacked = name.replace(".block_sparse_moe.", ".mlp.")
    others = (name, stacked, name.removeprefix(layout.base), stacked.removeprefix(layout.base))
    return next((each for each in others if each in there), name)


def _matches(model_type: str, layout: Layout, ours: Mapping[str, Tensor], fused: bool) -> list[Match]:
    found = []
    for name in ours:
        module, _, kind = name.rpartition(".")
        if not module.startswith("blocks."):
            found.append(Match((name,), (f"{_their(layout.outer, module, model_type)}.{kind}",)))
            continue
        _, i, inside = module.split(".", 2)
        block = f"{layout.block}.{i}"
        if layout is _GPT2 and inside == "attention.q":
            parts = tuple(f"blocks.{i}.attention.{part}.{kind}" for part in "qkv")
            found.append(Match(parts, (f"{block}.attn.c_attn.{kind}",), _fuse, _part))
        elif layout is _GPT2 and inside in ("attention.k", "attention.v"):
            continue
        elif inside == "feedforward.experts" and layout.experts:
            found += _experts(f"{block}.{layout.experts}", layout.expert, name, kind, len(ours[name]), fused)
        else:
            theirs = f"{block}.{_their(layout.inside, inside, model_type)}.{kind}"
            turn = _turn if layout is _GPT2 else list
            found.append(Match((name,), (theirs,), turn, turn))
    return found


def _experts(
    place: str, their_names: dict[str, str], name: str, kind: str, num_experts: int, fused: bool
) -> list[Match]:
    """Ours are stacked matrices; theirs are apart, or stacked with gate and up as one."""
    if not fused:
        theirs = tuple(f"{place}.{e}.{their_names[kind]}.weight" for e in range(num_experts))
        return [Match((name,), theirs, lambda stacked: list(stacked[0]), lambda apart: [torch.stack(apart)])]
    if kind == "down":
        return [Match((name,), (f"{place}.down_proj",))]
    if kind == "gate":
        pair = name, name.removesuffix("gate") + "up"
        return [Match(pair, (f"{place}.gate_up_proj",), lambda t: [torch.cat(t, 1)], lambda t: list(t[0].chunk(2, 1)))]
    return []  # with gate


def is_left_out(model_type: str, name: str, tied: bool) -> bool:
    """Whether a tensor of theirs holds nothing to learn: masks, angles, a head that is the embedding."""
    if name == "lm_head.weight":
        return tied
    if model_type == "gpt2":
        return name.endswith((".attn.bias", ".attn.masked_bias"))
    return name.endswith(".rotary_emb.inv_freq")


def _their(table: dict[str, str], module: str, model_type: str) -> str:
    if module not in table:
        raise ValueError(f"{module!r} has no place in a {model_type} checkpoint; it cannot be exported as one")
    return table[module]


def _turn(tensors: Tensors) -> Tensors:
    """GPT-2 keeps its matrices as (in, out)."""
    return [tensor.mT if tensor.ndim == 2 else tensor for tensor in tensors]


def _fuse(tensors: Tensors) -> Tensors:
    return _turn([torch.cat(tensors)])


def _part(tensors: Tensors) -> Tensors:
    return list(_turn(tensors)[0].chunk(3))
