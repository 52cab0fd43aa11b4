"""What fine-tuning is validated on: each subset of streams, with the items that have all of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuts import write_cuts

from mmspeech.batch import Batch
from mmspeech.cli.finetune import EachSubset, only_streams, subsets_there
from mmspeech.errors import UserError

SUBSETS = ["audio+video", "audio", "video"]
CONF = Path("finetune.yaml")


def mixed_batch(has_audio: list[int], has_video: list[int]) -> Batch:
    """Four items of five frames; item i holds i + 1 in its streams, and says so in texts and targets."""
    lengths = {
        "audio": 5 * torch.tensor([i in has_audio for i in range(4)]),
        "video": 5 * torch.tensor([i in has_video for i in range(4)]),
    }
    numbers = torch.arange(1, 5)
    streams = {
        name: numbers[:, None, None] * (own > 0)[:, None, None] * torch.ones(4, 5, 2) for name, own in lengths.items()
    }
    return Batch(
        ids=[f"item{i}" for i in range(4)],
        streams=streams,
        lengths=lengths,
        targets={"text": numbers[:, None]},
        target_lengths={"text": torch.ones(4, dtype=torch.int64)},
        present={name: own > 0 for name, own in lengths.items()},
        texts=[str(i + 1) for i in range(4)],
        passes=[0] * 4,
    )


def test_a_subset_is_validated_on_the_items_that_have_all_its_streams():
    """One audio-only item costs no other item its place, and counts for audio alone."""
    batch = mixed_batch(has_audio=[0, 1, 2], has_video=[0, 2, 3])
    wanted = {"audio+video": [0, 2], "audio": [0, 1, 2], "video": [0, 2, 3]}
    for subset, rows in wanted.items():
        kept = only_streams(batch, subset.split("+"))
        assert kept.ids == [f"item{i}" for i in rows] and kept.texts == [str(i + 1) for i in rows]
        assert list(kept.streams) == list(kept.lengths) == list(kept.present) == subset.split("+")
        for name, stream in kept.streams.items():
            assert stream[:, 0, 0].tolist() == kept.targets["text"][:, 0].tolist() == [i + 1 for i in rows]
            assert kept.present[name].all() and (kept.lengths[name] == 5).all()
    given = [(name, len(kept)) for name, kept in EachSubset([("main", batch)], SUBSETS)]
    assert given == [("main", 2), ("main", 3), ("main", 3)]


def test_sound_alone_counts_once():
    """`audio+video` of an audio-only batch is not audio a second time, whether or not there is an empty stream."""
    batch = mixed_batch(has_audio=range(4), has_video=[])
    assert [list(kept.streams) for _, kept in EachSubset([("main", batch)], SUBSETS)] == [["audio"]]
    del batch.streams["video"], batch.lengths["video"], batch.present["video"]
    assert [list(kept.streams) for _, kept in EachSubset([("main", batch)], SUBSETS)] == [["audio"]]


def test_subsets_that_no_cut_has_are_said(tmp_path, capsys):
    """Left out with a line each; an error if none is left, or if a stream is unknown."""
    inputs = {"audio": {"reader": "logmel"}, "video": {"reader": "mouth"}}
    encoder = SimpleNamespace(inputs=inputs)
    sound = write_cuts(tmp_path, [0.6, 0.7])
    both = write_cuts(tmp_path, [0.6, 0.7], lips=[1], name="both.jsonl.gz")
    assert subsets_there(SUBSETS, encoder, [sound], CONF) == ["audio"]
    said = capsys.readouterr().err
    assert "no cut of" in said and "has audio+video; it is left out" in said and "has video; it is" in said
    assert subsets_there(SUBSETS, encoder, [sound, both], CONF) == SUBSETS
    assert subsets_there([], encoder, [sound], CONF) == [] and capsys.readouterr().err == ""
    with pytest.raises(UserError, match="no cut has the streams of video, audio\\+video; change `valid_streams`"):
        subsets_there(["video", "audio+video"], encoder, [sound], CONF)
    with pytest.raises(UserError, match=r"finetune\.yaml: stream `vidoe` is not one of the encoder's: audio, video"):
        subsets_there(["audio", "audio+vidoe"], encoder, [both], CONF)
