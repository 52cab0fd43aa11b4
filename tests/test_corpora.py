"""Corpora on disk -> cuts: nothing is lost, nothing leaks, and the times stay right."""

import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from clips import beep, numbered_frames, write_clip
from lhotse import CutSet
from lhotse.supervision import AlignmentItem

from mmspeech.cli import prepare
from mmspeech.corpora import alignments, clips, grid, lrs3, musan, splits
from mmspeech.corpora.segments import split_at_pauses
from mmspeech.corpora.transcripts import clean
from mmspeech.data.cutfiles import is_empty
from mmspeech.errors import BadItem, UserError


def load(folder: Path, split: str) -> list:
    path = folder / f"cuts_{split}.jsonl.gz"
    return [] if is_empty(path) else list(CutSet.from_jsonl_lazy(path))


def load_all(folder: Path) -> dict[str, list]:
    return {split: load(folder, split) for split in splits.SPLITS}


def word_lines(words: list[tuple[str, float, float]]) -> str:
    return "".join(f"{word} {start} {end} 9.0\n" for word, start, end in words)


def make_lrs3(folder: Path) -> Path:
    """Three speakers of pretrain and trainval, one of test; one clip of 4 s with a pause, the others 0.4 s."""
    for split, speaker, name in [
        *[("trainval", f"spk{s}", f"5000{k}") for s in range(4) for k in range(3)],
        ("test", "spk9", "00001"),
        ("pretrain", "spk0", "00001"),
    ]:
        path = folder / split / speaker / f"{name}.mp4"
        write_clip(path, numbered_frames(10), beep(0.4, 0.1))
        path.with_suffix(".txt").write_text(f"Text:  HELLO {{LG}} {speaker.upper()}\nConf:  4\n")
    path = folder / "pretrain" / "spk0" / "00002.mp4"
    write_clip(path, numbered_frames(100), beep(4.0, 1.0))
    words = [("SO", 0.1, 0.5), ("MANY", 0.6, 1.6), ("{LG}", 1.7, 1.8), ("WORDS", 2.4, 3.0), ("HERE", 3.1, 3.7)]
    text = "Text:  SO MANY {LG} WORDS HERE\nConf:  3\n\nWORD START END ASDSCORE\n" + word_lines(words)
    path.with_suffix(".txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_lrs3(tmp_path_factory.mktemp("lrs3") / "corpus")


def test_lrs3_becomes_four_files_of_cuts(corpus, tmp_path):
    lrs3.prepare(corpus, tmp_path / "out", jobs=1)
    found = load_all(tmp_path / "out")
    assert {split: len(cuts) for split, cuts in found.items()} == {"pretrain": 2, "trainval": 9, "valid": 3, "test": 1}
    cut = found["test"][0]
    assert cut.id == cut.recording.id == "test-spk9-00001"
    assert cut.supervisions[0].text == "hello spk9"
    assert (cut.supervisions[0].speaker, cut.supervisions[0].language) == ("spk9", "en")
    assert cut.source["path"].endswith("test/spk9/00001.mp4")
    assert (cut.source["num_frames"], cut.source["frame_width"], cut.source["rotation"]) == (10, 32, 0)
    assert cut.load_audio().shape == (1, 6400)


def test_lrs3_validates_on_speakers_that_training_does_not_have(corpus, tmp_path):
    """By speaker, and rather on one whom pretrain does not have; the choice depends on the seed alone."""
    chosen = []
    for seed in (0, 0, 1, 2, 3, 4):
        picked = lrs3.choose_valid(lrs3.find_clips(corpus)[0], 1200, seed)
        speakers = {speaker for speaker, _ in picked}
        assert len(picked) == 3 and len(speakers) == 1 and speakers != {"spk0"}
        chosen.append(speakers)
    assert chosen[0] == chosen[1] and len(set(map(frozenset, chosen))) > 1


def test_lrs3_takes_the_validation_list_as_given(corpus, tmp_path):
    ids = tmp_path / "valid.id"
    ids.write_text("trainval/spk1/50000\nspk2/50001.mp4\n\nspk7/00000\n")
    lrs3.prepare(corpus, tmp_path / "out", valid_ids=ids, jobs=1)
    assert [cut.id for cut in load(tmp_path / "out", "valid")] == ["valid-spk1-50000", "valid-spk2-50001"]


@pytest.mark.parametrize("line", ["test/spk9/00001", "spk9/00001", "pretrain/spk0/00001"])
def test_validation_never_comes_from_test(corpus, tmp_path, line):
    (tmp_path / "valid.id").write_text(f"spk1/50000\n{line}\n")
    with pytest.raises(UserError, match=r"valid\.id:2: expected a clip of trainval"):
        lrs3.prepare(corpus, tmp_path / "out", valid_ids=tmp_path / "valid.id", jobs=1)


def test_long_clip_is_cut_in_the_middle_of_its_pause(corpus, tmp_path):
    """The pause (words, a laugh left out) lasts from 1.6 to 2.4 s: two segments of one recording, cut at 2.0 s."""
    lrs3.prepare(corpus, tmp_path / "out", max_s=3.0, jobs=1)
    first, second = (cut for cut in load(tmp_path / "out", "pretrain") if "00002" in cut.id)
    assert (first.id, second.id) == ("pretrain-spk0-00002-0", "pretrain-spk0-00002-1")
    assert first.recording.id == second.recording.id == "pretrain-spk0-00002"
    assert (first.start, first.end, second.start, second.end) == (0.0, 2.0, 2.0, 4.0)
    assert (first.supervisions[0].text, second.supervisions[0].text) == ("so many", "words here")
    words = second.supervisions[0].alignment["word"]
    assert [(word.symbol, word.start, word.end) for word in words] == [("words", 0.4, 1.0), ("here", 1.1, 1.7)]


def test_alignment_stays_right_when_a_cut_is_truncated(corpus, tmp_path):
    """supervision.start + item.start is the time in the cut: lhotse moves the first and leaves the second alone."""
    lrs3.prepare(corpus, tmp_path / "out", max_s=3.0, jobs=1)
    second = next(cut for cut in load(tmp_path / "out", "pretrain") if cut.id.endswith("00002-1"))
    supervision = second.truncate(offset=0.3, duration=1.0).supervisions[0]
    item = supervision.alignment["word"][0]
    assert (item.symbol, supervision.start + item.start) == ("words", pytest.approx(0.1))


@pytest.mark.parametrize("seed", range(40))
def test_segments_hold_every_word_once_and_none_is_too_long(seed):
    """For random words: each in one segment that spans it, in order, all at most 15 s, on the 25 Hz grid."""
    rng = np.random.default_rng(seed)
    time, words = rng.exponential(1.0), []
    for index in range(rng.integers(1, 300)):
        length = rng.uniform(0.02, 1.0)
        words.append(AlignmentItem(str(index), round(time, 2), round(length, 2)))
        # Now and then a long silence, now and then an overlap.
        time += length + rng.choice([0.0, 0.1, 0.6, 3.0, 40.0, -0.01], p=[0.5, 0.3, 0.14, 0.03, 0.01, 0.02])
    num_frames = int((time + rng.exponential(5.0)) * 25) + 1
    segments = split_at_pauses(words, num_frames, 375)
    assert [index for s in segments for index in range(s.first, s.last)] == list(range(len(words)))
    for before, after in itertools.pairwise(segments):
        assert before.end <= after.start
    for segment in segments:
        assert 0 <= segment.start < segment.end <= num_frames
        assert segment.end - segment.start <= 375
        for word in words[segment.first : segment.last]:
            assert segment.start / 25 - 0.05 <= word.start and word.end <= segment.end / 25 + 0.05


def test_without_a_pause_the_cut_is_at_the_widest_gap():
    words = [AlignmentItem("a", 0.6 * k, 0.5) for k in range(30)]
    words[20:] = [word._replace(start=word.start + 0.2) for word in words[20:]]  # a gap of 0.3 s at 11.9 s
    (first, second) = split_at_pauses(words, 460, 375)
    assert (first.last, second.first) == (20, 20)
    assert 11.9 <= first.end / 25 <= 12.2


def test_times_that_cannot_be_right_are_refused():
    with pytest.raises(BadItem, match="no times of words"):
        split_at_pauses([], 500, 375)
    with pytest.raises(BadItem, match=r"`a` lasts 17\.0 s"):
        split_at_pauses([AlignmentItem("a", 1.0, 17.0)], 500, 375)


LONG_GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.4
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.4
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.4
            text = "HELLO"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.4
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 2.5e-01
            text = "HH"
        intervals [3]:
            xmin = 0.25
            xmax = 0.4
            text = "AH0"
"""
PHONES = [("sil", 0.0, 0.1), ("HH", 0.1, 0.15), ("AH0", 0.25, 0.15)]


def triples(items: list[AlignmentItem]) -> list[tuple]:
    return [(item.symbol, pytest.approx(item.start), pytest.approx(item.duration)) for item in items]


@pytest.mark.parametrize("form", ["long", "short", "utf-16", "ctm"])
def test_phones_are_read_from_every_form_of_file(corpus, tmp_path, form):
    """TextGrid, long or short, in UTF-8 or 16, and CTM give the same phones on the cut."""
    place = tmp_path / "ali" / "test" / "spk9" / "00001.TextGrid"
    place.parent.mkdir(parents=True)
    if form == "ctm":
        lines = [f"test/spk9/00001 1 {start} {length} {symbol}\n" for symbol, start, length in PHONES]
        (tmp_path / "ali" / "phones.ctm").write_text("other 1 0.0 0.1 sil\n" + "".join(lines) + "z 1 0 0.1 sil\n")
    elif form == "short":
        rows = [line.split("=")[-1].strip() for line in LONG_GRID.splitlines() if "=" in line or "<exists>" in line]
        place.write_text("\n".join(row.replace("tiers? ", "") for row in rows))
    else:
        place.write_text(LONG_GRID, encoding="utf-16" if form == "utf-16" else "utf-8")
    lrs3.prepare(corpus, tmp_path / "out", alignments=tmp_path / "ali", jobs=1)
    found = load(tmp_path / "out", "test")[0].supervisions[0].alignment
    assert triples(found["phone"]) == PHONES
    if form != "ctm":
        assert triples(found["word"]) == [("hello", 0.1, 0.3)]


def test_alignments_of_no_clip_are_an_error(corpus, tmp_path):
    (tmp_path / "phones.ctm").write_text("nobody 1 0 0.1 sil\n")
    with pytest.raises(UserError, match="no alignment has the name of a clip"):
        lrs3.prepare(corpus, tmp_path / "out", alignments=tmp_path / "phones.ctm", jobs=1)
    with pytest.raises(UserError, match="TextGrid"):
        alignments.find(tmp_path / "empty")


def test_translations_arrive_on_the_cuts(corpus, tmp_path, capsys):
    """By split or without, in lower case; of a clip that is split at its pause none; counted."""
    lines = ["test/spk9/00001\tHola  Niño", "spk1/50000.mp4\tadiós", "pretrain/spk0/00001\tsí", "spk0/00002\tno"]
    lines += ["trainval/spk2/50000\t \n", "test/spk8/1\tnadie", "spk7/2\tnadie"]
    tsv = tmp_path / "es.tsv"
    tsv.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    lrs3.prepare(corpus, out, max_s=3.0, translations=tsv, translation_language="es", jobs=1)
    cuts = {cut.id.partition("-")[2]: cut for part in load_all(out).values() for cut in part}
    custom = {name: cut.supervisions[0].custom for name, cut in cuts.items() if cut.supervisions[0].custom}
    assert custom == {
        "spk9-00001": {"translation": {"es": "hola niño"}},
        "spk1-50000": {"translation": {"es": "adiós"}},
        "spk0-00001": {"translation": {"es": "sí"}},
    }
    assert {"spk0-00002-0", "spk0-00002-1"} <= set(cuts)
    said = capsys.readouterr().err
    assert f"{tsv}: translations (es) of 4 of 15 clips" in said
    assert "clips of pretrain longer than 3 s are cut at pauses: their parts have no translation" in said
    assert "2 of its clips are not in the corpus, such as test/spk8/1" in said
    rejected = [json.loads(line)["reason"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert rejected == [f"{tsv}:5: no translation of trainval/spk2/50000; the clip goes without"]
    with pytest.raises(UserError, match=r"no translation of trainval/spk2/50000.*--strict stops here"):
        lrs3.prepare(corpus, tmp_path / "strict", translations=tsv, strict=True, jobs=1)
    lrs3.prepare(corpus, out, max_s=3.0, translations=tsv, translation_language="es", jobs=1)
    assert "current, nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"es\.tsv: no such file or folder"),
        ("", "no translation of a clip of this corpus; expected lines like pretrain/spk0/00001<TAB>TRANSLATION"),
        ("spk7/1\tnadie\n", "no translation of a clip of this corpus"),
        ("spk9/00001 hola\n", r"es\.tsv:1: expected a clip, a tab and its translation, found 'spk9/00001 hola'"),
        ("spk1/50000\thola\nspk9/00001\thello\thola\n", r"es\.tsv:2: expected a clip, a tab"),
        ("spk9/00001\thola\ntest/spk9/00001.mp4\tadiós\n", r"es\.tsv:2: test/spk9/00001 comes twice; keep one"),
    ],
)
def test_translations_that_cannot_be_read_are_one_line(corpus, tmp_path, content, message):
    if content is not None:
        (tmp_path / "es.tsv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        lrs3.prepare(corpus, tmp_path / "out", translations=tmp_path / "es.tsv", jobs=1)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_second_run_has_nothing_to_do_and_other_settings_want_another_folder(corpus, tmp_path, capsys):
    lrs3.prepare(corpus, tmp_path / "out", jobs=1)
    before = (tmp_path / "out" / "cuts_trainval.jsonl.gz").stat().st_mtime_ns
    capsys.readouterr()
    lrs3.prepare(corpus, tmp_path / "out", jobs=1)
    assert "current, nothing to do" in capsys.readouterr().err
    assert (tmp_path / "out" / "cuts_trainval.jsonl.gz").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another `max_s` \(15.0, now 3.0\); give another folder"):
        lrs3.prepare(corpus, tmp_path / "out", max_s=3.0, jobs=1)
    lrs3.prepare(corpus, tmp_path / "other", max_s=3.0, jobs=1)
    assert len(load(tmp_path / "other", "pretrain")) == 3


def test_check_looks_and_writes_nothing(corpus, tmp_path, capsys):
    lrs3.prepare(corpus, check=True)
    said = capsys.readouterr().err
    assert "trainval: 12 clips of 4 speakers, 0 without transcript" in said and "complete" in said
    lonely = tmp_path / "lonely"
    write_clip(lonely / "trainval" / "a" / "1.mp4", numbered_frames(5), beep(0.2, 0.0))
    with pytest.raises(UserError, match="missing"):
        lrs3.prepare(lonely, check=True)
    said = capsys.readouterr().err
    assert "a clip without its transcript 1.txt" in said and "pretrain: missing or empty" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lonely"]


def test_marks_in_brackets_are_no_words():
    assert clean("Text {LG} IS (APPLAUSE) what  it's [NOISE] a(b) {NS}") == "text is what it's a(b)"


def test_all_real_grid_clips_become_cuts(shared, tmp_path):
    """72 clips of 3 s; every one in one split, with its six words and their times."""
    grid.prepare(shared / "data" / "grid", tmp_path / "out", jobs=1)
    found = load_all(tmp_path / "out")
    assert {split: len(cuts) for split, cuts in found.items()} == {"pretrain": 0, "trainval": 58, "valid": 7, "test": 7}
    cuts = [cut for part in found.values() for cut in part]
    assert len({(cut.supervisions[0].speaker, cut.recording.id.split("-")[-1]) for cut in cuts}) == 72
    for cut in cuts:
        assert (cut.duration, cut.num_samples) == (3.0, 48_000)
        words = cut.supervisions[0].alignment["word"]
        assert len(words) == 6 and " ".join(word.symbol for word in words) == cut.supervisions[0].text
        clip = splits.Clip(split="test", speaker="s1", name=cut.id.split("-")[-1], media=Path(cut.source["path"]))
        assert grid.spelled(clip) == cut.supervisions[0].text


def test_grid_is_read_in_each_of_its_layouts(tmp_path):
    """Alignments under alignments/, align/ or the speaker; without one the name spells the text."""
    for speaker, where in [("s1", "alignments/s1"), ("s2", "align/s2"), ("s3", "s3/align"), ("s4", None)]:
        write_clip(tmp_path / "grid" / speaker / "video" / "bbaf2n.mp4", numbered_frames(10), beep(0.4, 0.1))
        if where:
            (tmp_path / "grid" / where).mkdir(parents=True)
            words = "0 2000 sil\n2000 4000 bin\n4000 5000 sp\n5000 9000 blue\n"
            (tmp_path / "grid" / where / "bbaf2n.align").write_text(words)
    (tmp_path / "grid" / "align" / "s2" / "lgwm5a.align").write_text("0 2000 lay\n")
    grid.prepare(tmp_path / "grid", tmp_path / "out", jobs=1)
    texts = {cut.supervisions[0].speaker: cut.supervisions[0].text for cut in load(tmp_path / "out", "trainval")}
    assert texts == {"s1": "bin blue", "s2": "bin blue", "s3": "bin blue", "s4": "bin blue at f two now"}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 1 and "without its clip lgwm5a" in rejected[0]["reason"]


def test_grid_splits_by_speaker_if_asked(shared):
    found, _ = grid.find_clips(shared / "data" / "grid")
    parts = grid.split(found, unseen=True, seed=0)
    assert {clip.speaker for clip in parts if clip.split == "test"} == {"s1", "s20"}
    assert {clip.speaker for clip in parts if clip.split != "test"} == {"s3", "s4", "s5", "s23"}


def test_clips_without_transcript_are_for_pretraining_only(tmp_path):
    folder = tmp_path / "own"
    for name in ("a/1.mp4", "a/2.mkv", "b/3.mp4", "b/4.avi"):
        write_clip(folder / name, numbered_frames(10), beep(0.4, 0.1))
    write_clip(folder / "c" / "5.wav", None, beep(0.4, 0.1, 44_100), rate=44_100)
    for name, text in [("a/1", "Hello there"), ("a/2", "Text:  YES\nConf: 1\n"), ("b/3", "two\nlines"), ("c/5", "Aye")]:
        (folder / f"{name}.txt").write_text(text)
    (folder / "README.txt").write_text("not a transcript")
    (folder / "c" / "6.txt").write_text("no clip")
    clips.prepare(folder, tmp_path / "out", jobs=1)
    found = load_all(tmp_path / "out")
    texts = {cut.supervisions[0].text for split in ("trainval", "valid", "test") for cut in found[split]}
    assert texts == {"hello there", "yes", "two lines", "aye"}
    assert all(len(found[split]) >= 1 for split in ("trainval", "valid", "test"))
    assert [cut.supervisions[0].text for cut in found["pretrain"]] in ([], [None])
    sound = next(cut for part in found.values() for cut in part if cut.supervisions[0].text == "aye")
    assert not sound.has_custom("source") and sound.num_samples == 6400
    assert {cut.corpus for part in found.values() for cut in part} == {"clips"}  # what figures were measured on
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "6.txt: a transcript without its clip" in rejected and "README" not in rejected


def test_a_stand_in_for_lrs3_says_what_it_is(tmp_path):
    """Its cuts carry that name, so that no figure on it is taken for one on LRS3."""
    assert lrs3.corpus_of(tmp_path) == "lrs3"
    (tmp_path / lrs3.STAND_IN).write_text("synth digits\n")
    assert lrs3.corpus_of(tmp_path) == "synth digits"


def test_no_speaker_and_no_clip_is_in_two_splits():
    """By speaker where there are three or more, else by clip; the same for the same seed."""
    for speakers in (1, 2, 3, 8):
        listed = [
            splits.Clip(
                split="pretrain", speaker=f"s{k % speakers}", name=str(k), media=Path(), transcript=Path() / "x"
            )
            for k in range(48)
        ]
        parts = clips.split(listed, seed=1)
        assert parts == clips.split(listed, seed=1)
        assert len(parts) == 48 and {clip.split for clip in parts} == {"trainval", "valid", "test"}
        if speakers >= 3:
            homes = {(clip.speaker, clip.split) for clip in parts}
            assert len(homes) == speakers


def make_musan(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind, count, seconds in [("music", 3, 24.5), ("noise", 3, 5.0), ("speech", 12, 4.0)]:
        for k in range(count):
            source = f"v{k % 6}" if kind == "speech" else "synth"
            wave = 0.1 * rng.standard_normal(round(seconds * 16_000))
            write_clip(folder / kind / source / f"{kind}-{k:02d}.wav", None, wave)
    return folder


def test_musan_becomes_pieces_and_babble_without_leaks(tmp_path):
    """Pieces of 3 to 11 s; no file, and no speaker, in two splits; babble is the mean of its split's speech."""
    corpus = make_musan(tmp_path / "musan")
    musan.prepare(corpus, tmp_path / "out", babbles=3, jobs=1)  # a tenth of them would be none to test with
    homes: dict[str, set[str]] = {}
    for kind in (*musan.KINDS, "babble"):
        for split in musan.SPLITS:
            cuts = list(CutSet.from_jsonl_lazy(tmp_path / "out" / f"noise_{kind}_{split}.jsonl.gz"))
            assert cuts
            for cut in cuts:
                assert 3 <= cut.duration <= 11 and cut.sampling_rate == 16_000
                owner = "-".join(cut.recording.id.split("-")[:2]) if kind == "speech" else cut.recording.id
                homes.setdefault(owner, set()).add(split)
    assert all(len(found) == 1 for found in homes.values())
    music = list(CutSet.from_jsonl_lazy(tmp_path / "out" / "noise_music_train.jsonl.gz"))
    assert [cut.duration for cut in music] == [10.0, 10.0, 4.5]
    babble = CutSet.from_jsonl_lazy(tmp_path / "out" / "noise_babble_train.jsonl.gz")[0].load_audio()
    speech = [cut.load_audio()[0] for cut in CutSet.from_jsonl_lazy(tmp_path / "out" / "noise_speech_train.jsonl.gz")]
    mean = np.mean([np.resize(wave, 160_000) for wave in speech], axis=0)  # 8 pieces: all of them, in each mixture
    np.testing.assert_allclose(babble[0], mean, atol=1e-4)


def test_musan_pieces_of_ten_seconds_keep_a_short_rest(tmp_path):
    """21 s give 10 + 11; 12 s give 10 (2 s are dropped); 2 s give nothing."""
    for seconds, expected in [(21.0, [10.0, 11.0]), (12.0, [10.0]), (2.0, []), (10.0, [10.0]), (11.0, [11.0])]:
        path = write_clip(tmp_path / f"{seconds}.wav", None, np.zeros(round(seconds * 16_000)))
        _, cuts = musan.read_pieces(musan.Sound("noise", "train", path, f"n{seconds}"), tmp_path / "audio")
        assert [cut.duration for cut in cuts] == expected


@pytest.mark.parametrize("name", prepare.CORPORA)
def test_every_argument_and_option_of_a_corpus_has_a_help(name):
    """What `mmspeech prepare NAME --help` shows beside each."""
    parameters = inspect.signature(prepare.as_command(prepare.CORPORA[name])).parameters
    assert [key for key, parameter in parameters.items() if not parameter.annotation.__metadata__[0].help] == []
