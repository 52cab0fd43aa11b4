"""Clustering: blobs are found, in a sample and in a stream; nearest centres are nearest."""

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from mmspeech.errors import UserError
from mmspeech.pretraining import kmeans


def blobs(count: int, rng: np.random.Generator, clusters: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(count, 3) frames around centres that are 10 apart, and the centre of each."""
    which = rng.integers(0, clusters, count)
    centres = 10.0 * np.stack([np.arange(clusters), np.arange(clusters) % 2, np.zeros(clusters)], axis=1)
    return (centres[which] + 0.1 * rng.standard_normal((count, 3))).astype(np.float32), which


@pytest.mark.parametrize("sample_frames", [10_000, 500])
def test_blobs_are_found(sample_frames):
    """Whether the stream fits in the sample or not: every blob has one unit."""
    frames, which = blobs(4000, np.random.default_rng(0))
    calls = []

    def stream():
        calls.append(1)
        return iter(np.array_split(frames, 9))

    codebook = kmeans.fit(stream, 4, sample_frames=sample_frames, passes=2)
    units = kmeans.assign(frames, codebook.centroids).numpy()
    assert len(np.unique(units)) == 4
    assert all(len(np.unique(units[which == blob])) == 1 for blob in range(4))
    assert len(calls) == (1 if sample_frames > 4000 else 3)
    assert codebook.facts["inertia_per_frame"] < 0.1
    assert codebook.facts["frames"] == 4000


def test_codebook_depends_on_the_seed_alone():
    """Same seed, same centres to the last bit."""
    frames, _ = blobs(500, np.random.default_rng(0))
    frames = frames + np.random.default_rng(1).standard_normal(frames.shape).astype(np.float32) * 5
    first, second, other = (kmeans.fit(lambda: [frames], 7, seed=seed).centroids for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_assigned_units_are_the_nearest_centres():
    """Equal to scikit-learn's labels and to all distances taken one by one."""
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((11_000, 5)).astype(np.float32)
    model = MiniBatchKMeans(6, n_init=1, max_iter=2, random_state=0).fit(frames)
    units = kmeans.assign(torch.from_numpy(frames), model.cluster_centers_)
    assert units.dtype == torch.int64
    np.testing.assert_array_equal(units, model.predict(frames))
    np.testing.assert_array_equal(units, np.linalg.norm(frames[:, None] - model.cluster_centers_, axis=2).argmin(1))
    assert kmeans.assign(frames[:0], model.cluster_centers_).shape == (0,)


def test_sample_of_a_stream_is_uniform():
    """Each of 200 frames is among the 50 kept with probability 1/4, wherever it stands."""
    frames = np.arange(200, dtype=np.float32)[:, None]
    kept = np.zeros(200)
    for seed in range(400):
        sample, total = kmeans._reservoir(np.array_split(frames, 7), 50, np.random.default_rng(seed))
        assert (total, len(np.unique(sample))) == (200, 50)
        kept[sample[:, 0].astype(int)] += 1
    assert kept.sum() == 50 * 400
    assert np.abs(kept / 400 - 0.25).max() < 0.1


def test_saved_codebook_is_loaded(tmp_path):
    """Centres to the last bit; a folder without one is named."""
    codebook = kmeans.Codebook(np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32), {"frames": 9})
    codebook.save(tmp_path)
    loaded = kmeans.Codebook.load(tmp_path)
    np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
    assert loaded.facts == codebook.facts
    with pytest.raises(UserError, match="expected a codebook"):
        kmeans.Codebook.load(tmp_path / "none")


def test_fewer_frames_than_clusters_is_a_mistake():
    """Also no frame at all."""
    for stream in ([np.zeros((3, 2), np.float32)], []):
        with pytest.raises(UserError, match="frames for 4 clusters"):
            kmeans.fit(lambda stream=stream: stream, 4)
