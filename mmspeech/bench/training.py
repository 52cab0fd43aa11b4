"""Training steps (draw, forward, backward, optimizer): u-HuBERT's against a literal one, AV-data2vec's against it.

Both train the same weights with the same objective, masks and modality dropout. The literal one runs both front-ends on
every row, dropped or not, with a 3-D convolution and batch norm over all frames, padding too; lays out the logits as
frames x classes x 256; and batches utterances as they come, padded to the longest. Reading is not measured.

AV-data2vec's step stands beside u-HuBERT's on the same batches, with the same kept streams and masked frames: what a
teacher that hears sound costs.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lhotse import MonoCut
from torch import Tensor, nn

from mmspeech import config as configs
from mmspeech import seeds
from mmspeech.batch import Batch, Loss, valid_frames
from mmspeech.bench.measure import Ready, Row, Settings, draw_durations
from mmspeech.blocks.masking import SpanMask
from mmspeech.data.cutfiles import writing_cuts
from mmspeech.data.loader import DataConfig, make_sampler
from mmspeech.data.reading import Item, collate
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, ScaleGradient
from mmspeech.models.frontends import LIP_MEAN, LIP_STD
from mmspeech.models.presence import ModalitySchedule
from mmspeech.pretraining.avdata2vec import AVData2vec, AVData2vecConfig
from mmspeech.pretraining.uhubert import UHubert, UHubertConfig
from mmspeech.training import optimizers, parallel
from mmspeech.training.settings import TrainingConfig
from mmspeech.training.step import agree, train_step

CONF = Path(__file__).parents[2] / "recipes" / "lrs3" / "conf" / "uhubert" / "pretrain"
RECIPES: dict[str, tuple[str, list[str]]] = {  # size -> the YAML whose model, objective and batch are used; changes
    "tiny": ("synth-2.yaml", ["model.num_layers=2", "model.dim=64", "model.ffn_dim=256", "data.max_batch_s=16"]),
    "small": ("synth-2.yaml", []),
    "base": ("base-lrs3-iter5.yaml", []),
}
STREAMS = ["audio", "video"]
MASK = SpanMask(probability=0.5, length=10)
MODALITY_DROPOUT = {"audio+video": 0.5, "audio": 0.25, "video": 0.25}
Precision = Literal["fp32", "bf16"]


class Run(NamedTuple):
    """The parts of a recipe that a step depends on."""

    model: AVEncoderConfig
    objective: UHubertConfig
    data: DataConfig
    training: TrainingConfig


class Utterance(NamedTuple):
    """As drawn: what is read from disk in a real run."""

    id: str
    frames: int


def ours(settings: Settings, folder: Path, precision: Precision = "fp32") -> Ready:
    """The objective as `mmspeech pretrain` runs it, batches as its sampler makes them."""
    run = recipe(settings, precision)
    return _ready(settings, run, _objective(settings, run), bucketed(settings, run, folder))


def literal(settings: Settings, folder: Path, precision: Precision = "fp32") -> Ready:
    """The same utterances in random order, cut into as many batches of about as many frames."""
    run = recipe(settings, precision)
    groups = bucketed(settings, run, folder)
    utterances = [utterance for group in groups for utterance in group]
    order = seeds.numpy_rng(settings.seed, "shuffle").permutation(len(utterances))
    frames = np.cumsum([utterances[i].frames for i in order])
    places = np.minimum((frames - 1) * len(groups) // frames[-1], len(groups) - 1)
    shuffled = [[utterances[i] for i in order[places == place]] for place in range(len(groups))]
    return _ready(settings, run, LiteralUHubert(_objective(settings, run)), [group for group in shuffled if group])


def data2vec(settings: Settings, folder: Path) -> Ready:
    """AV-data2vec at the size of the recipe."""
    run = recipe(settings, "fp32")
    torch.manual_seed(settings.seed)
    encoder = AVEncoder(dataclasses.replace(run.model, fusion="sum"))
    otherwise = {"audio": (0.5, 0.5), "video": (0.5, 0.5)}  # of the half that keeps one stream: MODALITY_DROPOUT
    config = AVData2vecConfig(student=ModalitySchedule(all=(0.5, 0.5), otherwise=otherwise), mask=MASK)
    module = AVData2vec(encoder, config, seed=settings.seed).to(settings.device)
    held = sum(one.numel() * one.element_size() for one in [*module.teacher.parameters(), *module.teacher.buffers()])
    ready = _beside(settings, run, module, folder)
    return dataclasses.replace(ready, facts={"MiB are the teacher's weights and buffers": held / 2**20})


def fused_uhubert(settings: Settings, folder: Path) -> Ready:
    """u-HuBERT with AV-data2vec's mask on the fused frames."""
    run = recipe(settings, "fp32")
    changes = {"masking": "feature", "feature_mask": MASK, "modality_dropout": MODALITY_DROPOUT}
    run = run._replace(objective=dataclasses.replace(run.objective, **changes))  # type: ignore[arg-type]
    return _beside(settings, run, _objective(settings, run), folder)


def _beside(settings: Settings, run: Run, module: nn.Module, folder: Path) -> Ready:
    """Answers with the kept streams and masks of all its utterances, in this pass and the next."""
    groups = bucketed(settings, run, folder)
    ready = _ready(settings, run, module, groups)

    def answer() -> dict[str, float]:
        found: dict[str, float] = {}
        for number, (place, group) in itertools.product((0, 1), enumerate(groups)):
            batch = make_batch(settings, run, group)
            drawn = module.draw(dataclasses.replace(batch, passes=[number] * len(batch)), 0)  # type: ignore[operator]
            masked = drawn.drawn["mask/fused"]
            for name, kept in [*drawn.present.items(), ("masked", masked)]:
                found[f"{name} of batch {place}, pass {number}"] = float(zlib.crc32(kept.numpy().tobytes()))
        return found

    return dataclasses.replace(ready, answer=answer)


class LiteralUHubert(nn.Module):
    """u-HuBERT written down as the equations stand, with the weights of `objective`."""

    def __init__(self, objective: UHubert) -> None:
        super().__init__()
        self.objective = objective

    def draw(self, batch: Batch, update: int) -> Batch:
        return self.objective.draw(batch, update)

    def forward(self, batch: Batch, update: int) -> Loss:
        objective, encoder = self.objective, self.objective.encoder
        audio, video = batch.streams["audio"], batch.streams["video"]
        size = audio.shape[1]
        audio = torch.where(batch.drawn["mask/audio"][..., None], objective.mask_embeddings["audio"], audio)
        video = video.flatten(0, 1)[batch.drawn["source/video"]].view_as(video)
        feats = {
            "audio": encoder.frontends["audio"](audio, batch.lengths["audio"]),
            "video": self._see(video, valid_frames(batch.lengths["video"].to(video.device), size)),
        }
        feats = {name: ScaleGradient.apply(feat, encoder.config.frontend_grad_scale) for name, feat in feats.items()}
        present = torch.stack([batch.present[name] for name in STREAMS], dim=1).to(audio.device)
        fused, before_norm = encoder.fusion(feats, present)
        lengths = torch.stack([batch.lengths[name] * batch.present[name] for name in STREAMS]).amax(0)
        valid = valid_frames(lengths.to(audio.device), size)
        x, *_ = encoder.transformer(encoder.input_dropout(fused), valid)
        x = objective.project(x).flatten(0, 1)  # (N * T, 256)
        config, parts = objective.config, {}
        for part, weight in (("masked", config.masked_weight), ("unmasked", config.unmasked_weight)):
            if f"predicted/{part}" not in batch.drawn:  # BASE predicts masked frames alone
                continue
            places = batch.drawn[f"predicted/{part}"]
            hidden, codebook = x[places].float()[:, None], objective.codebook.float()[None]
            logits = F.cosine_similarity(hidden, codebook, dim=-1) / config.temperature  # by way of (P, K, 256)
            units = batch.targets["units"].flatten()[places]
            parts[part] = (F.cross_entropy(logits, units, reduction="sum"), weight)
        power = before_norm.float().square().mean(-1)
        parts["feature_penalty"] = (power.masked_fill(~valid, 0.0).sum(), config.feature_penalty)
        return Loss(parts=parts)

    def _see(self, frames: Tensor, valid: Tensor) -> Tensor:
        """(N, T, H, W) uint8 -> (N, T, D): every frame of every row."""
        frontend: Any = self.objective.encoder.frontends["video"]
        resnet = frontend.resnet
        n, t = frames.shape[:2]
        x = (frames.float() / 255 - LIP_MEAN) / LIP_STD
        x = x.masked_fill(~valid[:, :, None, None], 0.0)[:, None]  # (N, 1, T, H, W)
        x = F.conv3d(x, resnet.stem.weight[:, None], stride=(1, 2, 2), padding=(2, 3, 3))  # (N, C, T, H', W')
        x = x.transpose(1, 2).flatten(0, 1)  # (N * T, C, H', W')
        x = F.max_pool2d(resnet.stem_relu(resnet.stem_norm(x)), 3, 2, 1)
        return frontend.project(resnet.stages(x).mean(dim=(2, 3))).view(n, t, -1)


def difference(a: dict[str, float], b: dict[str, float]) -> tuple[float, float]:
    """The greatest relative one of a part of the loss, without dropout and with batch norm's stored statistics."""
    return max(abs(a[part] - b[part]) / max(abs(a[part]), 1e-6) for part in a), 1e-3


def difference_in_bf16(a: dict[str, float], b: dict[str, float]) -> tuple[float, float]:
    """Likewise; numbers of eight bits round apart."""
    return difference(a, b)[0], 2e-2


def rows() -> dict[str, Row]:
    """The step in single precision, and with both sides under bf16 autocast."""
    units, name = ("s of speech/s", "frames/s"), "literal step: all rows, padding, frames x classes x 256"
    half = functools.partial(ours, precision="bf16"), functools.partial(literal, precision="bf16")
    return {
        "training": Row("u-HuBERT training step", ("pretraining.uhubert", ours), {name: literal}, units, difference),
        "training-bf16": Row(
            "u-HuBERT training step, bf16", ("pretraining.uhubert", half[0]), {name: half[1]}, units, difference_in_bf16
        ),
        "data2vec": Row(
            "AV-data2vec training step", ("pretraining.avdata2vec", data2vec),
            {"pretraining.uhubert, the same draws": fused_uhubert}, units, difference, is_cost=True,
        ),
    }  # fmt: skip


def recipe(settings: Settings, precision: Precision) -> Run:
    """What a recipe says about the size that is measured."""
    name, changes = RECIPES[settings.size]
    changes = [*changes, f"training.precision={precision}"]
    tree = configs.read(CONF / name, changes + (["data.max_batch_s=16"] if settings.quick else []))
    return Run(
        configs.build(tree["model"], AVEncoderConfig, CONF / name),
        configs.build(tree["objective"], UHubertConfig, CONF / name),
        configs.build(tree["data"], DataConfig, CONF / name),
        configs.build(tree["training"], TrainingConfig, CONF / name),
    )


def bucketed(settings: Settings, run: Run, folder: Path) -> list[list[Utterance]]:
    """A few batches as the loader's sampler makes them of a thousand utterances."""
    rng = seeds.numpy_rng(settings.seed, "utterances")
    with writing_cuts(folder / "cuts.jsonl.gz") as writer:
        for i, seconds in enumerate(draw_durations(rng, 1000)):
            writer.write(MonoCut(f"u{i:04d}", start=0, duration=float(seconds), channel=0))
    data = dataclasses.replace(run.data, cuts=[folder / "cuts.jsonl.gz"])
    cuts = data.mixture(settings.seed).one_pass(0)
    sampler = make_sampler(cuts, data, seconds=data.max_batch_s, train=True, seed=settings.seed)
    wanted = 2 if settings.quick else 4
    return [[Utterance(cut.id, round(cut.duration * 25)) for cut in cuts] for cuts in itertools.islice(sampler, wanted)]


def make_batch(settings: Settings, run: Run, utterances: Sequence[Utterance]) -> Batch:
    """Random sound, lips and units; an utterance is the same in whatever batch it is."""
    crop = run.model.streams["video"].get("crop", 88)
    items = []
    for name, frames in utterances:
        rng = seeds.numpy_rng(settings.seed, "item", name)
        streams: dict[str, np.ndarray] = {
            "audio": rng.standard_normal((frames, 104), dtype=np.float32),
            "video": rng.integers(0, 256, (frames, crop, crop), dtype=np.uint8),
        }
        items.append(Item(name, streams, rng.integers(0, run.objective.num_units, frames), None, ""))
    return collate(items, STREAMS, [0] * len(items))


def _objective(settings: Settings, run: Run) -> UHubert:
    torch.manual_seed(settings.seed)
    return UHubert(AVEncoder(run.model), run.objective, seed=settings.seed).to(settings.device)


def _ready(settings: Settings, run: Run, module: Any, groups: list[list[Utterance]]) -> Ready:
    config = run.training
    model = parallel.Dispatch(module)
    optimizer = optimizers.build(
        model, config.optimizer, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    batches = [make_batch(settings, run, group) for group in groups]
    everyone = sorted((utterance for group in groups for utterance in group), key=lambda utterance: utterance.id)

    def steps(number: int) -> None:
        for i, batch in enumerate(batches):
            update = number * len(batches) + i
            fresh = dataclasses.replace(batch, passes=[number] * len(batch), drawn={}, counts={})
            group = [("main", module.draw(fresh, update).to(settings.device))]
            optimizers.set_rates(optimizer, config.lr, update)
            counts, precision = agree(model, group).counts, config.precision
            clip = config.clip_norm
            done = train_step(model, group, counts, optimizer, update=update, clip_norm=clip, precision=precision)
            if hasattr(module, "after_step"):
                module.after_step(update, done.skipped)

    @torch.no_grad()
    def answer() -> dict[str, float]:
        module.eval()
        drawn = module.draw(make_batch(settings, run, everyone[:4]), 0).to(settings.device)
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # else the two convolutions round apart
        with exact, parallel.autocast(torch.device(settings.device), config.precision):
            parts = {part: float(total) for part, (total, _) in module(drawn, 0).parts.items()}
        module.train()
        return parts

    frames = sum(utterance.frames for utterance in everyone)
    return Ready(steps, answer, {"frames": frames, "speech_s": frames / 25})
