"""Sources of training cuts: what a pass holds, in which shares, the same for any number of ranks, workers, restarts."""

import itertools
import math
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
import pytest
from cuts import PRETRAIN, command, write_cuts, write_run
from lhotse import MonoCut

from mmspeech import config as configs
from mmspeech import dist
from mmspeech.data import sizes, sources
from mmspeech.data.audio import num_frames
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.data.loader import DataConfig, TrainingStream, make_reading
from mmspeech.data.reading import Reading, read_item, streams_given, times_given
from mmspeech.data.sources import Mixture, Source, Span
from mmspeech.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Run:
    """The part of a run's YAML that this is about."""

    data: DataConfig


STREAMS = {"audio": {"reader": "logmel"}, "video": {"reader": "mouth", "size": 24, "crop": 20}}


def write_names(path, durations, prefix):
    """Cuts that are never read: names and durations."""
    with writing_cuts(path) as writer:
        for i, duration in enumerate(durations):
            writer.write(MonoCut(f"{prefix}{i:04d}", start=0, duration=duration, channel=0))
    return path


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Three corpora: 100 cuts of 2 s, 400 of 1 s, 50 of 12 s."""
    folder = tmp_path_factory.mktemp("names")
    sizes = {"a": [2.0] * 100, "b": [1.0] * 400, "c": [12.0] * 50}
    return {name: write_names(folder / f"{name}.jsonl.gz", size, name) for name, size in sizes.items()}


def mixture(names, weights, seed=1, **span):
    sources = [Source(cuts=[names[name]], weight=weight) for name, weight in weights.items()]
    return Mixture(sources, Span(**({"min_s": 0.2, "max_s": 80.0} | span)), seed=seed)


def test_without_weights_a_pass_holds_every_cut_once_evenly_spread(names):
    """Pooled: none is lost, none comes twice; each tenth of the pass has about a tenth of each source."""
    mixed = mixture(names, {"a": None, "b": None, "c": None})
    ids = [cut.id for cut in mixed.one_pass(0)]
    assert len(ids) == len(set(ids)) == 550
    tenths = [Counter(name[0] for name in ids[i : i + 55]) for i in range(0, 550, 55)]
    assert all(38 <= part["b"] <= 42 and 9 <= part["a"] <= 11 and 4 <= part["c"] <= 6 for part in tenths)
    assert ids == [cut.id for cut in mixed.one_pass(0)] != [cut.id for cut in mixed.one_pass(1)]


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 2}, {"a": 5, "b": 1, "c": 0.5}, {"a": 0.1, "b": 3, "c": 1}])
def test_seconds_of_a_pass_are_shared_as_the_weights_are(names, weights):
    """A pass lasts as long as the sources together; every cut comes floor or ceil of its source's rate times."""
    mixed, passes = mixture(names, weights), 12
    assert mixed.rates == pytest.approx(
        [weights[k] / sum(weights.values()) * 1200 / s for k, s in zip("abc", (200, 400, 600), strict=True)]
    )
    seconds, counts = Counter(), [Counter() for _ in range(passes)]
    for number in range(passes):
        for cut in mixed.one_pass(number):
            seconds[cut.id[0]] += cut.duration
            counts[number][cut.id] += 1
    assert sum(seconds.values()) == pytest.approx(1200 * passes, rel=0.03)
    for (name, weight), rate in zip(weights.items(), mixed.rates, strict=True):
        assert seconds[name] / sum(seconds.values()) == pytest.approx(weight / sum(weights.values()), abs=0.03)
        size = {"a": 100, "b": 400, "c": 50}[name]
        times = [count[f"{name}{i:04d}"] for count in counts for i in range(size)]
        assert set(times) <= {int(rate), int(rate) + 1} and sum(times) / len(times) == pytest.approx(rate, abs=0.1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_thousand_batches_hold_each_type_of_data_as_configured(tmp_path, monkeypatch, ranks):
    """VATLM's four corpora with its sampling ratios: each one's share of the frames is within 2 % of what is asked,
    however big the corpora are and however long their cuts, on one rank and on two together."""
    rng = np.random.default_rng(0)
    corpora = {"av": (60, 3.0, 0.08), "sound": (600, 8.0, 0.15), "paired": (90, 5.0, 0.10), "text": (2400, 2.5, 0.15)}
    sources = []
    for name, (count, mean, weight) in corpora.items():
        seconds = [round(float(one), 2) for one in rng.uniform(0.5 * mean, 1.5 * mean, count)]
        cuts = write_names(tmp_path / f"{name}.jsonl.gz", seconds, f"{name}-")
        sources.append(Source(cuts=[cuts], weight=weight))
    config = DataConfig(sources=sources, batch_s=20.0 * ranks, max_batch_s=20.0, streams=STREAMS)
    monkeypatch.setattr(dist, "world_size", lambda: ranks)
    frames = Counter()
    for rank in range(ranks):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        plan = TrainingStream(config, Reading(streams=STREAMS), seed=1)._plan(deque())
        for _, cuts in itertools.islice(plan, 2000 // ranks):
            for cut in cuts:
                frames[cut.id.split("-")[0]] += num_frames(cut)
    for name, (_, _, weight) in corpora.items():
        assert frames[name] / frames.total() == pytest.approx(weight / 0.48, rel=0.02), name


def test_a_pass_of_endless_sources_ends_and_the_next_one_goes_on_there(tmp_path, monkeypatch):
    """VATLM's text is hundreds of millions of lines: a pass is bounded, so that a resumed run has little to go through.

    Every cut of a source comes once before any comes twice; a file that lies wholly before a pass is not opened.
    """
    monkeypatch.setattr(sources, "LONGEST_PASS_S", 100.0)
    rng = np.random.default_rng(0)
    text = [round(float(one), 2) for one in rng.uniform(0.1, 9, 1000)]
    for i in range(10):
        write_names(tmp_path / f"text/cuts_text-{i}.jsonl.gz", text[i * 100 : (i + 1) * 100], f"t{i}-")
    clips = write_names(tmp_path / "clips.jsonl.gz", [2.0] * 30, "c")
    given = [Source(cuts=[tmp_path / "text"], weight=3), Source(cuts=[clips], weight=1)]
    mixed = Mixture(given, Span(min_s=0.2, max_s=8.0), seed=1)
    whole = sum(one for one in text if 0.2 <= one <= 8)
    opened, seen, clip_times = [], [], Counter()
    lines = sources.LazyJsonlIterator
    monkeypatch.setattr(sources, "LazyJsonlIterator", lambda path: opened.append(path.name) or lines(path))
    for number in range(120):
        seconds, opened[:] = Counter(), []
        for cut in mixed.one_pass(number):
            seconds[cut.id[0]] += cut.duration
            (seen if cut.id[0] == "t" else clip_times.update([cut.id]) or []).append((cut.id, times_given(cut, number)))
        assert seconds["t"] == pytest.approx(75, abs=8) and seconds["c"] == pytest.approx(25, abs=2)
        assert len(set(opened) - {clips.name}) <= 2
    usable = [f"t{i // 100}-{i % 100:04d}" for i, one in enumerate(text) if 0.2 <= one <= 8]
    turns = 120 * 75 / whole
    assert seen == [(name, turn) for turn in range(math.ceil(turns)) for name in usable][: len(seen)]
    assert len(seen) == pytest.approx(turns * len(usable), abs=3)
    assert set(clip_times.values()) <= {120 * 25 // 60, 120 * 25 // 60 + 1}


def test_cuts_that_are_put_together_from_others_are_refused(tmp_path):
    """Where they would need a mark or a length: in one line, also when they are not the first. Alone they are read."""
    path, (cut,) = tmp_path / "mixed.jsonl.gz", open_cuts(write_cuts(tmp_path / "plain", [2.0]))
    other = write_names(tmp_path / "other.jsonl.gz", [2.0] * 10, "o")
    with writing_cuts(path) as writer:
        writer.write(cut)
        writer.write(cut.append(cut, preserve_id="left"))
    names = {"m": path, "o": other}
    for weights in ({"m": 1, "o": 3}, {"m": 3, "o": 1}, {"m": 3, "o": 5}):  # the last gives each cut once
        with pytest.raises(UserError, match=rf"{path}: {cut.id} is put together from several cuts; a source with"):
            list(mixture(names, weights).one_pass(0))
    assert [one.duration for one in mixture({"m": path}, {"m": None}).one_pass(0)] == [2.0, 4.0]


def test_beginning_of_a_source_comes_no_more_often_than_its_end(names):
    """1.5 times per pass: over 40 passes the first half of the source and its second half are given equally often."""
    mixed = mixture(names, {"a": 3, "b": 1, "c": 8})
    assert mixed.rates[0] == pytest.approx(1.5)
    halves = Counter(int(cut.id[1:]) // 50 for n in range(40) for cut in mixed.one_pass(n) if cut.id[0] == "a")
    assert halves[0] / halves[1] == pytest.approx(1.0, abs=0.08)


def test_trimmed_cuts_count_with_what_is_read_of_them(names):
    """12 s trimmed to 4 s: equal weights, equal seconds of what is read."""
    mixed = mixture(names, {"a": 1, "c": 1}, trim_s=4.0)
    assert mixed.rates == pytest.approx([1.0, 1.0])
    assert mixture(names, {"a": 1, "c": 1}).rates == pytest.approx([2.0, 2 / 3])


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Audio-visual, sound with lips that are not to be used, and sound: real files, small."""
    folder = tmp_path_factory.mktemp("corpora")
    durations = [0.6 + 0.1 * (i % 5) for i in range(8)]
    with_lips = write_cuts(folder / "av", durations, lips=range(8))
    renamed = {}
    for name in ("av", "hidden", "sound"):
        renamed[name] = folder / f"{name}.jsonl.gz"
        with writing_cuts(renamed[name]) as writer:
            for cut in open_cuts(with_lips):
                cut.id = f"{name}-{cut.id}"
                if name == "sound":
                    del cut.custom["mouth"]
                writer.write(cut)
    return renamed


def stream(corpora, weights=None, **changes):
    weights = weights or dict.fromkeys(corpora)
    taken = {"hidden": ["audio"]}
    sources = [Source(cuts=[corpora[k]], weight=w, streams=taken.get(k, [])) for k, w in weights.items()]
    settings = dict(sources=sources, streams=STREAMS, units="km", batch_s=8.0, max_batch_s=4.0, workers=0, buckets=2)
    config = DataConfig(**(settings | changes))
    return TrainingStream(config, make_reading(config, seed=3, train=True), seed=3)


def test_one_batch_holds_audio_visual_and_audio_only_items(corpora):
    """A source gives the streams it names, though its cuts have more; presence is per item."""
    mixed_batches = 0
    for group in itertools.islice(stream(corpora), 6):
        for _, batch in group:
            kinds = {name.split("-")[0] for name in batch.ids}
            mixed_batches += len(kinds) > 1
            for i, name in enumerate(batch.ids):
                assert batch.present["audio"][i] and bool(
                    batch.present["video"][i] if "video" in batch.present else 0
                ) == (name.startswith("av"))
    assert mixed_batches >= 3
    ((_, longest),), names = stream(corpora).longest(), stream(corpora).streams()
    assert longest.ids[0].startswith("av") and longest.present["video"].all() and names == ["audio", "video"]


def test_each_set_of_streams_has_a_longest_batch(tmp_path):
    """1.6 s of sound with a third stream do not hide 1.2 s of lips, which take most memory; sound alone, shorter than
    either, is part of both; a set of which nothing can be read is passed over."""
    av = write_cuts(tmp_path / "av", [1.0, 1.2], lips=range(2))
    also = write_cuts(tmp_path / "also", [1.6, 0.8], emg=True)
    sound, broken = write_cuts(tmp_path / "sound", [1.1]), write_cuts(tmp_path / "broken", [3.0])
    next((tmp_path / "broken").glob("*.wav")).unlink()
    streams = {**STREAMS, "emg": {"reader": "array", "field": "emg"}}
    sources = [Source(cuts=[cuts]) for cuts in (sound, av, also)]
    found = [batch for _, batch in stream({}, {}, sources=sources, streams=streams).longest()]
    shapes = {"+".join(one.streams): tuple(one.streams["audio"].shape[:2]) for one in found}
    assert shapes == {"audio+video": (3, 30), "audio+emg": (2, 40)}  # as many as fit into 4 s
    found = list(stream({}, {}, sources=[Source(cuts=[cuts]) for cuts in (broken, av)]).longest())
    assert [set(batch.streams) for _, batch in found] == [{"audio", "video"}]
    with pytest.raises(UserError, match="no cut could be used; mend"):
        list(stream({}, {}, sources=[Source(cuts=[broken])]).longest())


def test_lips_alone_are_a_source_too(corpora):
    """`streams: [video]`: the sound stays where it is."""
    sources = [Source(cuts=[corpora["av"]], streams=["video"])]
    for group in itertools.islice(stream(corpora, sources=sources, units=None), 3):
        for _, batch in group:
            assert set(batch.streams) == {"video"} and batch.present["video"].all()
    assert stream(corpora, sources=sources).streams() == ["video"]


def test_a_repeated_cut_is_read_anew_each_time(corpora):
    """Given twice in a pass it has two numbers, so that masks, crops, trims and dropout differ; never one twice."""
    seen = Counter()
    for group in itertools.islice(stream(corpora, {"av": 5, "sound": 1}), 12):
        for _, batch in group:
            seen.update(zip(batch.ids, batch.passes, strict=True))
    assert max(seen.values()) == 1
    assert max(Counter(name for name, _ in seen).values()) >= 3


def ids(groups, count):
    return [[list(zip(b.ids, b.passes, strict=True)) for _, b in group] for group in itertools.islice(groups, count)]


@pytest.mark.parametrize("weights", [None, {"av": 3, "hidden": 1, "sound": 1}])
def test_mixed_stream_is_the_same_on_ranks_and_after_a_restart(corpora, monkeypatch, weights):
    """Two ranks see together what one sees; resumed in the middle of a pass, the next batch is the next one."""
    whole = ids(stream(corpora, weights), 9)
    first = stream(corpora, weights)
    groups = iter(first)
    for _ in range(4):
        next(groups)
        first.trained()
    again = stream(corpora, weights, workers=1)
    again.load_state_dict(first.state_dict())
    assert ids(again, 5) == whole[4:]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "world_size", lambda: 2)
        parts.append(ids(stream(corpora, weights), 4))
    for together, one, other in zip(whole, *parts, strict=False):
        assert together == [*one, *other]


def test_pretraining_runs_on_sources_of_all_kinds(corpora, tmp_path, capsys):
    """From YAML: sound and lips, sound of clips with lips, sound; what a pass is made of is said."""
    conf = write_run(tmp_path / "mixed.yaml", PRETRAIN, {"data.streams": STREAMS})
    av, hidden, sound = (corpora[name] for name in ("av", "hidden", "sound"))
    audio_only = f"{{cuts: [{hidden}], streams: [audio], weight: 1}}, {{cuts: [{sound}], weight: 1}}"
    sources = f"[{{cuts: [{av}], weight: 2}}, {audio_only}]"
    assert command("pretrain", conf, tmp_path / "exp", "--set", f"data.sources={sources}") == 0
    said = capsys.readouterr().err
    assert f"{av}: 8 cuts, 0.00 h; 50.0% of a pass, each cut 1.5 times" in said
    assert f"{hidden}: 8 cuts, 0.00 h, audio alone; 25.0% of a pass, each cut 0.75 times" in said
    assert configs.read(tmp_path / "exp/encoder/config.yaml")["trained_on"] == ["audio", "video"]
    # The same cuts from elsewhere are the same run; the same cuts with their weights exchanged are not.
    moved = tmp_path / "moved.jsonl.gz"
    moved.write_bytes(av.read_bytes())
    assert (
        command("pretrain", conf, tmp_path / "exp", "--set", f"data.sources={sources.replace(str(av), str(moved))}")
        == 0
    )
    assert "current, nothing to do" in capsys.readouterr().err
    exchanged = sources.replace(str(av), "X").replace(str(sound), str(av)).replace("X", str(sound))
    assert command("pretrain", conf, tmp_path / "exp", "--set", f"data.sources={exchanged}") == 2
    assert "checkpoints are of a run of another `data.sources`" in capsys.readouterr().err
    one = f"data.sources=[{{cuts: [{sound}]}}]"
    assert command("pretrain", conf, tmp_path / "sound", "--set", one) == 0
    assert configs.read(tmp_path / "sound/encoder/config.yaml")["trained_on"] == ["audio"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": [{"cuts": ["a"], "weight": 1}, {"cuts": ["b"]}]}, "some have a weight and some do not"),
        ({"sources": [{"cuts": ["a"], "weight": 0}]}, r"data\.sources\[0\]\.weight: 0\.0; expected more than 0"),
        ({"sources": [{"cuts": ["a"], "streams": ["lips"]}]}, r"sources\[0\]\.streams: `lips` is not read"),
        ({"sources": [{"cuts": []}]}, r"data\.sources\[0\]\.cuts: names no file"),
        ({"sources": [{"cuts": ["a"]}], "cuts": ["b"]}, "sources: and cuts are both set"),
        ({"sources": [{"cuts": ["a"]}], "max_items": 3}, "sources: and max_items are both set"),
        ({"sources": [{"cuts": ["a"], "wieght": 1}]}, "did you mean `weight`"),
    ],
)
def test_mistakes_in_sources_are_named(tmp_path, settings, message):
    conf = write_run(tmp_path / "a.yaml", {"data": settings}, {})
    with pytest.raises(UserError, match=rf"a\.yaml: .*{message}"):
        configs.load(conf, Run)


def test_a_folder_is_all_files_of_cuts_in_it(tmp_path, capsys):
    """In order of their names, so that a source of thousands of shards is one word; other files do not count."""
    for i in (2, 0, 1):
        write_names(tmp_path / f"text/cuts_s-{i:05d}.jsonl.gz", [1.0] * (i + 1), f"s{i}-")
    write_names(tmp_path / "text/others.jsonl.gz", [1.0], "no")
    source = Source(cuts=[tmp_path / "text", write_names(tmp_path / "one.jsonl.gz", [1.0], "one")])
    mixed = Mixture([source], Span(min_s=0.2, max_s=80.0))
    assert [cut.id[:2] for cut in mixed.one_pass(0)] == ["s0", "s1", "s1", "s2", "s2", "s2", "on"]
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "no file cuts_"), ("missing", "no such file or folder")):
        source = f"data.sources=[{{cuts: [{tmp_path / name}]}}]"
        conf = write_run(tmp_path / "a.yaml", PRETRAIN, {"data.streams": STREAMS})
        assert command("pretrain", conf, tmp_path / "exp", "--set", source) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("span", [{}, {"min_s": 1.9, "max_s": 12.0}, {"trim_s": 1.7}])
def test_noted_sizes_are_those_of_the_cuts(tmp_path, monkeypatch, span):
    """With any bounds and trims, to the last bit, without reading a cut; a note of another file does not count."""
    rng = np.random.default_rng(0)
    durations = {name: [round(float(one), 3) for one in rng.uniform(0.5, 20, 300)] for name in ("a", "b")}
    names = {name: write_names(tmp_path / f"cuts_{name}.jsonl.gz", some, name) for name, some in durations.items()}
    weights = {"a": 1, "b": 2}
    counted = mixture(names, weights, **span)
    ids = [cut.id for cut in counted.one_pass(0)]
    sizes.write_note(tmp_path, {path.name: Counter(durations[name]) for name, path in names.items()})
    with monkeypatch.context() as patch:
        patch.setattr(sizes.cutfiles, "is_empty", lambda path: pytest.fail(f"{path} was read"))
        assert sizes.durations_of([*names.values()]) == {names[name]: Counter(durations[name]) for name in names}
    noted = mixture({"a": names["a"], "b": names["b"]}, weights, **span)
    assert noted.sizes == counted.sizes and noted.rates == counted.rates
    assert [cut.id for cut in noted.one_pass(0)] == ids
    write_names(names["b"], durations["b"][:100], "b")
    assert mixture(names, weights, **span).sizes != counted.sizes


def test_units_must_come_from_what_the_source_gives(corpora, tmp_path):
    """Sound's clusters as targets of lips alone, in iteration 1: the message tells the rule and the way out."""
    labelled = tmp_path / "labelled.jsonl.gz"
    with writing_cuts(labelled) as writer:
        for cut in open_cuts(corpora["av"]):
            cut.custom["units_km_from"] = "audio"
            writer.write(cut)
    lips, sound = (Source(cuts=[labelled], streams=[name]) for name in ("video", "audio"))
    with pytest.raises(UserError, match=r"made from audio, but this source gives no audio.*u-HuBERT Sec\. 3\.2"):
        next(iter(stream(corpora, sources=[lips])))
    next(iter(stream(corpora, sources=[sound])))
    conf = write_run(tmp_path / "v.yaml", PRETRAIN, {"data.streams": STREAMS})
    assert (
        command("pretrain", conf, tmp_path / "v", "--set", f"data.sources=[{{cuts: [{labelled}], streams: [video]}}]")
        == 2
    )


def test_lips_without_a_recording_are_read_and_trimmed(corpora):
    """A cut of a corpus that has no sound at all."""
    (cut,) = open_cuts(corpora["av"]).subset(first=1)
    cut.recording = None
    reading = Reading(streams=STREAMS, train=True, units="km", trim_s=0.4)
    item = read_item(cut, reading)
    assert streams_given(cut, STREAMS) == ["video"] == list(item.streams)
    assert item.streams["video"].shape == (10, 20, 20) and len(item.units) == 10
