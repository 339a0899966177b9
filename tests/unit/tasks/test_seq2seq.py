import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.bahdanau import Bahdanau
from scaledl.models.encoder_decoder import EncoderDecoder
from scaledl.tasks.seq2seq import Seq2Seq

PAD, BOS, EOS, VOCAB = 0, 2, 3, 12
TRANSFORMER = partial(
    EncoderDecoder,
    VOCAB,
    VOCAB,
    dim=32,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=4,
    hidden_dim=64,
    dropout=0.0,
    pre_norm=True,
)
RECURRENT = partial(Bahdanau, VOCAB, VOCAB, dim=16, hidden_dim=24, dropout=0.0)
MODELS = pytest.mark.parametrize("model", [TRANSFORMER, RECURRENT], ids=["transformer", "recurrent"])


def make(model: partial, seed: int = 0, **settings: object) -> Seq2Seq:
    task = Seq2Seq(ModelBuilder(model, seed=seed), partial(torch.optim.AdamW, lr=3e-3), **settings)
    task.configure_model()
    return task


def batch_of(sources: list[list[int]], targets: list[list[int]]) -> dict[str, Tensor]:
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return {
        "src_ids": pad([torch.tensor([*s, EOS]) for s in sources], padding_value=PAD),
        "tgt_ids": pad([torch.tensor([BOS, *t]) for t in targets], padding_value=PAD),
        "labels": pad([torch.tensor([*t, EOS]) for t in targets], padding_value=-100),
    }


def reversal(count: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (count,), generator=generator).tolist()
    sources = [torch.randint(4, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return sources, [source[::-1] for source in sources]


@pytest.fixture(scope="module")
def half_trained() -> dict[str, Seq2Seq]:
    """Tasks that have begun to learn to turn sequences round, so that they are unsure and their beams differ."""
    tasks = {}
    for name, model in (("transformer", TRANSFORMER), ("recurrent", RECURRENT)):
        task = make(model)
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
        for step in range(40):
            task.objective(batch_of(*reversal(32, step)))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        tasks[name] = task.eval()
    return tasks


def score_of(task: Seq2Seq, source: list[int], target: list[int], ended: bool = True) -> float:
    """log p(target | source) by teacher forcing."""
    batch = batch_of([source], [target])
    log_p = task.model(batch["src_ids"], batch["tgt_ids"]).detach().double().log_softmax(-1)[0]
    chosen = log_p.gather(1, batch["labels"][0][:, None])[:, 0]
    return float(chosen.sum() if ended else chosen[:-1].sum())


# --- the objective --------------------------------------------------------------------------------------------------


@MODELS
def test_loss_and_accuracy_are_means_over_target_tokens(model: partial) -> None:
    task = make(model).eval()
    sources, targets = reversal(5, 0)
    batch = batch_of(sources, targets)
    metrics = task.objective(batch)
    tokens = sum(len(target) + 1 for target in targets)
    assert task.weight(batch) == tokens
    expected = -sum(score_of(task, *pair) for pair in zip(sources, targets, strict=True)) / tokens
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-5)
    right = 0
    for source, target in zip(sources, targets, strict=True):
        one = batch_of([source], [target])
        right += (task.model(one["src_ids"], one["tgt_ids"]).argmax(-1) == one["labels"]).sum().item()
    assert metrics["acc"].item() == pytest.approx(right / tokens)
    assert task.summarize({"loss": 0.7, "acc": 0.5}) == {"loss": 0.7, "acc": 0.5, "perplexity": math.exp(0.7)}


def test_label_smoothing_mixes_in_the_uniform_distribution_in_training_only() -> None:
    batch = batch_of(*reversal(5, 0))
    plain, smooth = make(TRANSFORMER), make(TRANSFORMER, label_smoothing=0.2)
    log_p = plain.model(batch["src_ids"], batch["tgt_ids"]).log_softmax(-1)[batch["labels"] >= 0]
    expected = 0.8 * plain.objective(batch)["loss"] - 0.2 * log_p.mean()
    torch.testing.assert_close(smooth.objective(batch)["loss"], expected)
    torch.testing.assert_close(smooth.eval().objective(batch)["loss"], plain.eval().objective(batch)["loss"])


@MODELS
def test_padding_changes_nothing(model: partial) -> None:
    task = make(model).eval()
    batch = batch_of(*reversal(3, 0))
    wider = {name: F.pad(ids, (0, 3), value=-100 if name == "labels" else PAD) for name, ids in batch.items()}
    for name, value in task.objective(batch).items():
        torch.testing.assert_close(task.objective(wider)[name], value)
    assert task.weight(wider) == task.weight(batch)


@MODELS
def test_it_overfits_one_batch_and_then_writes_it(model: partial) -> None:
    task = make(model, label_smoothing=0.05)
    sources, targets = reversal(4, 0)
    batch = batch_of(sources, targets)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    first = task.objective(batch)
    for _ in range(100):
        task.objective(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    task.eval()
    last = task.objective(batch)
    assert first["acc"] < 0.5
    assert last["acc"] == 1
    for beam_size in (1, 3):
        assert task.translate(batch["src_ids"], 10, beam_size=beam_size)[0] == targets


# --- the search -----------------------------------------------------------------------------------------------------


def greedy(task: Seq2Seq, source: list[int], max_len: int) -> list[int]:
    """Without cache, without batch: the likeliest token, again and again."""
    src_ids, written = torch.tensor([[*source, EOS]]), [BOS]
    for _ in range(max_len):
        token = int(task.model(src_ids, torch.tensor([written]))[0, -1].argmax())
        if token == EOS:
            break
        written.append(token)
    return written[1:]


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
def test_one_beam_is_greedy_search(half_trained: dict[str, Seq2Seq], name: str) -> None:
    task = half_trained[name]
    sources, _ = reversal(24, 100)
    found, scores = task.translate(batch_of(sources, sources)["src_ids"], 9, beam_size=1, length_penalty=0.0)
    expected = [greedy(task, source, 9) for source in sources]
    assert found == expected
    assert len({tuple(target) for target in expected}) > 12  # sources are read
    for source, target, score in zip(sources, expected, scores.tolist(), strict=True):
        assert score == pytest.approx(score_of(task, source, target, ended=len(target) < 9), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_the_score_is_the_models(half_trained: dict[str, Seq2Seq], name: str, length_penalty: float) -> None:
    task = half_trained[name]
    sources, _ = reversal(12, 101)
    found, scores = task.translate(
        batch_of(sources, sources)["src_ids"], 20, beam_size=4, length_penalty=length_penalty
    )
    for source, target, score in zip(sources, found, scores.tolist(), strict=True):
        penalty = ((5 + len(target) + 1) / 6) ** length_penalty
        assert score == pytest.approx(score_of(task, source, target) / penalty, rel=1e-4)


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6])
def test_more_beams_are_never_worse_than_one(
    half_trained: dict[str, Seq2Seq], name: str, length_penalty: float
) -> None:
    task = half_trained[name]
    src_ids = batch_of(*reversal(48, 102))["src_ids"]
    greedy = task.translate(src_ids, 30, length_penalty=length_penalty)[1]
    for beam_size in (2, 5):
        scores = task.translate(src_ids, 30, beam_size=beam_size, length_penalty=length_penalty)[1]
        assert (scores >= greedy - 1e-5).all()
        assert (scores > greedy + 1e-3).sum() > 3


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_with_enough_beams_it_finds_the_best_of_all(
    half_trained: dict[str, Seq2Seq], name: str, length_penalty: float
) -> None:
    task, source, max_len = half_trained[name], [5, 9], 3
    every = [
        list(t) for n in range(max_len) for t in itertools.product([i for i in range(VOCAB) if i != EOS], repeat=n)
    ]
    batch = batch_of([source] * len(every), every)
    log_p = task.model(batch["src_ids"], batch["tgt_ids"]).log_softmax(-1)
    chosen = log_p.gather(2, batch["labels"].clamp(min=0)[..., None])[..., 0] * (batch["labels"] >= 0)
    scores = chosen.sum(1) / torch.tensor([((6 + len(t)) / 6) ** length_penalty for t in every])
    found, score = task.translate(
        torch.tensor([[*source, EOS]]), max_len, beam_size=VOCAB**2, length_penalty=length_penalty
    )
    assert found == [every[int(scores.argmax())]]
    assert score.item() == pytest.approx(scores.max().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["transformer", "recurrent"])
def test_a_sentence_is_searched_alike_alone_and_in_a_batch(half_trained: dict[str, Seq2Seq], name: str) -> None:
    task = half_trained[name]
    sources, _ = reversal(10, 103)
    together, scores = task.translate(batch_of(sources, sources)["src_ids"], 15, beam_size=3)
    for source, target, score in zip(sources, together, scores, strict=True):
        (alone,), (its,) = task.translate(torch.tensor([[*source, EOS]]), 15, beam_size=3)
        assert alone == target
        torch.testing.assert_close(its, score)


class Scripted(nn.Module):
    """Next-token probabilities by what is written; a sequence that the script lacks ends at once."""

    def __init__(self, script: dict[tuple[int, ...], dict[int, float]]):
        super().__init__()
        self.script, self.calls = script, 0

    class Written(list):
        def select(self, rows: Tensor) -> None:
            self[:] = [self[i] for i in rows.tolist()]

    def make_cache(self, batch_size: int, max_len: int) -> Written:
        return self.Written([()] * batch_size)

    def forward(self, src_ids: Tensor, tgt_ids: Tensor, *, cache: Written) -> Tensor:
        assert len(src_ids) == len(tgt_ids) == len(cache)
        self.calls += 1
        cache[:] = [(*before, token) for before, token in zip(cache, tgt_ids[:, 0].tolist(), strict=True)]
        p = torch.full((len(cache), 1, 7), 1e-9)
        for row, written in enumerate(cache):
            for token, probability in self.script.get(written[1:], {EOS: 1.0}).items():
                p[row, 0, token] = probability
        return p.log()


def scripted(script: dict[tuple[int, ...], dict[int, float]]) -> Seq2Seq:
    return make(partial(Scripted, script)).eval()


def test_a_beam_finds_what_greed_misses() -> None:
    # 4 is likelier at first, but all that follows it is not; 5 leads to a sure end.
    task = scripted({(): {4: 0.6, 5: 0.4}, (4,): {4: 0.51, 5: 0.49}, (5,): {6: 0.9, 4: 0.1}})
    source = torch.tensor([[4, EOS]])
    assert task.translate(source, 5, length_penalty=0.0)[0] == [[4, 4]]
    found, score = task.translate(source, 5, beam_size=2, length_penalty=0.0)
    assert found == [[5, 6]]
    assert score.exp().item() == pytest.approx(0.36, rel=1e-4)


def test_the_length_penalty_decides_between_short_and_long() -> None:
    task = scripted({(): {EOS: 0.3, 4: 0.7}, (4,): {5: 0.6, 6: 0.4}, (4, 5): {5: 0.6, EOS: 0.4}})
    for length_penalty, expected in ((0.0, []), (0.3, [4, 6]), (1.0, [4, 5, 5])):
        found, _ = task.translate(torch.tensor([[4, EOS]]), 6, beam_size=4, length_penalty=length_penalty)
        assert found == [expected]


def test_a_target_that_does_not_end_is_cut_and_less_than_one_that_does() -> None:
    forever = {t: {4: 0.9, 5: 0.1} for n in range(9) for t in itertools.product((4, 5), repeat=n)}
    source = torch.tensor([[4, EOS]])
    for beam_size in (1, 2):
        found, score = scripted(forever).translate(source, 8, beam_size=beam_size, length_penalty=0.0)
        assert found == [[4] * 8]
        assert score.exp().item() == pytest.approx(0.9**8, rel=1e-4)
    task = scripted({t: p for t, p in forever.items() if t[:1] != (5,)})  # which ends after 5
    assert task.translate(source, 8, beam_size=1, length_penalty=0.0)[0] == [[4] * 8]
    assert task.translate(source, 8, beam_size=2, length_penalty=0.0)[0] == [[5]]


def test_it_stops_when_nothing_better_can_come() -> None:
    task = scripted({(): {EOS: 0.6, 4: 0.4}, **{tuple([4] * n): {4: 1.0} for n in range(1, 50)}})
    assert task.translate(torch.tensor([[4, EOS]]), 50, beam_size=4, length_penalty=0.0)[0] == [[]]
    assert task.model.calls == 2  # once greedily, once with beams


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"beam_size": 0}, "beam_size=0"), ({"max_len": 0}, "max_len=0"), ({"length_penalty": -1.0}, "length_penalty=-1")],
)
def test_search_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scripted({}).translate(torch.tensor([[4, EOS]]), **{"max_len": 5, **settings})


def test_a_label_smoothing_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 must lie in \[0, 1\)"):
        make(TRANSFORMER, label_smoothing=1.0)
