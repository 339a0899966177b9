"""Operations are counted as one counts them by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from scaledl.data.samples import Samples
from scaledl.data.text_classification import PaddedTexts
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.flops import flops_of_sample, longest_sample, usual_sample, utilization
from scaledl.hardware import DEVICES, device, device_called
from scaledl.models.gpt import GPT
from scaledl.models.resnet import ResNet
from scaledl.tasks.classification import Classification
from scaledl.tasks.language_modeling import LanguageModeling

GPT_2 = {"dim": 128, "depth": 3, "num_heads": 4}
LLAMA = GPT_2 | {
    "num_kv_heads": 2,
    "hidden_dim": 320,
    "norm": "rmsnorm",
    "position": "rotary",
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
}


@pytest.mark.parametrize("arguments", [GPT_2, LLAMA], ids=["gpt2", "llama"])
def test_a_transformer_costs_what_the_formula_says(arguments: dict) -> None:
    vocab_size, length = 512, 96
    builder = ModelBuilder(partial(GPT, vocab_size, length, **arguments))
    ids = torch.zeros(1, length, dtype=torch.int64)
    counted = flops_of_sample(LanguageModeling(builder, torch.optim.AdamW), {"input_ids": ids, "labels": ids})
    model = builder.on_meta()
    looked_up = 0 if model.position_embedding is None else model.position_embedding.weight.numel()
    looked_up += 0 if model.head is None else model.token_embedding.weight.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters()) - looked_up
    attention = 12 * arguments["depth"] * arguments["dim"] * length
    assert counted == pytest.approx((6 * parameters + attention) * length, rel=0.01)


class _OneConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_a_convolution_costs_what_it_multiplies() -> None:
    task = Classification(ModelBuilder(_OneConvolution), torch.optim.AdamW, num_classes=8)
    counted = flops_of_sample(task, {"x": torch.zeros(1, 3, 10, 10), "y": torch.zeros(1, dtype=torch.int64)})
    forward = 2 * 8 * 3 * 3 * 3 * 10 * 10
    assert counted == 2 * forward  # the images learn nothing, so there are two products, not three


def test_a_batch_counts_as_one_sample() -> None:
    task = Classification(ModelBuilder(partial(ResNet, 1, 10, depths=[1], dims=[8])), torch.optim.AdamW, num_classes=10)
    batches = [{"x": torch.zeros(n, 1, 8, 8), "y": torch.zeros(n, dtype=torch.int64)} for n in (1, 5)]
    assert flops_of_sample(task, batches[0]) == flops_of_sample(task, batches[1])
    assert task.model is None


def test_of_samples_of_many_lengths_one_is_usual_and_one_the_longest() -> None:
    texts = PaddedTexts([np.ones(length, np.int64) for length in (3, 90, 40, 50)], np.arange(4))  # 46 in the mean
    assert usual_sample(texts)["x"].shape == (1, 50)
    assert longest_sample(texts)["x"].shape == (1, 90)
    alike = Samples(np.arange(4), np.arange(4))
    assert usual_sample(alike)["x"].tolist() == longest_sample(alike)["x"].tolist() == [0]


def test_utilization_is_a_share_of_the_peak() -> None:
    assert utilization(1000, 50.0, 1e5) == 0.5
    assert utilization(None, 50.0, 1e5) is None
    assert utilization(1000, 50.0, None) is None


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A4000", None),
    ],
)
def test_a_device_is_known_by_what_pytorch_calls_it(said: str, key: str | None) -> None:
    assert device_called(said) is (None if key is None else DEVICES[key])


def test_an_unknown_device_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"--gpu H-100: did you mean h100\? Known are b200"):
        device("H-100")


def test_precision_chooses_the_peak() -> None:
    h100 = DEVICES["h100"]
    assert h100.peak("bf16-mixed") == h100.peak("bf16-true") == pytest.approx(989.4e12)
    assert h100.peak("32-true") == pytest.approx(66.9e12)
    assert h100.peak("32-true", tf32=True) == pytest.approx(494.7e12)
