"""What a trained classifier or language model looks at: one page of HTML with its pictures."""

import importlib.util
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scaledl import atomic, checkpoint
from scaledl.data.base import BatchDataset, Data
from scaledl.data.tokenizer import first_ids, load_tokenizer
from scaledl.distributed.noise import Noise
from scaledl.evaluate import load_run
from scaledl.interpret import samples as make
from scaledl.interpret import sections
from scaledl.interpret.activation_maximization import activation_maximization
from scaledl.interpret.attention import attention_layers, watched
from scaledl.interpret.grad_cam import grad_cam, last_maps, maps_of
from scaledl.interpret.gradients import gradient_sizes
from scaledl.interpret.integrated_gradients import integrated_gradients
from scaledl.interpret.landscape import filter_normalized, losses_around
from scaledl.interpret.lime import lime
from scaledl.interpret.methods import ATTRIBUTIONS, BY_CAPTUM, METHODS
from scaledl.interpret.occlusion import occlusion
from scaledl.interpret.page import page
from scaledl.interpret.saliency import gradient
from scaledl.interpret.samples import Sample
from scaledl.interpret.sections import Found
from scaledl.interpret.shapley import shapley
from scaledl.tasks.base import Task
from scaledl.tasks.classification import Classification
from scaledl.tasks.language_modeling import LanguageModeling
from scaledl.train import quiet

LAYERS, DRAWN = 6, 10  # attention layers, and classes and maps whose features are drawn, at most
BATCH_VALUES = 2**17  # of the batch whose loss is drawn; a landscape takes hundreds of its losses


def explain(
    run_dir: Path,
    which: str,
    split: str | None,
    num_samples: int,
    methods: list[str] | None,
    prompt: str | None,
    output: Path | None,
    seed: int,
    allowed: list[str],
) -> Path:
    """Writes `explain.html` into the run directory, or `output`; returns where.

    Args:
        which: `best`, `last` or a step.
        split: whose samples are explained; null = test, else val, else train.
        methods: of METHODS; null = all that fit the run, but lime and shap of tokens for the time they take.
        prompt: of a language model: the text whose next token is explained, in the place of samples.
    """
    quiet()
    path = output or run_dir / "explain.html"
    if output and not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for --output {path}; make it first")
    with_data = prompt is None or "landscape" in (methods or ())
    task, data, config, chosen = load_run(run_dir, which, allowed, with_data)
    if not isinstance(task, Classification | LanguageModeling):
        raise ValueError(
            f"{run_dir} is a {type(task).__name__}; scaledl explain serves classifiers (task=classification) and "
            "language models (task=language_modeling)"
        )
    if prompt is not None and not isinstance(task, LanguageModeling):
        raise ValueError(f"{run_dir} is a classifier; --prompt is for language models, take --split and --samples")
    if torch.cuda.is_available():
        task = task.to("cuda")
    with _gradients_served(task.model):
        batches, where = ([], "the prompt") if prompt is not None else _batches(task, data, split, num_samples)
        if isinstance(task, Classification):
            samples = [_classified(task, data, run_dir, batch) for batch in batches]
        else:
            samples = _texts(task, run_dir, batches, prompt)
        names, left_out = _fitting(task.model, samples[0].kind, samples[0].inputs, methods, prompt)
        parts = list(_sections(task, data, run_dir, samples, batches, names, left_out, seed))
    facts = {"run": str(run_dir), "checkpoint": f"step {checkpoint.step_of(chosen):,}", "samples": where}
    atomic.write_text(path, page(f"{config.experiment}: what the model looks at", facts, parts))
    print(path)
    return path


@contextmanager
def _gradients_served(model: nn.Module) -> Iterator[None]:
    """Hooks are seen by compiled blocks, and cuDNN's recurrent layers, which have no gradient in eval, are not used."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.compiler.set_stance("force_eager"), torch.backends.cudnn.flags(enabled=not recurrent):
        yield


def _split(data: Data, asked: str | None) -> tuple[str, BatchDataset]:
    found = dict(data.splits())
    name = asked or next(name for name in ("test", "val", "train") if name in found)
    if name not in found:
        raise ValueError(f"--split {name}: this run's data has {', '.join(found)}")
    return name, found[name]


def _batches(task: Task, data: Data, asked: str | None, count: int) -> tuple[list[dict[str, Tensor]], str]:
    """Samples, each a batch of its own, so that a text has no padding; and whose they are."""
    name, dataset = _split(data, asked)
    if isinstance(task, Classification):
        numbers = make.spread(dataset, count)
    else:
        numbers = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return [_batch(task, dataset, numbers[[i]]) for i in range(len(numbers))], f"{len(numbers)} of {name}"


def _batch(task: Task, dataset: BatchDataset, numbers: np.ndarray) -> dict[str, Tensor]:
    return {name: tensor.to(task.device) for name, tensor in dataset.__getitems__(numbers).items()}


def _classified(task: Classification, data: Data, run_dir: Path, batch: dict[str, Tensor]) -> Sample:
    x = batch["x"]
    names = make.names_of_columns(data, x.shape[1]) if x.ndim == 2 else []
    if not x.is_floating_point():
        tokenizer = load_tokenizer(run_dir)
        shift = int(tokenizer.pad_id != 0)  # id 0 is padding (see TextClassification)
        names = make.pieces(tokenizer, (x[0] - shift).tolist())
    return make.of_classifier(task, x, int(batch["y"]), make.names_of_classes(data, task.num_classes), names)


def _texts(task: Task, run_dir: Path, batches: list[dict[str, Tensor]], prompt: str | None) -> list[Sample]:
    tokenizer, most = load_tokenizer(run_dir), int(task.model.max_seq_len)  # type: ignore[arg-type]
    if prompt is not None:
        ids = torch.tensor([first_ids(tokenizer, prompt)[-most:]], device=task.device)
        return [make.of_language_model(task, ids, tokenizer, None)]
    found = []
    for batch in batches:
        predicted = (batch["labels"][0] >= 0).nonzero().flatten()  # all but padding or, of a chat, the answers
        within = predicted[predicted < min(make.CONTEXT, most)]
        length = int(within[-1] if len(within) else predicted[0]) + 1
        ids, following = batch["input_ids"][:, :length], int(batch["labels"][0, length - 1])
        found.append(make.of_language_model(task, ids, tokenizer, following))
    return found


def _fitting(
    model: nn.Module, kind: make.Kind, x: Tensor, asked: list[str] | None, prompt: str | None
) -> tuple[list[str], str]:
    """The methods to use, in the page's order, and what is to be said of one that is left out.

    Raises:
        ValueError: a method that was asked for does not fit the run.
        ImportError: it needs captum, which is not there.
    """
    fits = {
        "grad_cam": kind == "image" and last_maps(model, x) is not None,
        "features": kind == "image",
        "attention": kind != "table" and bool(attention_layers(model, 1)),
        "gradients": prompt is None,
        "landscape": prompt is None or bool(asked),  # reads the training data, which need not be on this machine
    }
    possible = [name for name in METHODS if fits.get(name, True)]
    for name in asked or ():
        if name not in possible:
            raise ValueError(
                f"--methods {name} does not fit {type(model).__name__} on {'a prompt' if prompt else kind}: "
                f"take of {' '.join(possible)}"
            )
    if asked is None and kind == "tokens":  # a thousand forward passes for each text
        possible = [name for name in possible if name not in BY_CAPTUM]
    chosen = [name for name in possible if asked is None or name in asked]
    if importlib.util.find_spec("captum") or not set(BY_CAPTUM) & set(chosen):
        return chosen, ""
    install = 'LIME and SHAP values need captum: pip install "scaledl[explain]"'
    if asked is not None:
        raise ImportError(install)
    warnings.warn(install, stacklevel=2)
    return [name for name in chosen if name not in BY_CAPTUM], install


def _sections(
    task: Task,
    data: Data,
    run_dir: Path,
    samples: list[Sample],
    batches: list[dict[str, Tensor]],
    methods: list[str],
    left_out: str,
    seed: int,
) -> Iterator[str]:
    model = task.model
    if any(name in ATTRIBUTIONS for name in methods):
        found: list[Found] = [{} for _ in samples]
        for name in methods:
            if name in ATTRIBUTIONS:
                with _timed(name):
                    for sample, of_sample in zip(samples, found, strict=True):
                        of_sample[name] = _attributed(name, model, sample, seed)
        yield sections.attributions(samples, found, left_out)
    if "attention" in methods:
        with _timed("attention"), watched(attention_layers(model, LAYERS)) as maps:
            for sample in samples:
                model(sample.inputs)
        yield sections.attention(samples, maps)
    if "features" in methods:
        with _timed("features"):
            drawn = _features(model, samples, seed)
        yield sections.features(*drawn, make.names_of_classes(data, len(drawn[0])))
    if "gradients" in methods:
        with _timed("gradients"):
            sizes = gradient_sizes(model, [lambda batch=batch: _loss(task, batch, seed) for batch in batches])
        yield sections.gradients(*sizes, run_dir / "plots" / "gradients.png")
    if "landscape" in methods:
        with _timed("landscape"):
            around = _landscape(task, data.split("train"), seed)
        yield sections.landscape(*around)


@contextmanager
def _timed(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{METHODS[name].title}: {time.perf_counter() - start:.1f} s", flush=True)


def _attributed(name: str, model: nn.Module, sample: Sample, seed: int) -> tuple[Tensor, str]:
    """What a method gives for each part of a sample, (H, W), (F,) or (T,), and a remark."""
    subject, note = sample.subject, ""
    score, x, regions = subject.score, subject.x, subject.regions
    if name == "grad_cam":
        layer = last_maps(model, sample.inputs)
        assert layer is not None
        return grad_cam(score, model.get_submodule(layer), x)[0].cpu(), ""
    if name == "saliency":
        slope = gradient(score, x)[0]
        found = (slope * x[0] if sample.kind == "tokens" else slope.abs()).sum_to_size(regions.shape)
    elif name == "integrated_gradients":
        shares, difference = integrated_gradients(score, x, subject.baseline)
        found, note = shares.sum_to_size(regions.shape), f"sum {float(shares.sum()):.3f} of {float(difference):.3f}"
    elif name == "occlusion":
        found = occlusion(subject)
    else:
        found = (lime if name == "lime" else shapley)(subject, seed)
    channels = sample.kind == "image"
    return (found[0] if channels else found.flatten()).cpu(), note


def _features(model: nn.Module, samples: list[Sample], seed: int) -> tuple[Tensor, dict[int, Tensor], str]:
    """Images that make the classes large, and maps of the last layer that has some, by their number; and its name."""
    x = torch.cat([sample.inputs for sample in samples])  # (n, C, H, W)
    low, high = x.amin((0, 2, 3), keepdim=True)[0].expand_as(x[0]), x.amax((0, 2, 3), keepdim=True)[0].expand_as(x[0])
    with torch.no_grad():
        num_classes = min(DRAWN, model(x[:1]).shape[1])
    classes = activation_maximization(lambda z: model(z).float().diagonal(), low, high, num_classes, seed=seed)
    name = last_maps(model, x[:1])
    if name is None:
        return classes.cpu(), {}, ""
    with maps_of(model.get_submodule(name)) as maps:

        def means(z: Tensor) -> Tensor:
            maps.clear()
            model(z)
            return maps[0].float().mean((2, 3))  # (n, number of maps)

        with torch.no_grad():
            answers = means(x).mean(0)
        most = answers.topk(min(DRAWN, len(answers))).indices
        drawn = activation_maximization(lambda z: means(z)[:, most].diagonal(), low, high, len(most), seed=seed)
    return classes.cpu(), dict(zip(most.tolist(), drawn.cpu(), strict=True)), name


def _loss(task: Task, batch: dict[str, Tensor], seed: int) -> Tensor:
    task.noise = Noise(seed, torch.arange(len(next(iter(batch.values()))), device=task.device))
    return task.objective(batch)["loss"]


def _landscape(task: Task, dataset: BatchDataset, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """What `sections.landscape` draws, of the loss on training samples at equal distances."""
    one = _batch(task, dataset, np.arange(1))
    values = (one["x"] if "x" in one else one["input_ids"]).numel()
    if "input_ids" in one or not one["x"].is_floating_point():
        values *= int(getattr(task.model, "num_features", 128))
    count = min(len(dataset), 128, max(16, BATCH_VALUES // values))
    batch = _batch(task, dataset, np.linspace(0, len(dataset) - 1, count).astype(int))
    parameters = list(task.model.parameters())
    generator = torch.Generator().manual_seed(seed)
    directions = [filter_normalized(parameters, generator) for _ in range(2)]
    line, grid = torch.linspace(-1, 1, 31), torch.linspace(-1, 1, 13)
    places = [torch.stack((line, 0 * line), 1), torch.stack((0 * line, line), 1), torch.cartesian_prod(grid, grid)]
    losses = losses_around(lambda: _loss(task, batch, seed), parameters, directions, torch.cat(places))
    slices, surface = losses[: 2 * len(line)].view(2, -1), losses[2 * len(line) :].view(len(grid), -1)
    return line, slices, grid, surface.T, f"{count} training samples"
