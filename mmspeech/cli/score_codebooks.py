"""Which codebook suits which input: PNMI of every kind of features under every codebook, and t-SNE of the features.

    cuts, read once ──▶ encoder with all streams, and with each alone ──▶ frames of each subset, on disk
    codebooks: of each subset's frames, and of all together ──▶ units of each subset's frames ──▶ PNMI against phones
    a few hundred frames, under each subset ──▶ t-SNE

u-HuBERT, Sec. 4.2: Table 1 and Figure 3. Frames lie on disk while they are needed: memory holds one codebook's sample.
"""

import functools
import hashlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse.cut import Cut
from sklearn.manifold import TSNE

from mmspeech import files
from mmspeech.cli.extract_features import PART_CUTS, by_length, read_ahead, unpad, wanted_streams
from mmspeech.console import progress
from mmspeech.data import audio, cutfiles, units
from mmspeech.data.audio import FRAMES_PER_S
from mmspeech.data.reading import Reading, collate, read_item
from mmspeech.errors import BadItem, UserError
from mmspeech.models.av_encoder import AVEncoder
from mmspeech.pretraining import kmeans
from mmspeech.scoring import bootstrap, pnmi
from mmspeech.scoring.codebooks import UNION, Codebooks, Points
from mmspeech.seeds import numpy_rng, stable_hash

Subsets = Mapping[str, Sequence[str]]  # name as in audio+video -> streams
# A cut, what each frame is called (T,), "" where it is not asked for, and the frames under each subset (M, T, D).
Shown = tuple[Cut, np.ndarray, np.ndarray]


class Drawn(NamedTuple):
    """A frame that was drawn."""

    cut: str
    frame: int
    name: str
    values: np.ndarray  # (M, D) float32


def subsets_of(encoder: AVEncoder) -> dict[str, list[str]]:
    """All streams of an encoder together, then each alone. Raises UserError if it has one only."""
    streams = list(wanted_streams(encoder, None))
    if len(streams) < 2:
        raise UserError(
            f"this encoder reads {streams[0]} alone; codebooks are compared for one with two streams or more"
        )
    return {"+".join(streams): streams} | {name: [name] for name in streams}


def streams_of(encoder: AVEncoder, subsets: Subsets) -> Mapping[str, Mapping[str, Any]]:
    """How the streams that some subset has are read."""
    return wanted_streams(encoder, [name for name in encoder.inputs if any(name in one for one in subsets.values())])


def encode_subsets(
    encoder: AVEncoder, layer: int, subsets: Subsets, device: torch.device
) -> Callable[[Sequence[Cut], Sequence[Any]], list[dict[str, np.ndarray]]]:
    """A function from cuts and what was read of them to their frames under each subset: name -> (T, D) float16."""
    if not 0 <= layer <= encoder.config.num_layers:
        raise UserError(f"--layer {layer}: the encoder has 0 (fused features) to {encoder.config.num_layers}; take one")
    encoder = encoder.to(device).eval()
    streams = list(streams_of(encoder, subsets))

    @torch.inference_mode()
    def compute(cuts: Sequence[Cut], items: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        batch = collate(items, streams, [0] * len(items))
        inputs = {name: stream.to(device, non_blocking=True) for name, stream in batch.streams.items()}
        found: list[dict[str, np.ndarray]] = [{} for _ in cuts]
        for name, subset in subsets.items():
            encoded = encoder.encode({one: inputs[one] for one in subset}, batch.lengths, layers=(layer,))
            for own, frames in zip(found, unpad(cuts, encoded.layers[0], encoded.lengths), strict=True):
                own[name] = frames
        return found

    return compute


def store_frames(
    paths: Sequence[Path],
    encoder: AVEncoder,
    layer: int,
    subsets: Subsets,
    folder: Path,
    name: str,
    rejects: files.Rejects,
    *,
    device: torch.device,
    batch_s: float,
    jobs: int,
) -> Path:
    """Write the cuts that have all streams, as far as these go, with the frames of each subset; returns their file.

    Raises UserError if no cut has them.
    """
    reading = Reading(streams=streams_of(encoder, subsets))
    compute = encode_subsets(encoder, layer, subsets, device)

    def read(cut: Cut) -> Any:
        item = read_item(cut, reading)
        if missing := [stream for stream in reading.streams if stream not in item.streams]:
            raise BadItem(f"{cut.id}: has no {', no '.join(missing)}; the same speech is needed in every stream")
        return item

    out, count = folder / f"{name}.jsonl.gz", 0
    with cutfiles.writing_cuts(out) as writer, ThreadPoolExecutor(jobs) as pool, ExitStack() as stack:
        shards = {
            subset: stack.enter_context(units.RawShardsWriter(folder / f"{name}-{i}.bin"))
            for i, subset in enumerate(subsets)
        }
        cuts = iter(progress(cutfiles.open_cuts(paths), f"{name}: {len(subsets)} kinds of frames"))
        while some := list(itertools.islice(cuts, PART_CUTS)):
            bad: list[tuple[str, str]] = []
            for batch, items in read_ahead(by_length(some, batch_s), read, pool, bad):
                for cut, frames in zip(batch, compute(batch, items), strict=True):
                    if not all(np.isfinite(values).all() for values in frames.values()):
                        reason = "its frames are not finite in half precision; take another layer"
                        bad.append((cut.id, f"{cut.id}: {reason}"))
                        continue
                    # Phones at a fixed rate may end before the sound: the same frames are needed under each subset.
                    if (shared := min(map(len, frames.values()))) < audio.num_frames(cut):
                        cut = replace(cut, duration=shared / FRAMES_PER_S)
                    for subset, values in frames.items():
                        cut = cut.with_custom(field(subset), shards[subset].store(cut, values[:shared]))
                    writer.write(cut)
                    count += 1
            for item, reason in bad:
                rejects.add(item, reason)
    if not count:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no cut has all of {', '.join(reading.streams)}; see the reasons above")
    return out


def field(subset: str) -> str:
    """Where a cut carries the frames of a subset."""
    return f"frames_{subset.replace('+', '_')}"


def learn(cuts: Path, subsets: Subsets, clusters: int, *, seed: int, starts: int) -> dict[str, kmeans.Codebook]:
    """The codebook of all kinds of frames together, and of each."""

    def together() -> Iterator[np.ndarray]:
        # Side by side, not one kind after the other: mini-batches are mixed from neighbours.
        for some in zip(*(units.stream_frames(cuts, field(subset)) for subset in subsets), strict=True):
            yield from some

    streams: dict[str, Callable[[], Iterator[np.ndarray]]] = {UNION: together}
    streams |= {subset: functools.partial(units.stream_frames, cuts, field(subset)) for subset in subsets}
    return {name: kmeans.fit(stream, clusters, seed=seed, starts=starts) for name, stream in streams.items()}


def aligned(cuts: Path, subsets: Subsets) -> Iterator[Shown]:
    """Cuts with a phone alignment; frames are called by their phone, "" where there is none."""
    for cut in cutfiles.open_cuts(cuts):
        alignments = [supervision.alignment or {} for supervision in cut.supervisions]
        phones = [item for alignment in alignments for item in alignment.get("phone", [])]
        if phones:
            frames = np.stack([units.read_features(cut, field(name)) for name in subsets])
            intervals = [(item.start, item.end, item.symbol) for item in phones]
            found = pnmi.phones_of_frames(intervals, frames.shape[1], FRAMES_PER_S)
            yield cut, np.array([phone or "" for phone in found]), frames


def named_frames(cuts: Path, subsets: Subsets) -> Iterator[Shown]:
    """All cuts; frames are called by their phone where they have one, else `-`."""
    for cut in cutfiles.open_cuts(cuts):
        frames = np.stack([units.read_features(cut, field(name)) for name in subsets])
        alignments = [supervision.alignment or {} for supervision in cut.supervisions]
        intervals = [(p.start, p.end, p.symbol) for alignment in alignments for p in alignment.get("phone", [])]
        found = (
            pnmi.phones_of_frames(intervals, frames.shape[1], FRAMES_PER_S) if intervals else [None] * frames.shape[1]
        )
        yield cut, np.array([phone or "-" for phone in found]), frames


def corpora_of(cuts: Path) -> list[str]:
    """The corpora that cuts say they are of."""
    return sorted({str((cut.custom or {}).get("corpus", "")) for cut in cutfiles.open_cuts(cuts)})


def measure(
    cuts: Path, codebooks: Mapping[str, kmeans.Codebook], subsets: Subsets, device: torch.device, about: dict[str, Any]
) -> tuple[Codebooks, np.ndarray]:
    """PNMI of every kind of frames under every codebook, and the same in resamples (codebooks, features, R).

    Raises UserError if no cut has phones.
    """
    centroids = {name: torch.from_numpy(book.centroids).to(device) for name, book in codebooks.items()}
    known: dict[str, int] = {}
    ids: list[str] = []
    corpora: set[str] = set()
    phones: list[np.ndarray] = []
    found: dict[tuple[str, str], list[np.ndarray]] = {(book, name): [] for book in codebooks for name in subsets}
    for cut, names, frames in aligned(cuts, subsets):
        has_phone = names != ""
        if not has_phone.any():
            continue
        ids.append(cut.id)
        corpora.add(str((cut.custom or {}).get("corpus", "")))
        phones.append(np.array([known.setdefault(name, len(known)) for name in names[has_phone]], np.int32))
        on_device = torch.from_numpy(frames).to(device).flatten(0, 1)  # (M * T, D)
        for book, centres in centroids.items():
            chosen = kmeans.assign(on_device, centres).view(len(subsets), -1).cpu().numpy()
            for name, values in zip(subsets, chosen, strict=True):
                found[book, name].append(values[has_phone].astype(np.int32))
    if not ids:
        raise UserError(f"{about['cuts']}: no cut has a phone alignment; give aligned cuts (prepare lrs3 --alignments)")
    order = sorted(range(len(ids)), key=ids.__getitem__)  # paired draws need one, whatever the batches were
    ids, phones = [ids[i] for i in order], [phones[i] for i in order]
    found = {pair: [chosen[i] for i in order] for pair, chosen in found.items()}
    seed, resamples = about["seed"], about["resamples"]
    values, drawn = [], []
    for own in found.values():
        counts = pnmi.JointCounts()
        counts.add(np.concatenate(own), [str(phone) for phone in np.concatenate(phones)])
        values.append(100 * counts.agreement().pnmi)
        found_again = 100 * pnmi.resampled(phones, own, seed=seed, resamples=resamples)
        # Fewer different frames look more informative: resamples lie above the figure by about as much as it lies
        # above the truth. Only their spread is used.
        drawn.append(found_again - np.nanmean(found_again) + values[-1])
    shape = (len(codebooks), len(subsets))
    resampled = np.stack(drawn).reshape(*shape, -1)
    tail = 50 * (1 - bootstrap.LEVEL)
    low, high = np.nanpercentile(resampled, [tail, 100 - tail], axis=-1)
    return Codebooks(
        label=about["label"],
        encoder=about["encoder"],
        corpus="+".join(sorted(corpora)),
        codebooks=list(codebooks),
        features=list(subsets),
        pnmi=np.reshape(values, shape).tolist(),
        low=np.maximum(low, 0.0).tolist(),
        high=high.tolist(),
        clusters=about["clusters"],
        layer=about["layer"],
        frames=sum(map(len, phones)),
        phones=len(known),
        utterances=len(ids),
        utterances_hash=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        seed=seed,
        interval=f"{100 * bootstrap.LEVEL:g} %, {resamples} resamples of utterances, seed {seed}",
    ), resampled


def draw_frames(cuts: Iterable[Shown], number: int, *, seed: int) -> list[Drawn]:
    """`number` frames that have a name, over all cuts, each as likely as any other; by cut and time."""
    chosen: list[tuple[float, str, int, str, np.ndarray]] = []  # a heap: those with the smallest keys stay
    for cut, names, frames in cuts:
        keys = numpy_rng(seed, "t-SNE", cut.id).random(len(names))
        taken = [frame for frame in np.flatnonzero(names != "") if len(chosen) < number or keys[frame] < -chosen[0][0]]
        for frame in taken:
            entry = (-keys[frame], cut.id, int(frame), str(names[frame]), frames[:, frame].astype(np.float32))
            if len(chosen) < number:
                heapq.heappush(chosen, entry)
            else:
                heapq.heappushpop(chosen, entry)
    return [Drawn(*entry[1:]) for entry in sorted(chosen, key=lambda entry: entry[1:3])]


def project(drawn: Sequence[Drawn], subsets: Subsets, *, seed: int) -> Points:
    """The frames under each subset in two dimensions by t-SNE."""
    points = np.concatenate(np.stack([one.values for one in drawn], axis=1))  # (M * number, D)
    model = TSNE(
        perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=stable_hash(seed, "t-SNE") % 2**32
    )
    placed = model.fit_transform(points)
    return Points(
        x=placed[:, 0].round(3).tolist(),
        y=placed[:, 1].round(3).tolist(),
        features=[subset for subset in subsets for _ in drawn],
        phones=[one.name for _ in subsets for one in drawn],
    )
