import math
from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.position import sinusoidal
from scaledl.models.encoder_decoder import EncoderDecoder

CONF = Path(__file__).parents[3] / "conf"
SMALL = {
    "src_vocab_size": 31,
    "tgt_vocab_size": 31,
    "dim": 16,
    "encoder_depth": 2,
    "decoder_depth": 3,
    "num_heads": 4,
    "hidden_dim": 24,
}
SRC = torch.tensor([[4, 9, 17, 30, 3], [22, 5, 3, 0, 0]])
TGT = torch.tensor([[2, 8, 8, 12, 25, 6], [2, 30, 7, 0, 0, 0]])
WRITTEN = TGT != 0


def make(**changes: object) -> EncoderDecoder:
    model = ModelBuilder(partial(EncoderDecoder, **{**SMALL, **changes}), seed=0)().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def from_yaml(name: str, **facts: object) -> EncoderDecoder:
    with hydra.initialize_config_dir(str(CONF / "model"), version_base="1.3"):
        config = OmegaConf.merge(hydra.compose(name), facts)
    with torch.device("meta"):
        return hydra.utils.instantiate(config, _convert_="all")


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- the same weights elsewhere -------------------------------------------------------------------------------------


def from_marian(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "encoder.layers": "encoder",
        "decoder.layers": "decoder",
        "self_attn_layer_norm": "attention_norm",
        "encoder_attn_layer_norm": "cross_attention_norm",
        "final_layer_norm": "feedforward_norm",
        "encoder_attn": "cross_attention",
        "self_attn": "attention",
        "_proj": "",
        "fc1": "feedforward.up",
        "fc2": "feedforward.down",
    }
    ours = {"embedding.weight": theirs["model.shared.weight"], "logits_bias": theirs["final_logits_bias"].squeeze(0)}
    for name, value in theirs.items():
        if ".layers." in name:
            for old, new in renames.items():
                name = name.replace(old, new)
            ours[name.removeprefix("model.")] = value
    return ours


def marian(transformers, **sizes: object) -> nn.Module:
    config = transformers.MarianConfig(
        **sizes, activation_function="swish", scale_embedding=True, share_encoder_decoder_embeddings=True, dropout=0.0
    )
    return transformers.MarianMTModel(config).eval()


def test_it_equals_marian_with_its_weights() -> None:
    transformers = pytest.importorskip("transformers", reason="the reference of Marian's architecture")
    torch.manual_seed(0)
    theirs = marian(
        transformers,
        vocab_size=31,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        pad_token_id=0,
        init_std=0.3,
    )
    with torch.no_grad():
        theirs.final_logits_bias.normal_()
    ours = make(activation="silu", logits_bias=True)
    ours.load_state_dict(from_marian(theirs.state_dict()))
    expected = theirs(input_ids=SRC, attention_mask=SRC != 0, decoder_input_ids=TGT).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(ours(SRC, TGT)[WRITTEN], expected[WRITTEN], atol=1e-4, rtol=1e-4)


def test_marian_has_74410496_parameters() -> None:
    ours = from_yaml("marian", src_vocab_size=58_101, tgt_vocab_size=58_101, share_embeddings=True)
    tables = 2 * 512 * 512  # transformers counts the sinusoids of 512 positions as parameters of each side
    bias = 58_101  # and the logits' bias as none
    assert count(ours) + tables - bias == 74_410_496
    transformers = pytest.importorskip("transformers", reason="the reference of Marian's architecture")
    with torch.device("meta"):
        theirs = transformers.MarianMTModel(
            transformers.MarianConfig(
                d_model=512,
                encoder_layers=6,
                decoder_layers=6,
                encoder_attention_heads=8,
                decoder_attention_heads=8,
                encoder_ffn_dim=2048,
                decoder_ffn_dim=2048,
                max_position_embeddings=512,
            )
        )
    assert count(theirs) == 74_410_496


def test_vaswanis_base_has_44140544_parameters_with_torchs_norms_and_without_embeddings() -> None:
    facts = {"src_vocab_size": 37_000, "tgt_vocab_size": 37_000, "share_embeddings": True}
    base = from_yaml("encoder_decoder", **facts)
    assert count(base) - 37_000 * 512 == 44_140_544 - 2 * 2 * 512
    assert count(from_yaml("encoder_decoder", **facts, final_norm=True)) - 37_000 * 512 == 44_140_544


@pytest.mark.parametrize("pre_norm", [True, False])
def test_it_equals_torchs_transformer(pre_norm: bool) -> None:
    ours = make(pre_norm=pre_norm, final_norm=True)
    theirs = nn.Transformer(16, 4, 2, 3, 24, dropout=0.0, norm_first=pre_norm, batch_first=True).eval()
    names = {
        "self_attn": "attention",
        "multihead_attn": "cross_attention",
        "linear1": "feedforward.up",
        "linear2": "feedforward.down",
    }
    state = ours.state_dict()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            side, _, index, *rest = name.split(".") if "layers" in name else (name.split(".")[0], "", "", "")
            if not rest or rest == [""]:
                parameter.copy_(state[name.replace(".norm.", "_norm.")])
                continue
            layer = f"{side}.{index}"
            norms = ["attention_norm", "cross_attention_norm", "feedforward_norm"]
            if side == "encoder":
                norms.remove("cross_attention_norm")
            if rest[0].startswith("norm"):
                parameter.copy_(state[f"{layer}.{norms[int(rest[0][-1]) - 1]}.{rest[1]}"])
            elif rest[1].startswith("in_proj"):
                kind = rest[1].removeprefix("in_proj_")
                parameter.copy_(torch.cat([state[f"{layer}.{names[rest[0]]}.{part}.{kind}"] for part in "qkv"]))
            else:
                path = f"{layer}.{names[rest[0]]}" + (".out" if rest[1] == "out_proj" else "")
                parameter.copy_(state[f"{path}.{rest[-1]}"])

    def embed(ids: Tensor) -> Tensor:
        return ours.embedding(ids) * 4 + sinusoidal(torch.arange(ids.shape[1]), 16)

    padding = SRC == 0
    expected = theirs(
        embed(SRC),
        embed(TGT),
        tgt_mask=~torch.ones(6, 6, dtype=torch.bool).tril(),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    expected = expected @ ours.embedding.weight.T
    torch.testing.assert_close(ours(SRC, TGT)[WRITTEN], expected[WRITTEN], atol=1e-5, rtol=1e-4)


# --- by itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"pre_norm": True}, {"logits_bias": True}])
def test_decoding_step_by_step_with_the_cache_equals_one_pass(changes: dict) -> None:
    model = make(**changes)
    expected = model(SRC, TGT)
    cache = model.make_cache(2, 6)
    steps = [model(SRC, TGT[:, :2], cache=cache)]
    keys = cache.layers[0].context.keys
    steps += [model(SRC, TGT[:, t : t + 1], cache=cache) for t in (2, 3)]
    steps.append(model(SRC, TGT[:, 4:], cache=cache))  # two at once, after others
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    assert cache.layers[0].context.keys is keys  # computed once


def test_the_encoder_runs_once_with_a_cache() -> None:
    model, calls = make(), []
    model.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    cache = model.make_cache(2, 6)
    for t in range(3):
        model(SRC, TGT[:, t : t + 1], cache=cache)
    assert len(calls) == 1


def test_selected_rows_go_on_as_if_they_had_been_alone() -> None:
    model = make()
    rows = torch.tensor([1, 0, 0])
    cache = model.make_cache(2, 6)
    model(SRC, TGT[:, :2], cache=cache)
    cache.select(rows)
    following = torch.tensor([[9], [10], [11]])
    y = model(SRC[rows], following, cache=cache)
    expected = model(SRC[rows], torch.cat((TGT[rows, :2], following), 1))[:, -1:]
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_padding_of_the_source_changes_nothing() -> None:
    model = make()
    longer = torch.cat((SRC, torch.zeros(2, 4, dtype=torch.int64)), 1)
    torch.testing.assert_close(model(longer, TGT), model(SRC, TGT), atol=1e-5, rtol=1e-5)
    alone = model(SRC[1:, :3], TGT[1:, :3])
    torch.testing.assert_close(model(SRC, TGT)[1:, :3], alone, atol=1e-5, rtol=1e-5)


def test_a_target_token_sees_those_before_it_and_all_of_the_source() -> None:
    model = make()
    later, source = TGT.clone(), SRC.clone()
    later[:, 3] = 14
    change = (model(SRC, TGT) - model(SRC, later)).abs().amax(-1)
    assert (change[:, :3] == 0).all()
    assert (change[:, 3:] > 1e-4).all()
    source[:, 1] = 14
    assert ((model(SRC, TGT) - model(source, TGT)).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pre_norm": True, "logits_bias": True},
        {"share_embeddings": False, "src_vocab_size": 40},
        {"tie_embeddings": False},
    ],
)
def test_a_gradient_for_every_parameter(changes: dict) -> None:
    model = make(**changes).train()
    logits = model(SRC, TGT)
    assert logits.shape == (2, 6, 31)
    nn.functional.cross_entropy(logits.flatten(0, 1), TGT.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias on keys shifts all scores of a query alike: softmax makes its gradient zero in theory.
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 1e-7, name


def test_state_dict_round_trip_and_equal_builds() -> None:
    model = make()
    other = ModelBuilder(partial(EncoderDecoder, **SMALL), seed=1)().eval()
    assert not torch.equal(model(SRC, TGT), other(SRC, TGT))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(SRC, TGT), other(SRC, TGT))


def test_bf16_is_near_fp32() -> None:
    model = make()
    expected = model(SRC, TGT)
    found = model.bfloat16()(SRC, TGT)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.15, rtol=0.1)


def test_initial_weights_keep_the_variance() -> None:
    with torch.random.fork_rng():
        model = ModelBuilder(partial(EncoderDecoder, **{**SMALL, "dim": 128, "hidden_dim": 512}), seed=0)()
    glorot = math.sqrt(2 / (128 + 512))
    for parameter, std in (
        (model.embedding.weight, 128**-0.5),
        (model.decoder[0].cross_attention.k.weight, 128**-0.5),
        (model.encoder[1].feedforward.up.weight, glorot),
        (model.encoder[1].feedforward.down.weight, glorot),
    ):
        assert parameter.std().item() == pytest.approx(std, rel=0.05)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="share_embeddings, but src_vocab_size=31 and tgt_vocab_size=32"):
        EncoderDecoder(**{**SMALL, "tgt_vocab_size": 32})
    with pytest.raises(ValueError, match="dim=15 is odd"):
        EncoderDecoder(**{**SMALL, "dim": 15, "num_heads": 3})
