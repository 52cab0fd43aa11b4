"""The order of batches: the same for any number of workers, ranks and restarts; and what is set aside."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from cuts import command, write_cuts
from lhotse import CutSet

from mmspeech import dist
from mmspeech.data.cutfiles import open_cuts
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading, make_sampler, validation_batches
from mmspeech.errors import UserError

DURATIONS = [1.0 + 0.1 * (i % 13) for i in range(40)]


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    return write_cuts(tmp_path_factory.mktemp("loader"), DURATIONS, emg=True)


def stream(cuts, **changes):
    settings = dict(cuts=[cuts], valid_cuts=[cuts], streams={"audio": {"reader": "logmel"}}, units="km")
    settings |= dict(batch_s=8.0, max_batch_s=4.0, workers=0, buckets=3)
    config = DataConfig(**(settings | changes))
    return TrainingStream(config, make_reading(config, seed=3, train=True), seed=3)


def ids(groups, count):
    return [[batch.ids for _, batch in group] for group in itertools.islice(groups, count)]


def test_workers_change_nothing(cuts):
    """Two loader processes give the batches of none, to the last sample."""
    one = [group for group in itertools.islice(stream(cuts), 4)]
    two = [group for group in itertools.islice(stream(cuts, workers=2), 4)]
    for a, b in zip(one, two, strict=True):
        for (_, x), (_, y) in zip(a, b, strict=True):
            assert x.ids == y.ids and torch.equal(x.streams["audio"], y.streams["audio"])


def test_a_pass_holds_every_cut_once_and_then_the_next_begins(cuts):
    """No cut is lost or repeated within a pass over the corpus; batches stay under their seconds."""
    seen = []
    for group in stream(cuts):
        for _, batch in group:
            assert batch.streams["audio"].shape[0] * batch.streams["audio"].shape[1] <= 4.0 * 25 + 25
            seen += zip(batch.passes, batch.ids, strict=True)
        if seen[-1][0] == 2:
            break
    for number in (0, 1):
        assert sorted(name for when, name in seen if when == number) == [f"clip{i:03d}" for i in range(40)]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_stream_goes_on_with_the_next_batch(cuts, workers):
    """The saved position is that of the last batch trained, however far workers have read ahead."""
    whole = ids(stream(cuts), 12)
    first = stream(cuts, workers=workers)
    groups = iter(first)
    for _ in range(5):
        next(groups)
        first.trained()
    next(groups)  # handed out, not trained
    second = stream(cuts, workers=workers)
    second.load_state_dict(first.state_dict())
    assert ids(second, 7) == whole[5:]


def test_ranks_share_the_batches_of_one(cuts, monkeypatch):
    """Two ranks together see, update by update, what one sees; a resumed run on one rank loses nothing."""
    whole = ids(stream(cuts), 6)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        parts.append(ids(stream(cuts), 6))
    for together, first, second in zip(whole, *parts, strict=True):
        assert together == [*first, *second]


def test_more_ranks_than_batches_cut_an_update_into_more(cuts, monkeypatch):
    """Four ranks, two batches of 4 s: now four of 2 s. Fewer ranks go on with those."""
    alone = stream(cuts)
    monkeypatch.setattr(dist, "world_size", lambda: 4)
    four = stream(cuts)
    assert (alone.seconds, four.seconds, len(ids(four, 1)[0])) == (4.0, 2.0, 1)
    monkeypatch.setattr(dist, "world_size", lambda: 1)
    alone.load_state_dict(four.state_dict())
    assert alone.seconds == 2.0


def test_a_pass_begun_on_fewer_ranks_is_ended_on_more_without_loss(cuts, monkeypatch):
    """One rank, two batches an update; then four ranks: the same updates to the pass's end, then four batches each."""
    first = stream(cuts)
    groups = iter(first)
    begun = [name for _ in range(2) for _, batch in take_group(groups, first) for name in batch.ids]
    state = first.state_dict()
    monkeypatch.setattr(dist, "world_size", lambda: 4)
    seen: dict[int, list[list[tuple[int, str]]]] = {}
    for rank in range(4):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        four = stream(cuts)
        four.load_state_dict(state)
        updates = ([] if b.idle else list(zip(b.passes, b.ids, strict=True)) for group in four for _, b in group)
        seen[rank] = list(itertools.islice(updates, 12))
    rest = [item for rank in range(4) for update in seen[rank] for item in update]
    assert sorted([*begun, *(name for number, name in rest if number == 0)]) == [f"clip{i:03d}" for i in range(40)]
    # Resumed once more, in the middle of what was left.
    monkeypatch.setattr(dist, "rank", lambda: 0)
    four = stream(cuts)
    four.load_state_dict(state)
    groups = iter(four)
    take_group(groups, four)
    again = stream(cuts)
    again.load_state_dict(four.state_dict())
    assert four.state_dict()["batches_per_update"] == 2
    assert [b.ids for _, b in next(iter(again))] == [b.ids for _, b in next(groups)]


def take_group(groups, of):
    group = next(groups)
    of.trained()
    return group


def test_invented_stream_needs_a_line_of_yaml(cuts):
    """Eight channels from a field of the cut, beside the sound."""
    config = DataConfig(
        cuts=[cuts],
        streams={"audio": {"reader": "logmel"}, "emg": {"reader": "array", "field": "emg"}},
        batch_s=4,
        max_batch_s=4,
        workers=0,
    )
    _, batch = next(iter(TrainingStream(config, make_reading(config, seed=0, train=True))))[0]
    assert batch.streams["emg"].shape[2] == 8 and batch.present["emg"].all()
    assert torch.equal(batch.lengths["emg"], batch.lengths["audio"])


def test_units_of_another_length_are_set_aside(tmp_path, capsys, cuts):
    """Ten units too few: one line with the cut's id and both numbers, and the other cuts are trained on."""
    from lhotse import CutSet, NumpyFilesWriter

    from mmspeech.data.cutfiles import writing_cuts

    path = tmp_path / "cuts.jsonl.gz"
    with writing_cuts(path) as writer, NumpyFilesWriter(tmp_path / "arrays") as arrays:
        for i, cut in enumerate(CutSet.from_jsonl_lazy(cuts).subset(first=4).to_eager()):
            if i == 1:
                cut.units_km = arrays.store_array("bad", np.zeros(15, np.int32), 0.04, 0, 0)
                cut.units_km.start = 0
            writer.write(cut)
    seen = list(itertools.takewhile(lambda batch: batch.passes[0] == 0, (g[0][1] for g in stream(path, batch_s=4.0))))
    assert sorted(itertools.chain(*(batch.ids for batch in seen))) == ["clip000", "clip002", "clip003"]
    line = capsys.readouterr().err
    assert "clip001" in line and "15 units `km`" in line and "need 28" in line


def test_longest_batch_is_the_biggest_that_may_come(cuts):
    ((_, batch),) = stream(cuts).longest()
    assert batch.streams["audio"].shape[:2] == (1, 55) and len(set(batch.ids)) == len(batch)


def test_trimmed_cuts_start_on_a_frame_and_keep_their_units(cuts):
    """A random second of each cut: units and sound are cut alike, and differently in the next pass."""
    trimmed = stream(cuts, trim_s=1.0, batch_s=4.0, max_batch_s=4.0)
    for group in itertools.islice(trimmed, 5):
        for _, batch in group:
            assert batch.lengths["audio"].max() <= 25 and (batch.target_lengths["units"] <= 25).all()
            assert len(batch) <= 4


def test_the_cuts_of_a_pass_are_gone_through_once(cuts):
    """Also for the buckets' bounds: where a pass begins deep in a file of millions, a reading of it takes long."""
    read: Counter[str] = Counter()

    class Names:
        def __iter__(self):
            for cut in open_cuts(cuts):
                read[cut.id] += 1
                yield cut

    config = DataConfig(cuts=[cuts], streams={"audio": {"reader": "logmel"}}, batch_s=4.0, max_batch_s=4.0)
    sampler = make_sampler(CutSet(Names()), config, seconds=4.0, train=True)
    given = Counter(cut.id for batch in sampler for cut in batch)
    assert read == given == Counter(cut.id for cut in open_cuts(cuts)) and set(read.values()) == {1}


def test_validation_is_the_same_every_time(cuts):
    config = DataConfig(valid_cuts=[cuts], streams={"audio": {"reader": "logmel"}}, batch_s=4, max_batch_s=4, workers=0)
    batches = validation_batches(config, make_reading(config, seed=0, train=False))
    first = [batch.ids for _, batch in batches]
    assert first == [batch.ids for _, batch in batches]
    assert sorted(itertools.chain(*first)) == [f"clip{i:03d}" for i in range(40)]


def test_validation_in_noise_hears_every_cut_in_every_frozen_noise(cuts, tmp_path):
    """VATLM Sec. IV-C, noisy validation sets: the same noise every time; without, clean."""
    for name in ("babble", "music"):
        write_cuts(tmp_path / "noise", [5.0], units=None, name=f"noise_{name}_valid.jsonl.gz")
    words = ("--noise", "babble:0", "--noise", "music:0", "--split", "valid")
    assert command("prepare", "noisy", cuts, tmp_path / "noise", tmp_path / "noisy", *words) == 0
    noises = [tmp_path / f"noisy/{name}_0dB.jsonl" for name in ("babble", "music")]
    settings = dict(valid_cuts=[cuts], streams={"audio": {"reader": "logmel"}}, batch_s=4, max_batch_s=4, workers=0)

    def heard(**changes):
        config = DataConfig(**settings, **changes)
        batches = list(validation_batches(config, make_reading(config, seed=0, train=False)))
        return [batch.ids for _, batch in batches], [batch.streams["audio"] for _, batch in batches]

    (names, clean), (twice, noisy), (_, again) = heard(), heard(valid_noise=noises), heard(valid_noise=noises)
    assert twice == names + names
    assert all(torch.equal(one, other) for one, other in zip(noisy, again, strict=True))
    for one, babble, music in zip(clean, noisy, noisy[len(clean) :], strict=False):
        assert not torch.equal(one, babble) and not torch.equal(one, music) and not torch.equal(babble, music)
    assert set(noises) < set(DataConfig(**settings, valid_noise=noises).files())


def test_no_cut_of_the_right_length_is_an_error(cuts):
    with pytest.raises(UserError, match=r"no cut has 50.0 to 80.0 s"):
        next(iter(stream(cuts, min_s=50.0)))
