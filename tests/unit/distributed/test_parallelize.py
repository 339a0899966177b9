"""Initial weights depend on the seed and a module's name alone; wrapping changes no number."""

import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from omegaconf import open_dict
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from scaledl import build as builds
from scaledl.config.compose import compose
from scaledl.config.folders import CONF, options
from scaledl.distributed.parallelize import Checkpointing, ModelBuilder, blocks_of, initialize
from scaledl.models.gpt import GPT


def make(**changes) -> nn.Module:
    return GPT(**{"vocab_size": 11, "max_seq_len": 8, "dim": 16, "depth": 2, "num_heads": 2, **changes})


def build(recipe: Callable[[], nn.Module] = make, **arguments) -> nn.Module:
    return ModelBuilder(recipe, **arguments)()


def loss_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.arange(8).reshape(2, 4)
    loss = model(ids).square().mean()
    loss.backward()
    named = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    return loss, named


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    weights = [model.state_dict()["blocks.1.feedforward.up.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_weight_does_not_depend_on_the_depth_of_the_rest() -> None:
    deep = ModelBuilder(lambda: GPT(vocab_size=11, max_seq_len=8, dim=16, depth=3, num_heads=2), seed=1)
    key = "blocks.0.attention.q.weight"
    assert torch.equal(build(seed=1).state_dict()[key], deep().state_dict()[key])


def test_building_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build()
    assert torch.equal(torch.rand(3), expected)


def test_meta_allocates_nothing() -> None:
    assert all(parameter.is_meta for parameter in ModelBuilder(make).on_meta().parameters())


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_number_and_no_name(kind: Checkpointing, dropout: float) -> None:
    """Dropout too: what is computed again draws again what was drawn."""
    recipe = partial(make, dropout=dropout)
    plain, wrapped = (ModelBuilder(recipe, activation_checkpointing=name)() for name in ("none", kind))
    assert list(plain.state_dict()) == list(wrapped.state_dict())
    torch.manual_seed(3)
    loss, gradients = loss_and_gradients(plain)
    torch.manual_seed(3)
    other_loss, other_gradients = loss_and_gradients(wrapped)
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


class Count(TorchDispatchMode):
    """How often each operation runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


PRODUCTS_OF = {None: ["aten.addmm.default"], 4: ["aten.addmm.default", "scaledl.grouped_linear.default"]}


@pytest.mark.parametrize("num_experts", PRODUCTS_OF)
def test_selective_computes_again_what_is_cheap_and_nothing_else(num_experts: int | None) -> None:
    calls = {}
    for kind in ("none", "selective", "full"):
        model = build(partial(make, num_experts=num_experts), activation_checkpointing=kind)
        with Count() as count:
            loss_and_gradients(model)
        calls[kind] = count.calls
    products, attention = PRODUCTS_OF[num_experts], "aten._scaled_dot_product_flash_attention_for_cpu.default"
    cheap = ("aten.gelu.default", "aten.native_layer_norm.default")
    for operation in (*products, attention):
        assert calls["none"][operation] == calls["selective"][operation] < calls["full"][operation]
    for operation in cheap:
        assert calls["none"][operation] < calls["selective"][operation] == calls["full"][operation]


def kept_bytes(kind: Checkpointing) -> int:
    """What the forward pass of five blocks leaves in memory, by the allocator."""
    model = ModelBuilder(partial(GPT, 11, 64, dim=64, depth=5, num_heads=2), activation_checkpointing=kind)()
    ids = torch.randint(0, 11, (4, 64))
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = model(ids).square().mean()
    kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    loss.backward()
    return kept


def test_what_is_kept_between_the_passes() -> None:
    everything, selective, inputs = (kept_bytes(kind) for kind in ("none", "selective", "full"))
    block_input = 4 * 64 * 64 * 4
    assert inputs < 5 * block_input + 8 * block_input  # and what stands before and behind the blocks
    assert inputs < selective < 0.8 * everything, (inputs, selective, everything)


@pytest.mark.compile
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on CPU needs a C++ compiler")
def test_compile_changes_no_number_and_no_name() -> None:
    plain, compiled = build(), build(compile=True)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    loss, gradients = loss_and_gradients(plain)
    other_loss, other_gradients = loss_and_gradients(compiled)
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=1e-6)
    for name in gradients:
        torch.testing.assert_close(gradients[name], other_gradients[name], rtol=1e-4, atol=1e-6)


@torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=False)  # so that it is restored
@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_checkpointed_experts_compile_and_note_the_same(monkeypatch: pytest.MonkeyPatch, balance: str) -> None:
    torch._dynamo.reset()
    counter, compiles = CompileCounterWithBackend("aot_eager"), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiles(module, backend=counter))
    recipe = partial(make, num_experts=4, balance=balance)
    plain, compiled = build(recipe), build(recipe, compile=True, activation_checkpointing="full")
    found = []
    for model in (plain, compiled):
        ids = torch.arange(8).reshape(2, 4)
        loss = model(ids).square().mean()
        sum(model.auxiliary_losses().values(), loss).backward()
        found.append((model.step_counts(), [parameter.grad for parameter in model.parameters()]))
    assert counter.frame_count > 0
    torch.testing.assert_close(found[1], found[0])


FACTS = {"vocab_size": 11, "seq_len": 8, "in_dim": 4, "num_classes": 3, "in_channels": 1, "image_size": 32}
FACTS |= {"src_vocab_size": 11, "tgt_vocab_size": 11, "joint": True, "horizon": 1, "num_actions": 2}
SMALL = {"vocab_size": 11, "max_seq_len": 8, "dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "hidden_dim": 24}
SMALL |= {"encoder_depth": 1, "decoder_depth": 1, "hidden_dims": [24]}
CONSTANT = ("Perceptron", "Word2Vec", "DLinear", "DiT", "UNet")  # have a matrix that begins with one value
OWN = {"lenet": {"image_size": 28}, "alexnet": {"image_size": 64}, "recurrent": {"vocab_size": 11}}


def recipe(name: str) -> ModelBuilder:
    """Of a model of conf/, each of its kind of layers as they are, but small."""
    config, problems = compose(["data=points", "task=classification", f"model={name}"], [CONF])
    assert not problems
    with open_dict(config):
        config.data.update(FACTS)
        config.model.update({key: value for key, value in SMALL.items() if config.model.get(key) is not None})
        config.model.update(OWN.get(name, {}))
        if config.model.get("head_dim"):
            config.model.head_dim = 8
    return builds.model(config)


def whole(builder: ModelBuilder) -> nn.Module:
    """The model when nothing is done block by block."""
    model = builder.on_meta().to_empty(device="cpu")
    initialize(model, builder.seed)
    return model


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        one, other = dict(getattr(first, kind)()), dict(getattr(second, kind)())
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", [name for name in options("model", [CONF]) if name != "timm"])  # which is not ours
def test_a_model_made_block_by_block_is_the_one_that_is_made_as_a_whole(name: str) -> None:
    builder = recipe(name)
    model = builder()
    assert_same(model, whole(builder))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    assert all(matrix.std() > 0 for matrix in matrices) or type(model).__name__ in CONSTANT


class Leaf(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)


class Branch(nn.Module):
    """A block that holds a block, and a layer whose weights it sets itself."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.norm = Leaf(), nn.LayerNorm(3)
        self.register_buffer("seen", torch.zeros(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.norm.weight)
        nn.init.ones_(self.seen)


class Tree(nn.Module):
    block_types = (Branch, Leaf)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branches, self.alone = nn.Linear(2, 3), nn.ModuleList([Branch(), Branch()]), Leaf()


def test_a_block_inside_a_block_is_part_of_it() -> None:
    builder = ModelBuilder(Tree, seed=4)
    split, shared = [], []
    model = builder(split=split.append, shard=shared.append)
    blocks = [*model.branches, model.alone]
    assert blocks_of(model) == blocks == split
    assert shared == [*blocks, model]
    assert_same(model, whole(builder))


def test_a_block_is_alive_when_it_is_divided_and_the_ones_after_it_are_not() -> None:
    states = []
    tree: list[nn.Module] = []

    def make() -> nn.Module:
        tree.append(Tree())
        return tree[-1]

    def shard(module: nn.Module) -> None:
        assert not any(parameter.is_meta for parameter in module.parameters())
        states.append([block.weight.is_meta for block in (tree[-1].stem, tree[-1].alone)])

    ModelBuilder(make)(shard=shard)
    assert states == [[True, True], [True, True], [True, False], [False, False]]


def test_a_block_is_divided_before_and_shared_after_what_is_wrapped_around_it() -> None:
    split, shared = [], []
    ModelBuilder(Tree, activation_checkpointing="full")(split=split.append, shard=shared.append)
    assert [type(module).__name__ for module in split] == ["Branch", "Branch", "Leaf"]
    assert [type(module).__name__ for module in shared] == ["CheckpointWrapper"] * 3 + ["Tree"]
