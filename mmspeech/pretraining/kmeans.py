"""Hidden units: mini-batch k-means over a stream of frames, in bounded memory (HuBERT Sec. III-B).

    stream -> a uniform sample of at most `sample_frames` -> best k-means++ start -> mini-batches until no improvement
    stream longer than the sample? -> passes over all of it, each mini-batch mixed from a window of the stream

What fits in the sample is clustered exactly as in the public AV-HuBERT recipe (scikit-learn's MiniBatchKMeans, batch
10000, 100 iterations, 20 starts, tolerance 0, no reassignment, 100 batches without improvement).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from mmspeech.errors import UserError
from mmspeech.files import replacing, write_json
from mmspeech.seeds import stable_hash

BATCH_FRAMES, MAX_ITERATIONS, NO_IMPROVEMENT = 10_000, 100, 100  # as the public learn_kmeans.py
WINDOW_BATCHES = 8  # of the stream that a mini-batch is mixed from: neighbours on disk are of one speaker


@dataclass
class Codebook:
    """Cluster centres and how they were found."""

    centroids: np.ndarray  # (K, C) float32
    facts: dict[str, float] = field(default_factory=dict)  # written beside them: frames, inertia per frame, passes

    def save(self, folder: Path) -> None:
        """Write codebook.safetensors (`centroids`) and codebook.json."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "codebook.safetensors") as temporary:
            save_file({"centroids": np.ascontiguousarray(self.centroids, np.float32)}, temporary)
        write_json(folder / "codebook.json", self.facts)

    @classmethod
    def load(cls, folder: Path) -> "Codebook":
        """Raises UserError if `folder` holds no codebook."""
        file = folder / "codebook.safetensors"
        try:
            centroids = load_file(file)["centroids"]
        except (FileNotFoundError, KeyError, SafetensorError) as error:
            raise UserError(f"{file}: expected a codebook ({error}); give a folder of `mmspeech cluster fit`") from None
        facts = folder / "codebook.json"
        return cls(centroids, json.loads(facts.read_text()) if facts.exists() else {})


def fit(
    stream: Callable[[], Iterable[np.ndarray]],
    clusters: int,
    *,
    seed: int = 0,
    starts: int = 20,
    sample_frames: int = 200_000,
    passes: int = 3,
) -> Codebook:
    """Learn a codebook.

    Args:
        stream: called once per pass; yields float32 arrays (n, C) of any n.
        clusters: size K of the codebook.
        starts: choices of first centres by k-means++, of which the best is kept; most of the time for small corpora.
        sample_frames: held in memory: 600 MB for 768 values a frame.
        passes: over a stream that is longer than the sample.

    Raises UserError if there are fewer frames than clusters.
    """
    sample, total = _reservoir(stream(), sample_frames, np.random.default_rng(stable_hash(seed, "reservoir")))
    if total < clusters:
        raise UserError(f"{total} frames for {clusters} clusters: a frame per cluster is the least; lower --clusters")
    if not np.isfinite(sample).all():
        raise UserError("frames to cluster: expected finite values, found others; extract them again")
    model = MiniBatchKMeans(
        clusters,
        init="k-means++",
        n_init=starts,
        batch_size=BATCH_FRAMES,
        max_iter=MAX_ITERATIONS,
        max_no_improvement=NO_IMPROVEMENT,
        tol=0.0,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=stable_hash(seed, "centres") % 2**32,
    ).fit(sample)
    refine = passes if total > len(sample) else 0
    rng = np.random.default_rng(stable_hash(seed, "mixing"))
    for _ in range(refine):
        for batch in _mixed(stream(), BATCH_FRAMES, rng):
            model.partial_fit(batch)
    centroids = model.cluster_centers_.astype(np.float32)
    distances = _distances(torch.from_numpy(sample), torch.from_numpy(centroids))
    facts = {"clusters": clusters, "frames": total, "passes": refine, "inertia_per_frame": float(distances.mean())}
    return Codebook(centroids, facts)


def assign(frames: Tensor | np.ndarray, centroids: Tensor | np.ndarray) -> Tensor:
    """The nearest centre (Euclidean) of each frame: (n, C) and (K, C) -> (n,) int64, on the device of the frames."""
    frames, centroids = torch.as_tensor(frames), torch.as_tensor(centroids)
    centroids = centroids.to(frames.device, torch.float32)
    norms = centroids.square().sum(1)  # (K,)
    # |x|^2 is the same for all centres and left out; in blocks, or frames x clusters would have to fit in memory.
    nearest = [
        torch.addmm(norms, block.float(), centroids.T, alpha=-2).argmin(1) for block in frames.split(BATCH_FRAMES)
    ]
    return torch.cat(nearest)


def _distances(frames: Tensor, centroids: Tensor) -> Tensor:
    """(n,) squared distance of each frame to its nearest centre."""
    return (frames - centroids[assign(frames, centroids)]).square().sum(1)


def _reservoir(stream: Iterable[np.ndarray], size: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """At most `size` frames, each of the stream's with the same probability, and the number of all frames."""
    kept: np.ndarray | None = None
    total = 0
    for batch in stream:
        if kept is None:
            kept = np.empty((size, batch.shape[1]), np.float32)
        free = min(max(size - total, 0), len(batch))
        kept[total : total + free] = batch[:free]
        rest = batch[free:]
        # Frame number i of the stream (from 0) takes a random place of i + 1; it stays if that is within the sample.
        places = rng.integers(0, np.arange(total + free, total + len(batch)) + 1)
        for place, frame in zip(places[places < size], rest[places < size], strict=True):
            kept[place] = frame
        total += len(batch)
    return (np.empty((0, 1), np.float32) if kept is None else kept[: min(total, size)]), total


def _mixed(stream: Iterable[np.ndarray], batch_frames: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Mini-batches of frames in random order within a window of the stream; a last small one is left out."""
    window: list[np.ndarray] = []
    count = 0
    for batch in stream:
        window.append(batch)
        count += len(batch)
        if count >= WINDOW_BATCHES * batch_frames:
            yield from _batches_of(rng.permutation(np.concatenate(window)), batch_frames)
            window, count = [], 0
    if count:
        yield from _batches_of(rng.permutation(np.concatenate(window)), batch_frames)


def _batches_of(frames: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, max(len(frames) - size, 0) + 1, size):
        yield frames[start : start + size]
