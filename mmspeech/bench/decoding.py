"""Beam search over a batch against peers that use the same decoder by the same rules.

    one at a time        a loop over utterances and hypotheses; each keeps its own keys and values and copies them where
                         it branches, and it stops as early as ours does
    hypotheses as rows   N x B rows of a batch, as toolkits commonly have it: every hypothesis has its own copy of the
                         frames' keys and values and of its tokens', and all are copied at every change of places

None is made slow on purpose. Rows of BASE measure four utterances of 4 s, beam 10, 26 tokens each, whatever --size
says (but tiny): the search alone, and the encoder of sound and lips with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmspeech import seeds
from mmspeech.batch import Batch
from mmspeech.bench.measure import Ready, Row, Settings, draw_durations
from mmspeech.blocks.decoder_layer import KeyValues, Past
from mmspeech.decoding.beam import BeamConfig, beam_search
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.models.decoder import END, PAD, Decoder, DecoderConfig, DecoderState

DECODERS = {
    "tiny": DecoderConfig(num_layers=1, dim=64, ffn_dim=256, heads=4),
    "small": DecoderConfig(num_layers=2, dim=256, ffn_dim=1024, heads=4),  # recipes/lrs3/conf/uhubert/finetune/synth-av
    "base": DecoderConfig(),
}
TINY_ENCODER = AVEncoderConfig(
    streams={
        "audio": {"frontend": "linear", "size": 104},
        "video": {"frontend": "lips", "crop": 20, "stem": 4, "widths": [4, 4, 8, 8], "blocks": 1},
    },
    num_layers=1,
    dim=64,
    ffn_dim=256,
    heads=4,
    position_kernel=7,
    position_groups=4,
)
VOCAB = 1000
TOKENS_PER_FRAME = 0.15  # at most: 3.75 a second, as English has of such a vocabulary

Best = list[tuple[list[int], float]]  # of each utterance: tokens and score


class Task(NamedTuple):
    """What both search."""

    decoder: Any  # a Decoder, or what stands for one
    memory: Tensor  # (N, T, D)
    lengths: Tensor  # (N,)
    config: BeamConfig


def ours(settings: Settings, folder: Path) -> Ready:
    """All utterances and all hypotheses at once."""
    return _searching(make_task(settings), _search)


def one_by_one(settings: Settings, folder: Path) -> Ready:
    """A loop over utterances, tokens and hypotheses."""
    return _searching(make_task(settings), _search_each)


def ours_base(settings: Settings, folder: Path) -> Ready:
    return _searching(make_base_task(settings), _search)


def one_by_one_base(settings: Settings, folder: Path) -> Ready:
    return _searching(make_base_task(settings), _search_each)


def rows_base(settings: Settings, folder: Path) -> Ready:
    """Our search of a decoder that copies as much as one does whose hypotheses are rows of its batch."""
    task = make_base_task(settings)
    return _searching(task._replace(decoder=RowsDecoder(task.decoder)), _search)


def recognition(settings: Settings, folder: Path) -> Ready:
    """Sound and lips of all clips -> tokens."""
    return _recognizing(settings, lambda objective, batch, config: objective.generate(batch, config))


def recognition_one_by_one(settings: Settings, folder: Path) -> Ready:
    """A loop over clips, each encoded alone, its hypotheses one at a time."""

    def run(objective: Seq2Seq, batch: Batch, config: BeamConfig) -> list:
        frames = [objective.encoded(clip) for clip in _clips(batch)]
        limits = [int(config.max_length(one.lengths)) for one in frames]
        return [
            search_one(Task(objective.decoder, one.frames, one.lengths, config), one.frames, limit)
            for one, limit in zip(frames, limits, strict=True)
        ]

    return _recognizing(settings, run)


class RowsDecoder:
    """The decoder, whose hypotheses are rows."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.vocab_size = decoder, decoder.vocab_size

    def start(self, memory: Tensor, memory_lengths: Tensor) -> "RowsState":
        return RowsState(self.decoder.start(memory, memory_lengths), 1)

    def step(self, tokens: Tensor, state: "RowsState") -> Tensor:
        logits = self.decoder.step(tokens.reshape(-1, 1), state.rows)  # (n * B, 1, V)
        return logits.view(*tokens.shape, -1)


@dataclass
class RowsState:
    """What it remembers: n * B rows of one hypothesis each."""

    rows: DecoderState
    width: int  # B

    def choose(self, hypotheses: Tensor) -> None:
        first = torch.arange(len(hypotheses), device=hypotheses.device)[:, None] * self.width
        self.rows.keep((first + hypotheses).flatten())
        self.width = hypotheses.shape[1]

    def keep(self, utterances: Tensor) -> None:
        own = torch.arange(self.width, device=utterances.device)
        self.rows.keep((utterances[:, None] * self.width + own).flatten())


@dataclass
class Hypothesis:
    """One that goes on, with a cache of its own."""

    total: float
    tokens: list[int]
    state: DecoderState


@torch.inference_mode()
def search_one(task: Task, memory: Tensor, max_length: int) -> tuple[list[int], float]:
    """The best hypothesis for one utterance, memory (1, T, D)."""
    decoder, beam, penalty = task.decoder, task.config.beam, task.config.length_penalty
    live = [Hypothesis(0.0, [], decoder.start(memory, torch.tensor([memory.shape[1]], device=memory.device)))]
    best_score, best_tokens = float("-inf"), list[int]()
    for step in range(max_length + 1):
        candidates = []
        for hypothesis in live:
            last = hypothesis.tokens[-1] if hypothesis.tokens else END
            logits = decoder.step(torch.tensor([[last]], device=memory.device), hypothesis.state)[0, 0]
            gains = logits.float().log_softmax(-1)
            gains[PAD] = float("-inf")
            if step < task.config.min_length:
                gains[END] = float("-inf")
            if step == max_length:
                values, tokens = [float(gains[END])], [END]
            else:
                values, tokens = (part.tolist() for part in gains.topk(2 * beam))
            for value, token in zip(values, tokens, strict=True):
                candidates.append((hypothesis.total + value, token, hypothesis))
        candidates = sorted(candidates, key=lambda candidate: candidate[0], reverse=True)[: 2 * beam]
        for total, token, parent in candidates[:beam]:
            score = total / (step + 1) ** penalty
            if token == END and score > best_score:
                best_score, best_tokens = score, parent.tokens
        going = [candidate for candidate in candidates if candidate[1] != END][:beam]
        live = [Hypothesis(total, [*parent.tokens, token], branch(parent.state)) for total, token, parent in going]
        if not live or best_score >= live[0].total / (max_length + 1) ** penalty:  # out of reach for all that go on
            break
    return best_tokens, best_score


def branch(state: DecoderState) -> DecoderState:
    """A copy that can go on by itself; the encoder's keys and values are shared."""
    copies = []
    for past in state.past:
        copy = Past()
        copy.size, copy.memory = past.size, past.memory
        copy.room = KeyValues(past.room.keys.clone(), past.room.values.clone()) if past.room else None
        copies.append(copy)
    return DecoderState(state.memory, state.memory_valid, copies, state.ancestors)


def difference(a: Best, b: Best) -> tuple[float, float]:
    """Share of utterances with other tokens; none may have any, but for equally good ones."""
    wrong = [ours[0] != theirs[0] and abs(ours[1] - theirs[1]) > 1e-3 for ours, theirs in zip(a, b, strict=True)]
    return sum(wrong) / len(wrong), 0.0


def rows() -> dict[str, Row]:
    each, units = "one utterance, one hypothesis at a time, own caches", ("real-time factor",)
    mine = "decoding.beam, batched and cached"
    base = {each: one_by_one_base, "hypotheses as rows, caches copied": rows_base}
    whole = {"one clip, one hypothesis at a time": recognition_one_by_one}
    return {
        "decoding": Row("beam search", (mine, ours), {each: one_by_one}, units, difference),
        "decoding-base": Row("beam search, BASE decoder", (mine, ours_base), base, units, difference),
        "recognition-base": Row("encoder and search, BASE", (mine, recognition), whole, units, difference),
    }


def make_task(settings: Settings) -> Task:
    """A decoder with random weights and random frames of ragged lengths."""
    torch.manual_seed(settings.seed)
    config = DECODERS[settings.size]
    decoder = opinionated(Decoder(VOCAB, config.dim, config)).eval()
    durations = draw_durations(seeds.numpy_rng(settings.seed, "searched"), 4 if settings.quick else 16)
    lengths = torch.from_numpy(durations * 25).round().long()
    memory = torch.randn(len(lengths), int(lengths.max()), config.dim)
    beam = BeamConfig(beam=4 if settings.quick else 10, max_length_ratio=TOKENS_PER_FRAME)
    return Task(decoder.to(settings.device), memory.to(settings.device), lengths.to(settings.device), beam)


def make_base_task(settings: Settings) -> Task:
    """The same at a size that the public model has, with texts of a given length."""
    torch.manual_seed(settings.seed)
    config = DECODERS["tiny" if settings.size == "tiny" else "base"]
    decoder = opinionated(Decoder(VOCAB, config.dim, config)).eval()
    lengths, beam = _base_work(settings)
    memory = torch.randn(len(lengths), int(lengths.max()), config.dim)
    return Task(decoder.to(settings.device), memory.to(settings.device), lengths.to(settings.device), beam)


def opinionated(decoder: Decoder) -> Decoder:
    """Random weights, sharp enough that hypotheses differ."""
    with torch.no_grad():
        decoder.embedding.weight.mul_(3)
    return decoder


def _base_work(settings: Settings) -> tuple[Tensor, BeamConfig]:
    """Frames of each utterance, and a search that ends at 26 tokens, the end symbol counted."""
    tokens = 5 if settings.quick else 25
    config = BeamConfig(
        beam=4 if settings.quick else 10, min_length=tokens, max_length_ratio=0.0, max_length_extra=tokens
    )
    return torch.full((2,), 25) if settings.quick else torch.full((4,), 100), config


def _search(task: Task) -> Best:
    return [(best.ids, best.score) for best, *_ in beam_search(*task)]


def _search_each(task: Task) -> Best:
    limits = task.config.max_length(task.lengths).tolist()
    utterances = zip(task.memory, task.lengths.tolist(), limits, strict=True)
    return [search_one(task, memory[None, :length], limit) for memory, length, limit in utterances]


def _searching(task: Task, search: Callable[[Task], Best]) -> Ready:
    return Ready(lambda number: search(task), lambda: search(task), {"speech_s": int(task.lengths.sum()) / 25})


def _recognizing(settings: Settings, run: Callable[[Seq2Seq, Batch, BeamConfig], Any]) -> Ready:
    torch.manual_seed(settings.seed)
    tiny = settings.size == "tiny"
    encoder = AVEncoder(TINY_ENCODER if tiny else AVEncoderConfig())
    objective = Seq2Seq(encoder, Seq2SeqConfig(decoder=DECODERS["tiny" if tiny else "base"]), VOCAB)
    opinionated(objective.decoder)
    objective.eval().to(settings.device)
    lengths, config = _base_work(settings)
    size = (len(lengths), int(lengths.max()))
    crop: tuple[int, ...] = encoder.frontends["video"].item_shape  # type: ignore[assignment]
    batch = Batch(
        ids=[str(number) for number in range(len(lengths))],
        streams={"audio": torch.randn(*size, 104), "video": torch.randint(0, 256, (*size, *crop), dtype=torch.uint8)},
        lengths={"audio": lengths, "video": lengths},
    ).to(settings.device)

    def found() -> Best:
        best = run(objective, batch, config)
        return [one if isinstance(one, tuple) else (one[0].ids, one[0].score) for one in best]

    return Ready(lambda number: found(), found, {"speech_s": int(lengths.sum()) / 25})


def _clips(batch: Batch) -> list[Batch]:
    """Each item of a batch whose items are equally long, alone."""
    return [
        Batch(
            ids=[name],
            streams={stream: values[i : i + 1] for stream, values in batch.streams.items()},
            lengths={stream: lengths[i : i + 1] for stream, lengths in batch.lengths.items()},
        )
        for i, name in enumerate(batch.ids)
    ]
