"""Phones in time: ids from alignments, spans of them, the reader's contract, one training step with all kinds."""

import dataclasses

import numpy as np
import pytest
import torch
from cuts import PRETRAIN, command, write_cuts, write_run
from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem
from safetensors.torch import load_file

from mmspeech.data import audio, phone_frames, units
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.data.phone_frames import Interval, at_fixed_rate, from_intervals
from mmspeech.data.phones import CATEGORIES, ID, IPA_SYMBOLS, SYMBOLS
from mmspeech.data.reading import MAX_MISSING, Reading, collate, read_item
from mmspeech.errors import BadItem, UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_encoder

STREAMS = {"audio": {"reader": "logmel"}, "text": {"reader": "phones"}}


def with_phones(path, lengths, *, alone=(), folder="phones"):
    """The cuts with as many frames of random phones as `lengths` says (None: no phones); those `alone` lose sound."""
    rng, out = np.random.default_rng(1), path.with_name(f"{folder}.jsonl.gz")
    with writing_cuts(out) as writer, units.RawShardsWriter(path.with_name(folder) / "a.bin") as shard:
        for number, (cut, length) in enumerate(zip(open_cuts(path), lengths, strict=True)):
            if number in alone:
                own = SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text="hello")
                own_units = {name: value for name, value in cut.custom.items() if name.startswith("units")}
                cut = MonoCut(cut.id, 0.0, cut.duration, 0, supervisions=[own], custom=own_units)
            if length is not None:
                values = rng.integers(4, 45, (length, 4)).astype(np.uint8)
                cut = cut.with_custom("phones", shard.store(cut, values))
            writer.write(cut)
    return out


def literal(intervals, frames):
    """The same as `from_intervals`, id by id."""
    ids = []
    for k in range(4 * frames):
        centre, phone = (k + 0.5) / 100, "SIL"
        for start, end, label in intervals:
            if start <= centre < end:
                phone = label
        ids.append(ID[phone])
    return np.array(ids, np.uint8).reshape(frames, 4)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_becomes_four_ids_in_every_frame(seed):
    """As a literal loop over 10 ms; gaps are silence, whatever lies behind the end is left out."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 1.5, 24)).round(3)
    labels = rng.choice(CATEGORIES, 23)
    intervals = [
        Interval(float(a), float(b), str(label))
        for a, b, label in zip(times[:-1], times[1:], labels, strict=True)
        if rng.random() < 0.8
    ]
    frames = int(rng.integers(20, 40))
    found = from_intervals(intervals, frames)
    assert found.dtype == np.uint8 and found.shape == (frames, 4)
    np.testing.assert_array_equal(found, literal(intervals, frames))


def test_label_of_two_letters_is_cut_in_halves():
    number = {symbol: i for i, symbol in enumerate(IPA_SYMBOLS)}
    found = from_intervals([Interval(0.0, 0.08, "aɪ")], 3, "de").ravel()
    assert found.tolist() == [number["a"]] * 4 + [number["ɪ"]] * 4 + [number["SIL"]] * 4


@pytest.mark.parametrize("duration", [1.0, 0.97, 1.013, 1.0201, 0.999, 2.3777])
def test_phones_have_the_frames_of_the_other_streams(tmp_path, duration):
    """T is that of units and stored features; log-mel frames may be one more."""
    (cut,) = open_cuts(write_cuts(tmp_path, [duration], units=None))
    cut.supervisions[0].alignment = {"phone": [AlignmentItem("AH0", 0.1, 0.3)]}
    intervals = phone_frames.alignment_of(cut)
    found = from_intervals(intervals, phone_frames.frames_of(cut))
    assert found.shape == (audio.num_frames(cut), 4)
    assert 0 <= len(audio.stacked_log_mel_of_one(audio.read_audio(cut))) - len(found) <= 1


def test_times_count_from_the_supervision(tmp_path):
    """A truncated cut has its own part of the alignment."""
    (cut,) = open_cuts(write_cuts(tmp_path, [2.0], units=None))
    items = [AlignmentItem("AH", 0.2, 0.5), AlignmentItem("N", 0.7, 0.8)]
    cut.supervisions[0].alignment = {"phone": items}
    whole = from_intervals(phone_frames.alignment_of(cut), 50)
    part = cut.truncate(offset=0.4, duration=1.2)
    np.testing.assert_array_equal(from_intervals(phone_frames.alignment_of(part), 30), whole[10:40])


def test_truncation_keeps_phones_in_step(tmp_path):
    """A span of a cut has the phones of that span, frame by frame; behind their end there are none."""
    path = with_phones(write_cuts(tmp_path, [2.0, 2.0]), [50, 20])
    for cut in open_cuts(path):
        whole = cut.load_custom("phones")
        item = read_item(cut.truncate(offset=0.4, duration=1.0), Reading(streams=STREAMS))
        np.testing.assert_array_equal(item.streams["text"], whole[10:35])
        assert len(item.streams["audio"]) == 25
    behind = read_item(cut.truncate(offset=1.2, duration=0.4), Reading(streams=STREAMS))
    assert list(behind.streams) == ["audio"]


def test_text_may_end_before_the_sound_and_never_shortens_it(tmp_path):
    """Shorter by any amount: both keep their lengths; longer: cut to the sound; other streams must agree."""
    sound = write_cuts(tmp_path, [2.0, 2.0, 2.0, 2.0], emg=True)
    path = with_phones(sound, [3, 50 - MAX_MISSING, 50, 70])
    items = [read_item(cut, Reading(streams=STREAMS, units="km")) for cut in open_cuts(path)]
    assert [len(item.streams["audio"]) for item in items] == [50] * 4
    assert [len(item.streams["text"]) for item in items] == [3, 48, 50, 50]
    assert [len(item.units) for item in items] == [50] * 4
    alone = [read_item(cut, Reading(streams={"text": STREAMS["text"]})) for cut in open_cuts(path)]
    assert [len(item.streams["text"]) for item in alone] == [3, 48, 50, 50]  # lhotse reads no more than the cut has
    batch = collate(items, list(STREAMS), [0] * 4)
    assert batch.lengths["text"].tolist() == [3, 48, 50, 50] and batch.frames.tolist() == [50] * 4
    assert batch.streams["text"].dtype == torch.uint8 and batch.streams["text"].shape == (4, 50, 4)


def test_ids_that_the_front_end_does_not_know_are_a_mistake(tmp_path):
    """The message names both sizes and where to mend it, before an index is out of range."""
    (cut,) = open_cuts(with_phones(write_cuts(tmp_path, [1.0]), [25]))
    too_few = {"text": {"reader": "phones", "size": 20}}
    with pytest.raises(UserError, match=r"ids below 20, found \(25, 4\) with ids up to 4\d; set `size`"):
        read_item(cut, Reading(streams=too_few))
    with pytest.raises(BadItem, match="has none of the streams text"):
        read_item(dataclasses.replace(cut, custom={}), Reading(streams=too_few))


def test_fixed_rate_is_cut_and_never_filled():
    """Public VATLM: ids one behind the other; a last frame that is not full repeats the last phone; none are none."""
    assert at_fixed_rate([5, 6], 6).tolist() == [[5] * 4, [5, 5, 6, 6], [6] * 4]
    assert at_fixed_rate([5, 6], 3).tolist() == [[5, 5, 5, 6], [6, 6, 6, 6]]
    assert at_fixed_rate([5, 6], 8, most=3).tolist() == [[5] * 4, [5] * 4, [6] * 4]
    assert at_fixed_rate([], 8).shape == (0, 4) and at_fixed_rate([5], 8, most=0).shape == (0, 4)
    assert phone_frames.repeated([5, 6]).tolist() == [[5] * 4, [6] * 4]


def text_encoder():
    torch.manual_seed(0)
    streams = {"audio": {"frontend": "linear", "size": 104}, "text": {"frontend": "phones", "size": 46}}
    sizes = dict(num_layers=1, dim=16, ffn_dim=32, heads=2, position_groups=4, position_kernel=8)
    return AVEncoder(AVEncoderConfig(streams=streams, **sizes), STREAMS).eval()


def test_behind_its_end_a_short_text_is_zero_vectors(tmp_path):
    """Frames behind a text equal those of sound without text; what stands in its padding has no influence."""
    path = with_phones(write_cuts(tmp_path, [2.0]), [20])
    (cut,) = open_cuts(path)
    batch = collate([read_item(cut, Reading(streams=STREAMS))], list(STREAMS), [0])
    frontend = text_encoder().frontends["text"]
    features = frontend(batch.streams["text"], batch.lengths["text"])
    assert features.shape == (1, 50, 16) and features[:, 20:].abs().max() == 0 and features[:, :20].abs().min() > 0
    poisoned = batch.streams["text"].clone()
    poisoned[:, 20:] = 45
    torch.testing.assert_close(frontend(poisoned, batch.lengths["text"]), features)
    alone = frontend(batch.streams["text"][:, :20], batch.lengths["text"])
    torch.testing.assert_close(alone, features[:, :20])


def test_one_batch_of_sound_text_and_both_equals_its_items(tmp_path):
    """Audio and phones, phones alone (no recording), audio alone, a short text: rows as if each were alone."""
    sound = write_cuts(tmp_path, [1.0, 1.2, 1.4, 1.1])
    path = with_phones(sound, [25, 30, None, 10], alone=[1])
    items = [read_item(cut, Reading(streams=STREAMS, units="km")) for cut in open_cuts(path)]
    assert [sorted(item.streams) for item in items] == [["audio", "text"], ["text"], ["audio"], ["audio", "text"]]
    encoder = text_encoder()

    def encode(some):
        batch = collate(some, list(STREAMS), [0] * len(some))
        return encoder.encode(batch.streams, batch.lengths, batch.present)

    together = encode(items)
    assert together.lengths.tolist() == [25, 30, 35, 28]
    for row, item in enumerate(items):
        single = encode([item]).frames[0]
        torch.testing.assert_close(together.frames[row, : len(single)], single, atol=1e-5, rtol=1e-5)


def test_encoder_with_text_pretrains_by_yaml(tmp_path):
    """Cuts with both, with phones alone and with sound alone: an ordinary run moves the embedding of phones."""
    sound = write_cuts(tmp_path / "data", [1.0, 1.2, 0.8, 1.1])
    cuts = with_phones(sound, [25, 30, None, 10], alone=[1])
    changes = {
        "model.streams": {"audio": {"frontend": "linear", "size": 104}, "text": {"frontend": "phones", "size": 46}},
        "data.streams": STREAMS,
        "data.cuts": [cuts],
        "data.batch_s": 8.0,
        "data.max_batch_s": 8.0,
        "objective.masking": "feature",
        "objective.modality_dropout": {"audio+text": 0.5, "audio": 0.25, "text": 0.25},
    }
    conf = write_run(tmp_path / "text.yaml", PRETRAIN, changes)
    assert command("pretrain", conf, "unused", "--dry-run") == 0
    assert command("pretrain", conf, tmp_path / "exp") == 0
    after = load_file(tmp_path / "exp" / "encoder" / "encoder.safetensors")
    torch.manual_seed(PRETRAIN["seed"])
    before = AVEncoder(load_encoder(tmp_path / "exp" / "encoder").config).state_dict()
    name = "frontends.text.embedding.weight"
    moved = (after[name] != before[name]).any(1)
    assert moved[ID["AA"] : ID["SPN"]].any() and torch.isfinite(after[name]).all()
    assert len(moved) == len(SYMBOLS)
