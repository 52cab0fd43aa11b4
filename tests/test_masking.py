"""Span masks: their statistics against the public code's, and what they must never touch."""

import json

import numpy as np
import pytest

from mmspeech.blocks.masking import draw_spans, replacement_frames


def test_covered_share_is_that_of_the_public_code():
    """p 0.8 / 10 covers 57 %, 0.3 / 5 covers 27 % (hyperparameters 1.4), 0.5 / 10 40-42 %."""
    lengths = np.full(2000, 250)
    for probability, length, share in [(0.8, 10, 0.57), (0.3, 5, 0.27), (0.5, 10, 0.41)]:
        masked = draw_spans(range(2000), lengths, 250, probability=probability, length=length)
        assert masked.mean() == pytest.approx(share, abs=0.015)


def test_mask_statistics_equal_the_public_ones_for_single_clips(shared):
    """Mean and spread of the masked share, and runs per row, of clips masked one by one."""
    stats = json.loads((shared / "reference" / "avhubert" / "mask_statistics.json").read_text())
    public = stats["audio_p0.8_l10_T250_batch1"]
    masked = draw_spans(range(4000), np.full(4000, 250), 250, probability=0.8, length=10)
    assert masked.mean() == pytest.approx(public["mean_masked_fraction"], abs=0.005)
    assert masked.mean(axis=1).std() == pytest.approx(public["std_masked_fraction"], rel=0.1)
    runs = (np.diff(masked.astype(int), axis=1) == 1).sum(1) + masked[:, 0]
    assert runs.mean() == pytest.approx(public["runs"] / public["rows"], rel=0.03)


def test_spans_have_their_length_and_stay_inside_the_clip():
    """Every run is at least one span long; at least two spans; nothing beyond the clip."""
    lengths = np.array([100, 60, 33, 0, 12, 1])
    for key in range(50):
        masked = draw_spans(np.arange(6) + 100 * key, lengths, 100, probability=0.3, length=5)
        for row, length in zip(masked, lengths, strict=True):
            assert not row[length:].any()
            edges = np.diff(np.pad(row, 1).astype(int))
            sizes = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
            if length >= 12:
                assert (sizes >= 5).all() and row[:length].sum() >= 6  # two different starts


def test_a_row_depends_on_its_own_key_only():
    """Neighbours, order and padding change nothing."""
    keys, lengths = [11, 22, 33], np.array([50, 80, 64])
    together = draw_spans(keys, lengths, 80, probability=0.8, length=10)
    for i in range(3):
        alone = draw_spans(keys[i : i + 1], lengths[i : i + 1], lengths[i] + 40, probability=0.8, length=10)
        assert (alone[0, : lengths[i]] == together[i, : lengths[i]]).all() and not alone[0, lengths[i] :].any()
    again = draw_spans(keys[::-1], lengths[::-1], 80, probability=0.8, length=10)
    assert (again[::-1] == together).all()


def test_replacements_are_runs_of_other_frames_of_the_clip():
    """Sources lie outside [start - length, end) at the run's start, run on by one, and never leave the clip."""
    lengths = np.array([80, 50])
    for key in range(200):
        masked = draw_spans([key, key + 1000], lengths, 80, probability=0.3, length=5)
        source = replacement_frames([key + 7, key + 8], masked, lengths, 5)
        assert (source[~masked] == np.broadcast_to(np.arange(80), (2, 80))[~masked]).all()
        for row in range(2):
            assert source[row, : lengths[row]].max() < lengths[row]
            edges = np.diff(np.pad(masked[row], 1).astype(int))
            for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
                first = source[row, start]
                assert not max(start - 5, 0) <= first < end
                expected = np.minimum(first + np.arange(end - start), lengths[row] - 1)
                assert (source[row, start:end] == expected).all()
