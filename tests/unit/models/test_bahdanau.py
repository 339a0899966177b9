from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.attention import AdditiveAttention
from scaledl.models.bahdanau import Bahdanau

SMALL = {"src_vocab_size": 23, "tgt_vocab_size": 31, "dim": 6, "hidden_dim": 8, "dropout": 0.0}
SRC = torch.tensor([[4, 9, 17, 22, 3], [21, 5, 3, 0, 0]])
TGT = torch.tensor([[2, 8, 8, 12, 25, 6], [2, 30, 7, 0, 0, 0]])


def make(**changes: object) -> Bahdanau:
    return ModelBuilder(partial(Bahdanau, **{**SMALL, **changes}), seed=0)().eval()


def test_the_textbook_size_has_20518405_parameters() -> None:
    """bentrevett/pytorch-seq2seq, notebook 3, on Multi30k's words."""
    with torch.device("meta"):
        model = Bahdanau(7_853, 5_893, dim=256, hidden_dim=512)
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_518_405


def test_the_encoder_is_a_bidirectional_gru_on_packed_sequences() -> None:
    encoder, lengths = make().encoder, torch.tensor([5, 3])
    theirs = nn.GRU(6, 8, batch_first=True, bidirectional=True)
    for ours, ending in ((encoder.forwards, ""), (encoder.backwards, "_reverse")):
        for name, parameter in ours.named_parameters():
            getattr(theirs, name + ending).data.copy_(parameter)
    packed, last = theirs(pack_padded_sequence(encoder.embedding(SRC), lengths, batch_first=True))
    expected = pad_packed_sequence(packed, batch_first=True)[0]
    states, first = encoder(SRC, lengths)
    real = SRC != 0
    torch.testing.assert_close(states[real], expected[real])
    torch.testing.assert_close(first, encoder.first_state(torch.cat((last[0], last[1]), 1)).tanh())


def test_the_decoder_equals_the_equations() -> None:
    """Step by step and word by word: eq. 4 to 6 of the paper."""
    model = make()
    decoder, (states, s) = model.decoder, model.encoder(SRC, torch.tensor([5, 3]))
    attention, logits = decoder.attention, []
    for t in range(TGT.shape[1]):
        y = decoder.embedding(TGT[:, t])
        e = torch.stack(
            [attention.score(torch.tanh(attention.query(s) + attention.key(states[:, j])))[:, 0] for j in range(5)], 1
        )
        e[SRC == 0] = -torch.inf
        alpha = e.exp() / e.exp().sum(1, keepdim=True)
        c = sum(alpha[:, j : j + 1] * states[:, j] for j in range(5))
        s = decoder.cell(torch.cat((y, c), 1), s)
        logits.append(decoder.head(torch.cat((s, c, y), 1)))
    torch.testing.assert_close(model(SRC, TGT), torch.stack(logits, 1), atol=1e-5, rtol=1e-5)


def test_weights_are_a_distribution_over_what_is_there() -> None:
    torch.manual_seed(0)
    attention, states = AdditiveAttention(3, 5, 7), torch.randn(2, 4, 5)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    read, weights = attention(torch.randn(2, 3), states, attention.key(states), mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[1, 2:] == 0).all()
    assert (weights[mask] > 0).all()
    torch.testing.assert_close(read, torch.einsum("bs,bsd->bd", weights, states))


def test_decoding_step_by_step_with_the_cache_equals_one_pass() -> None:
    model = make()
    expected = model(SRC, TGT)
    cache = model.make_cache(2, 6)
    steps = [model(SRC, TGT[:, :2], cache=cache), *(model(SRC, TGT[:, t : t + 1], cache=cache) for t in range(2, 6))]
    torch.testing.assert_close(torch.cat(steps, 1), expected)


def test_selected_rows_go_on_as_if_they_had_been_alone() -> None:
    model, rows = make(), torch.tensor([1, 0, 0])
    cache = model.make_cache(2, 6)
    model(SRC, TGT[:, :2], cache=cache)
    cache.select(rows)
    following = torch.tensor([[9], [10], [11]])
    y = model(SRC[rows], following, cache=cache)
    torch.testing.assert_close(y, model(SRC[rows], torch.cat((TGT[rows, :2], following), 1))[:, -1:])


def test_padding_of_the_source_changes_nothing() -> None:
    model = make()
    longer = torch.cat((SRC, torch.zeros(2, 4, dtype=torch.int64)), 1)
    torch.testing.assert_close(model(longer, TGT), model(SRC, TGT))
    torch.testing.assert_close(model(SRC, TGT)[1:], model(SRC[1:, :3], TGT[1:]))


def test_a_gradient_for_every_parameter() -> None:
    model = make(dropout=0.1).train()
    logits = model(SRC, TGT)
    assert logits.shape == (2, 6, 31)
    nn.functional.cross_entropy(logits.flatten(0, 1), TGT.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_state_dict_round_trip() -> None:
    model, other = make(), ModelBuilder(partial(Bahdanau, **SMALL), seed=1)().eval()
    assert not torch.equal(model(SRC, TGT), other(SRC, TGT))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(SRC, TGT), other(SRC, TGT))


def test_bf16_is_near_fp32() -> None:
    model = make()
    expected = model(SRC, TGT)
    found = model.bfloat16()(SRC, TGT)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_builds_without_memory(dropout: float) -> None:
    with torch.device("meta"):
        model = Bahdanau(**{**SMALL, "dropout": dropout})
        assert model(SRC.to("meta"), TGT.to("meta")).shape == (2, 6, 31)
