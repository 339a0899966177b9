"""A mixture: exact shares, an order that knows no ranks, one tokenizer, a loss of each source."""

import json

import numpy as np
import pytest
import torch

from scaledl.config.folders import CONF
from scaledl.data.mixture import Mixed, MixtureData, Schedule, Source, _in_turns
from scaledl.data.sampler import TrainBatches
from scaledl.data.tokenizer import ByteTokenizer, CharTokenizer
from scaledl.train import composed


@pytest.mark.parametrize(
    "weights", [[1], [1, 1], [1, 3], [0.7, 0.2, 0.1], [5, 3, 2, 1e-3, 7], [1e-9, 1, 1], [1 / 7] * 7]
)
def test_shares_are_exact_to_less_than_one_sample_over_any_prefix(weights):
    schedule = Schedule(weights)
    period = len(schedule.sources)
    assert period <= 1 << 14
    shares = schedule.counts / period
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=1.01 * len(weights) / (1 << 14))
    positions = np.arange(2 * period + 5)
    sources, numbers = schedule.at(positions)
    for source, share in enumerate(shares):
        taken = np.cumsum(sources == source)
        assert np.abs(taken - share * (positions + 1)).max() < 1
        np.testing.assert_array_equal(numbers[sources == source], np.arange(taken[-1]))  # each in its turn, none twice
    far = period * 10**6 + 3
    assert schedule.at(np.array([far]))[0][0] == sources[3]


def mixture(tmp_path, tokenizer=None, weights=(3, 1), **given):
    texts = {"letters": "abcdefghij", "numbers": "0123456789"}
    sources = {}
    for (name, signs), weight in zip(texts.items(), weights, strict=True):
        rng = np.random.default_rng(len(sources))
        rows = ["".join(rng.choice(list(signs), 40)) for _ in range(30 * (1 + len(sources)))]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        sources[name] = Source(weight=weight, path=str(tmp_path / f"{name}.jsonl"))
    given = {"seq_len": 8, "cache_dir": str(tmp_path / "cache")} | given
    data = MixtureData(tokenizer or ByteTokenizer(), sources, 8, 8, **given)
    data.prepare()
    return data


def is_number(batch):
    return (batch["input_ids"] < 64).any(1).numpy()


def test_batches_hold_the_shares_on_any_number_of_ranks_and_from_any_position(tmp_path):
    data = mixture(tmp_path)
    train = data.datasets()["train"]
    assert isinstance(train, Mixed)

    def batches(number, rank=0, world_size=1, start=0):
        given = {"seed": 3, "rank": rank, "world_size": world_size, "start": start, "order": train.samples_at}
        stream = iter(TrainBatches(len(train), 8, 8 // world_size, **given))
        return [next(stream) for _ in range(number)]

    assert is_number(next(iter(data.train_dataloader()))).sum() == 2
    assert data.weight_share(0) == 1
    whole = batches(40)
    for indices in whole:
        assert is_number(train.__getitems__(indices)).sum() == 2  # of 8, a quarter
    halves = [batches(40, rank, 2) for rank in range(2)]
    np.testing.assert_array_equal(
        np.concatenate(whole), np.concatenate([np.concatenate(b) for b in zip(*halves, strict=True)])
    )
    np.testing.assert_array_equal(np.concatenate(whole[10:]), np.concatenate(batches(30, start=80)))
    letters = np.concatenate(whole)[np.concatenate(whole) < train.begins[1]]
    epoch = int(train.begins[1])
    assert sorted(letters[:epoch]) == list(range(epoch))  # each window of a source once in its own epoch
    assert letters[:epoch].tolist() != letters[epoch : 2 * epoch].tolist()


def test_rows_come_in_the_order_they_are_asked_for(tmp_path):
    train = mixture(tmp_path, document_mask=True).datasets()["train"]
    indices = np.array([train.begins[1] + 5, 3, train.begins[1], 0, 3])
    batch = train.__getitems__(indices)
    for row, index in enumerate(indices):
        alone = train.__getitems__(np.array([index]))
        assert all(torch.equal(batch[name][row], alone[name][0]) for name in ("input_ids", "labels", "document_ids"))
    assert is_number(batch).tolist() == [True, False, True, False, False]


def test_one_tokenizer_knows_all_sources(tmp_path):
    data = mixture(tmp_path, CharTokenizer())
    assert data.facts()["vocab_size"] == 21
    folders = {text.folder for text in data.texts.values()}
    assert len(folders) == 2
    assert len({(folder / "tokenizer.json").read_bytes() for folder in folders}) == 1
    again = MixtureData(CharTokenizer(), data.sources, 8, 8, seq_len=8, cache_dir=str(tmp_path / "cache"))
    again.prepare()
    assert {text.folder for text in again.texts.values()} == folders
    data.save_to(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folders.pop() / "tokenizer.json").read_bytes()


class Rows:
    """A corpus of texts that are at hand."""

    def __init__(self, texts):
        self.texts = texts

    def pieces(self):
        yield from enumerate(self.texts)


@pytest.mark.parametrize("weights", [(1.0, 3.0), (7.0, 0.5)])
def test_any_first_characters_for_the_tokenizer_are_mixed_by_the_weights(weights):
    rng = np.random.default_rng(0)
    corpora = [Rows([sign * int(length) for length in rng.integers(1, 50, 400)]) for sign in "ab"]
    texts = list(_in_turns(corpora, list(weights)))
    assert sorted(texts) == sorted(corpora[0].texts + corpora[1].texts)
    taken = np.cumsum([[text.count(sign) for sign in "ab"] for text in texts], axis=0)
    both = (taken < taken[-1]).all(1)
    assert both.sum() > 100
    assert np.abs(taken[both] @ np.array([1 / weights[0], -1 / weights[1]])).max() <= 50 / min(weights)


def test_evaluation_knows_the_parts(tmp_path):
    data = mixture(tmp_path)
    val = data.datasets()["val"]
    assert "schedule" not in vars(val)  # it takes a while, and is for training
    assert [(name, weight) for name, _, weight in val.parts] == [("letters", 0.75), ("numbers", 0.25)]
    for limit in (None, 4):
        data.limit_val_batches = limit
        loader = data.val_dataloader()
        parts = [loader.batch_sampler.part(index) for index in range(len(loader))]
        found = [is_number(batch) for batch in loader]
        assert (
            [bool(rows.all()) for rows in found]
            == [bool(rows.any()) for rows in found]
            == [part == 1 for part in parts]
        )
        assert set(parts) == {0, 1}
        assert limit is None or len(parts) == limit


def test_facts_let_a_run_go_on_from_anywhere(tmp_path, monkeypatch):
    mixture(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = MixtureData(ByteTokenizer(), {"a": Source(path="letters.jsonl")}, 8, 8, seq_len=8, cache_dir=str(tmp_path))
    data.prepare()
    assert data.facts()["sources"]["a"]["path"] == str(tmp_path / "letters.jsonl")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_above_zero(weight):
    with pytest.raises(ValueError, match=r"sources=\{.*\}: give one source or more, each with a weight above 0"):
        MixtureData(ByteTokenizer(), {"a": Source(weight=weight)}, 8, 8)


def test_names_hold_no_slash():
    with pytest.raises(ValueError, match=r"data\.sources has \['a/b'\]: leave out the /"):
        MixtureData(ByteTokenizer(), {"a": Source(), "a/b": Source()}, 8, 8)


def test_the_sources_of_an_experiment_are_the_only_ones(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("""# @package _global_
defaults:
  - override /data: mixture
  - override /model: llama_nano
  - override /task: language_modeling
data:
  sources:
    web: {_target_: scaledl.data.mixture.Source, weight: 7, path: web.jsonl}
    code: {_target_: scaledl.data.mixture.Source, weight: 3, path: code.jsonl}
""")
    config = composed(["experiment=mine", "trainer.max_steps=1"], [tmp_path, CONF], [])
    assert {name: source.weight for name, source in config.data.sources.items()} == {"web": 7, "code": 3}
