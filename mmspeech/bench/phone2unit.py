"""VATLM's phoneme-to-unit model at the paper's size: phones a second, beside its matrix products alone.

The peer does the products of the same phones and frames and nothing else: no padding, no norms, residuals, masks or
softmax, no choice of durations or units. What ours reaches of its rate is how little is lost around the products.
"""

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmspeech import seeds
from mmspeech.bench.measure import Ready, Row, Settings
from mmspeech.models.phone2unit import BATCH_PHONES, Phone2Unit, Phone2UnitConfig, by_length
from mmspeech.training import parallel

TINY = Phone2UnitConfig(num_units=50, dim=16, encoder_layers=1, decoder_layers=1, ffn_dim=32, duration_dim=16)
BASE = Phone2UnitConfig(num_units=2000)
FRAMES_PER_PHONE = 2.2  # 25 frames a second, 11 phones
Precision = Literal["fp32", "bf16"]
Batches = list[tuple[Tensor, Tensor]]  # phones (N, P), lengths (N,)


def ours(settings: Settings, folder: Path, precision: Precision = "fp32") -> Ready:
    """Phones in, units and durations out."""
    model, batches = make_model(settings), make_batches(settings)

    def run(number: int) -> None:
        with torch.inference_mode(), parallel.autocast(torch.device(settings.device), precision):
            for phones, lengths in batches:
                model.generate(phones.to(settings.device), lengths).units.cpu()

    return Ready(run, lambda: _frames(settings, model, batches), _work(batches))


def products(settings: Settings, folder: Path, precision: Precision = "fp32") -> Ready:
    """The products of each layer over all real phones, then over all real frames, of each batch."""
    model, batches = make_model(settings), make_batches(settings)
    frames = _frames(settings, model, batches)
    model = model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    sizes = zip((lengths for _, lengths in batches), frames, strict=True)
    calls = [call for phones, their_frames in sizes for call in _products(model, phones, their_frames)]

    def run(number: int) -> None:
        with torch.inference_mode():
            for call in calls:
                call()

    return Ready(run, lambda: frames, _work(batches))


def rows() -> dict[str, Row]:
    what, name = "phones to units, 4 + 4 blocks of 256", "its matrix products alone"
    half = functools.partial(ours, precision="bf16"), functools.partial(products, precision="bf16")
    return {
        "phone2unit": Row(what, ("Phone2Unit.generate", ours), {name: products}, ("phones/s",), difference),
        "phone2unit-bf16": Row(
            f"{what}, bf16", ("Phone2Unit.generate", half[0]), {name: half[1]}, ("phones/s",), difference
        ),
    }


def difference(a: list[Tensor], b: list[Tensor]) -> tuple[float, float]:
    """Frames of each sentence, which both work on: the same."""
    return float(any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))), 0.0


def make_model(settings: Settings) -> Phone2Unit:
    """Random weights whose durations vary around the usual one."""
    torch.manual_seed(settings.seed)
    model = Phone2Unit(TINY if settings.size == "tiny" else BASE).to(settings.device).eval()
    nn.init.constant_(model.predictor.project.bias, math.log1p(FRAMES_PER_PHONE) - 0.1)
    return model


def make_batches(settings: Settings) -> Batches:
    """Some of the batches that `mmspeech extract units --from text` makes of sentences of 3 to 50 words of 4 phones."""
    rng = seeds.numpy_rng(settings.seed, "sentences")
    words = np.exp(rng.normal(np.log(15), 0.6, 100 if settings.size == "tiny" else 5000)).clip(3, 50)
    lengths = (4 * words).astype(np.int64)
    most = 100 if settings.size == "tiny" else BATCH_PHONES // 4 if settings.quick else BATCH_PHONES
    batches = list(by_length(lengths, most))
    chosen = np.linspace(0, len(batches) - 1, 3 if settings.quick else 5).astype(int)[1:-1]
    sizes = [torch.from_numpy(lengths[batches[i]]) for i in chosen]
    return [(torch.from_numpy(rng.integers(4, 45, (len(some), int(some.max())))), some) for some in sizes]


def _products(model: Phone2Unit, lengths: Tensor, frames: Tensor) -> Iterator[Callable[[], Tensor]]:
    config = model.config
    weight = model.project.weight

    def of_blocks(blocks: Any, sizes: Tensor) -> Iterator[Callable[[], Tensor]]:
        total = int(sizes.sum())
        x = torch.randn(total, config.dim).to(weight)
        wide = torch.randn(1, config.ffn_dim, total).to(weight)
        head = torch.randn(len(sizes), config.heads, int(sizes.float().mean()), config.dim // config.heads).to(weight)
        for block in blocks:
            yield functools.partial(block.attention.qkv, x)
            yield lambda: head @ head.transpose(2, 3) @ head
            yield functools.partial(block.attention.out, x)
            yield functools.partial(block.expand, x.T[None])
            yield functools.partial(block.contract, wide)

    yield from of_blocks(model.encoder, lengths)
    x = torch.randn(1, config.dim, int(lengths.sum())).to(weight)
    for conv in model.predictor.convs:
        yield functools.partial(conv, x)
    yield from of_blocks(model.decoder, frames)
    yield functools.partial(F.linear, torch.randn(int(frames.sum()), config.dim).to(weight), weight)


def _frames(settings: Settings, model: Phone2Unit, batches: Batches) -> list[Tensor]:
    """(N,) frames of each batch."""
    with torch.inference_mode():
        return [model.generate(phones.to(settings.device), lengths).lengths for phones, lengths in batches]


def _work(batches: Batches) -> dict[str, float]:
    return {"phones": float(sum(int(lengths.sum()) for _, lengths in batches))}
