"""The embedded corpus: what is fixed by the seed, what lips tell, and whether sound, picture and labels agree."""

import builtins
import json
import re

import av
import numpy as np
import pytest
import soundfile

from mmspeech.corpora import (
    gigaspeech,
    synth,
    synth_face,
    synth_lips,
    synth_paint,
    synth_speech,
    synth_talks,
    synth_text,
    synth_video,
    tedlium3,
)
from mmspeech.corpora.lrs3 import STAND_IN
from mmspeech.corpora.synth_speech import Mark
from mmspeech.data import espeak
from mmspeech.data.cutfiles import open_cuts
from mmspeech.errors import UserError

pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")

COUNTS = {"pretrain": 4, "trainval": 2, "test": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus of commands, made in this process."""
    out = tmp_path_factory.mktemp("synth") / "corpus"
    synth.prepare(
        out, vocabulary="commands", pretrain_clips=2, trainval_clips=1, test_clips=1, speakers=3, noise_files=2, jobs=1
    )
    return out


def test_same_seed_gives_same_texts_speakers_looks_and_splits():
    """All that is drawn depends on the seed alone; another seed changes it."""

    def drawn(seed):
        clips = synth.plan_clips(seed, "digits", 0.5, COUNTS, speakers=6)
        return [(clip.id, synth.sentence_of(clip), synth.look_of(clip), synth.voice_of(clip)) for clip in clips]

    assert drawn(0) == drawn(0)
    assert [text for _, text, _, _ in drawn(0)] != [text for _, text, _, _ in drawn(1)]
    assert [voice for _, _, _, voice in drawn(0)] != [voice for _, _, _, voice in drawn(1)]


def test_more_clips_leave_the_first_ones_as_they_were():
    """A larger corpus contains the smaller one's texts."""
    small = synth.plan_clips(0, "digits", 0.5, COUNTS, speakers=6)
    large = synth.plan_clips(0, "digits", 0.5, {split: 3 * n for split, n in COUNTS.items()}, speakers=6)
    assert set(small) < set(large)


def test_no_speaker_is_in_two_splits_or_in_the_noise():
    """Speakers and timbres of pretrain, trainval, test and noise are disjoint; those of one timbre differ otherwise."""
    clips = synth.plan_clips(0, "digits", 0.5, {split: 80 for split in synth.SPLITS}, speakers=120)
    people = [{(clip.speaker, synth.voice_of(clip)) for clip in clips if clip.split == split} for split in synth.SPLITS]
    assert [len(group) for group in people] == [59, 43, 18]
    assert len({voice for group in people for _, voice in group}) == 120
    groups = [{voice.timbre for _, voice in group} for group in people]
    groups.append({sound.timbre for sound in synth.plan_sounds(0, 320) if sound.kind == "speech"})
    assert all(2 <= len(group & synth.synth_speech.HIGH_TIMBRES) < len(group) / 2 for group in groups)
    assert sum(map(len, groups)) == len(set.union(*groups)) == len(synth.synth_speech.TIMBRES)


def test_a_longer_vocal_tract_lowers_formants_and_keeps_the_rate():
    """The same voice with a longer tract: its spectrum lies lower, words take as long, times still fit the sound."""
    words = ["five", "nine", "six"]
    voice = synth_speech.Voice("en-US", "m1", 1.0, 160, 50, 50)
    spectra, durations = [], []
    for tract in (0.9, 1.1):
        speech = synth_speech.speak(words, words, voice._replace(tract=tract))
        power = np.abs(np.fft.rfft(speech.samples)) ** 2
        spectra.append((np.fft.rfftfreq(len(speech.samples), 1 / 16000) * power).sum() / power.sum())
        durations.append(speech.words[-1].end_s - speech.words[0].start_s)
        assert speech.phones[-1].end_s == pytest.approx(len(speech.samples) / 16000, abs=0.02)
    assert spectra[0] / spectra[1] > 1.1
    assert durations[0] == pytest.approx(durations[1], rel=0.08)


def test_default_test_set_has_two_thousand_words():
    """400 clips of 4 to 8 digits."""
    clips = synth.plan_clips(0, "digits", 0.5, {"pretrain": 1, "trainval": 1, "test": 400}, speakers=36)
    texts = [synth.sentence_of(clip).words for clip in clips if clip.split == "test"]
    assert sum(map(len, texts)) >= 2000
    assert {len(words) for words in texts} == {4, 5, 6, 7, 8}


def test_homophenes_share_one_shape_and_others_do_not():
    """p b m, f v, t d n s z, k g h: the lips aim at the same."""
    for same in (("P", "B", "M"), ("F", "V"), ("T", "D", "N", "S", "Z"), ("K", "G", "HH"), ("IY", "IH")):
        assert len({synth_lips.target(phone) for phone in same}) == 1
    assert len({synth_lips.target(phone) for phone in ("P", "F", "T", "K", "R", "W", "AO", "IY", "AH", "AA")}) == 10
    assert set(synth_speech.PHONES.values()) <= set(synth_lips.LOOKS_LIKE)


@pytest.mark.parametrize("difficulty", [0.0, 0.5])
def test_mouth_opens_for_vowels_and_closes_for_m(difficulty):
    """Averaged over speakers, landmarks are further apart at the middle of AA than of M."""
    rng = np.random.default_rng(0)
    phones = [Mark("M", 0.2, 0.32), Mark("AA", 0.32, 0.56), Mark("M", 0.56, 0.68)]
    gaps = []
    for _ in range(20):
        habits = synth_lips.draw_habits(difficulty, rng)
        mouth = synth_lips.move(phones, [Mark("mam", 0.2, 0.68)], 22, habits, rng)
        points = synth_face.landmarks(synth_face.draw_look(difficulty, rng), mouth, np.zeros(22, bool))
        gaps.append(points[:, 66, 1] - points[:, 62, 1])
    gap = np.mean(gaps, axis=0)
    assert gap[11] > 1.5 * max(gap[6], gap[15])


def test_landmarks_form_a_face():
    """Order of iBUG-68, in face units: eyes over nose over lips over chin; left of the picture before right."""
    mouth = np.zeros((2, 6))
    mouth[1, 0] = 1.0
    closed, wide = synth_face.landmarks(
        synth_face.draw_look(0.5, np.random.default_rng(0)), mouth, np.zeros(2, dtype=bool)
    )
    assert (np.diff(closed[:17, 0]) > 0).all() and closed[8, 1] == closed[:, 1].max()
    assert (
        closed[17:27, 1].max() < closed[36:48, 1].min() < closed[33, 1] < closed[51, 1] < closed[57, 1] < closed[8, 1]
    )
    assert closed[36, 0] == -1.0 and closed[45, 0] == 1.0 and (np.diff(closed[48:55, 0]) > 0).all()
    assert closed[60, 0] > closed[48, 0] and closed[64, 0] < closed[54, 0]
    assert wide[57, 1] - wide[51, 1] > closed[57, 1] - closed[51, 1] + 0.2 and wide[8, 1] > closed[8, 1] + 0.1


def test_picture_has_its_lips_where_the_landmarks_say():
    """Against the same film with another mouth, what changes lies around the mean of landmarks 48-67."""
    rng = np.random.default_rng(0)
    look = synth_face.draw_look(0.5, rng)
    camera = synth_video.Camera(light_angle=0, light_slope=0, exposure=1, flicker=0, noise=0, blur=0, crf=20)
    maps = synth_video.head_motion(1, 0.5, rng)
    blinks = np.zeros(1, dtype=bool)
    pictures, centres = [], []
    for teeth in (0.0, 1.0):  # only what is inside the lips differs
        mouth = np.array([[0.5, 0.0, 0.0, 0.0, teeth, 0.0]])
        points = synth_face.landmarks(look, mouth, blinks)
        painting = synth_paint.Painter(look).paint(mouth, blinks, points)
        pictures.append(next(synth_video.film(painting, maps, camera, rng))[: synth_video.SIZE].astype(float))
        centres.append(synth_video.to_pixels(points, maps)[0, 48:68].mean(axis=0))
    change = np.abs(pictures[1] - pictures[0])
    rows, columns = np.nonzero(change > 20)
    assert np.abs(np.array([columns.mean(), rows.mean()]) - centres[0]).max() < 4.0


def test_layout_is_that_of_lrs3_and_musan(corpus):
    """mp4 and txt per clip; word times in pretrain only; alignments, landmarks, noise and translations beside them."""
    texts = sorted((corpus / "lrs3").glob("*/*/*.txt"))
    assert [path.parent.parent.name for path in texts] == ["pretrain", "pretrain", "test", "trainval"]
    for path in texts:
        split, speaker, name = path.parts[-3], path.parts[-2], path.stem
        lines = path.read_text().splitlines()
        text = re.fullmatch(r"Text:  ([A-Z ]+)", lines[0])[1]
        assert lines[1].startswith("Conf:  ")
        if split == "pretrain":
            assert lines[2:4] == ["", "WORD START END ASDSCORE"]
            assert [line.split()[0] for line in lines[4:]] == text.split()
        else:
            assert len(lines) == 2
        assert path.with_suffix(".mp4").exists()
        assert (corpus / "alignments" / split / speaker / f"{name}.TextGrid").exists()
        digit = text.lower().split()[4]
        for language, digits in (("es", synth_text.SPANISH_DIGITS), ("de", synth_text.GERMAN_DIGITS)):
            rows = (corpus / "translations" / f"{language}.tsv").read_text().splitlines()
            (row,) = [row for row in rows if row.startswith(f"{split}/{speaker}/{name}\t")]
            assert len(rows) == len(texts) and digits[synth_text.DIGITS.index(digit)] in row.split()
    assert (corpus / "lrs3" / STAND_IN).read_text().startswith("synth ")
    for kind in ("speech", "music", "noise"):
        wavs = list((corpus / "musan" / kind).rglob("*.wav"))
        assert wavs and all(soundfile.info(wav).samplerate == 16000 for wav in wavs)
    assert (corpus / "rejected.jsonl").read_text() == ""


def test_streams_labels_and_landmarks_cover_the_same_time(corpus):
    """25 frames per second from 0, sound from 0 that lasts as long, labels within, one row of landmarks per frame."""
    for mp4 in (corpus / "lrs3").glob("*/*/*.mp4"):
        with av.open(str(mp4)) as container:
            times = [frame.time for frame in container.decode(video=0)]
        with av.open(str(mp4)) as container:
            blocks = list(container.decode(audio=0))
        assert np.allclose(times, np.arange(len(times)) / 25)
        assert blocks[0].pts == 0 and blocks[0].sample_rate == 16000
        sound = np.concatenate([block.to_ndarray()[0] for block in blocks])
        assert 0 <= len(sound) / 16000 - len(times) / 25 < 0.1
        where = mp4.relative_to(corpus / "lrs3")
        pixels = np.load((corpus / "landmarks" / where).with_suffix(".npy"))
        assert pixels.shape == (len(times), 68, 2) and pixels.dtype == np.float16
        assert pixels[:, 48:].min() > 0 and pixels[:, 48:].max() < synth_video.SIZE
        grid = (corpus / "alignments" / where).with_suffix(".TextGrid").read_text()
        marks = re.findall(r'xmin = (\S+)\s+xmax = (\S+)\s+text = "(.*)"', grid)
        starts, ends = np.array([[float(a), float(b)] for a, b, _ in marks]).T
        assert starts.min() == 0 and (ends > starts).all() and np.allclose(ends.max(), len(times) / 25)
        first = next(float(end) for _, end, label in marks if label == "sil")  # where speech begins
        last = max(float(b) for _, b, label in marks if label not in ("", "sil"))
        level = np.sqrt(np.convolve(sound**2, np.ones(160) / 160, mode="same"))
        loud = np.nonzero(level > 0.1 * level.max())[0] / 16000
        assert first - 0.01 < loud[0] < first + 0.15 and last - 0.25 < loud[-1] < last + 0.05


def test_written_sound_is_in_step_with_the_one_given(tmp_path):
    """What AAC delays, the mp4 takes back: clicks come out within a millisecond of where they went in."""
    samples = np.zeros(16000, np.float32)
    clicks = [3000, 9000, 14000]
    samples[clicks] = 0.9
    frames = [np.full((synth_video.SIZE * 3 // 2, synth_video.SIZE), 128, np.uint8)] * 25
    synth_video.write_mp4(tmp_path / "a.mp4", frames, samples, crf=30)
    with av.open(str(tmp_path / "a.mp4")) as container:
        sound = np.concatenate([block.to_ndarray()[0] for block in container.decode(audio=0)])
    for click in clicks:
        assert abs(np.abs(sound[click - 800 : click + 800]).argmax() - 800) <= 16


def test_speech_has_its_words_in_order_and_phones_inside_them():
    """espeak-ng's events: every word has phones, times rise, accents share one set of phones."""
    sentence = synth_text.commands(np.random.default_rng(3))
    for accent in synth_speech.ACCENTS:
        voice = synth_speech.Voice(accent, "m3", 1.0, 170, 50, 50)
        speech = synth_speech.speak(sentence.words, sentence.spoken, voice)
        assert tuple(word.label for word in speech.words) == sentence.words
        edges = [time for word in speech.words for time in (word.start_s, word.end_s)]
        assert edges == sorted(edges) and edges[-1] <= len(speech.samples) / 16000
        assert {phone.label for phone in speech.phones} <= set(synth_lips.LOOKS_LIKE)


def test_missing_espeak_says_how_to_get_it(monkeypatch, tmp_path):
    """One line with the package to install, before any work."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "espeakng_loader":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    espeak.start_engine.cache_clear()
    with pytest.raises(UserError, match=r"pip install mmspeech\[synth\]"):
        synth.prepare(tmp_path / "out", pretrain_clips=1, trainval_clips=1, test_clips=1)
    espeak.start_engine.cache_clear()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"vocabulary": "poems"}, "digits"),
        ({"difficulty": 3.0}, "0 to 1"),
        ({"speakers": 2}, "at least 3"),
    ],
)
def test_impossible_settings_are_one_line(tmp_path, setting, message):
    """The line says what is expected."""
    with pytest.raises(UserError, match=message):
        synth.prepare(tmp_path / "out", **setting)


def test_text_and_talks_come_in_their_own_layouts_and_say_nothing_of_the_test(tmp_path, monkeypatch):
    """Sentences, talks and recordings become cuts by the corpora's own preparers; phones lie in the talks' words."""
    monkeypatch.setattr(synth_talks, "SENTENCES", 2)
    monkeypatch.setattr(synth_talks, "TRAINED", 2)
    sizes = {"pretrain_clips": 1, "trainval_clips": 1, "test_clips": 1, "speakers": 3, "noise_files": 1, "jobs": 1}
    synth.prepare(tmp_path / "made", vocabulary="digits", sentences=50, talks=2, recordings=1, **sizes)
    lines = (tmp_path / "made/text/sentences.txt").read_text().splitlines()
    assert len(lines) == 50 and {len(line.split()) for line in lines} == {4, 5, 6, 7, 8}
    tedlium3.prepare(tmp_path / "made/tedlium", tmp_path / "ted", alignments=tmp_path / "made/talk-alignments", jobs=1)
    gigaspeech.prepare(tmp_path / "made/gigaspeech", tmp_path / "giga", source="youtube", jobs=1)
    talks, recordings = (list(open_cuts(tmp_path / name / "cuts_trainval.jsonl.gz")) for name in ("ted", "giga"))
    assert [cut.id for cut in talks[::2]] == ["trainval-t0000-talk-0000", "trainval-t0001-talk-0000"]
    held_out = list(open_cuts(tmp_path / "ted/cuts_valid.jsonl.gz"))
    assert [cut.id for cut in held_out[::2]] == ["valid-t0002-talk-0000"]
    talks += held_out
    assert [cut.id for cut in recordings] == ["YOU0000000000_S0000000", "YOU0000000000_S0000001"]
    for cut in talks + recordings:
        wave, words = cut.load_audio()[0], cut.supervisions[0].text.split()
        assert 4 <= len(words) <= 8 and set(words) <= set(synth_text.DIGITS)
        assert np.abs(wave[:1600]).max() < 0.1 < np.abs(wave).max()  # silence before and after, words between
    for cut in talks:
        phones = cut.supervisions[0].alignment["phone"]
        assert phones[0].start == 0 and phones[-1].end == pytest.approx(cut.duration, abs=0.02)
        heard = [item for item in phones if item.symbol != "sil"]
        assert heard[0].start > 0.1 and heard[-1].end < cut.duration - 0.1
    assert {word.symbol for word in talks[0].supervisions[0].alignment["word"]} == set(
        talks[0].supervisions[0].text.split()
    )


def test_sentences_of_the_test_are_never_written(tmp_path):
    """Whatever the vocabulary: what would have been drawn but for them is left out; more lines begin with the fewer."""
    for vocabulary in synth_text.VOCABULARIES:
        everything = synth_talks.Unseen(vocabulary, frozenset())
        synth_talks.write_sentences(tmp_path / "all", everything, 60, seed=1)
        lines = (tmp_path / "all/text/sentences.txt").read_text().splitlines()
        tested = {tuple(line.split()) for line in lines[::3]}
        synth_talks.write_sentences(tmp_path / "some", everything._replace(tested=frozenset(tested)), 20, seed=1)
        kept = (tmp_path / "some/text/sentences.txt").read_text().splitlines()
        assert kept == [line for line in lines if tuple(line.split()) not in tested][:20]


def test_a_corpus_without_text_and_talks_is_the_one_it_was(corpus):
    """The record of a default corpus names none of them, so that those made before stay current."""
    record = json.loads((corpus / "stage.json").read_text())
    assert set(record["settings"]) == {"seed", "vocabulary", "difficulty", "clips", "speakers", "noise_files"}
    assert not (corpus / "text").exists() and not (corpus / "tedlium").exists()


def test_what_makes_it_another_corpus_is_named(corpus):
    """Talks asked of a folder of clips alone: the word that differs, though no default corpus has it."""
    with pytest.raises(UserError, match="holds files of another origin, made without `talks`; give an empty"):
        synth.prepare(corpus, vocabulary="commands", talks=8)


def test_second_run_does_nothing(corpus, capsys):
    """The same settings again: current, whatever the number of processes."""
    before = (corpus / "stage.json").stat().st_mtime_ns
    synth.prepare(
        corpus,
        vocabulary="commands",
        pretrain_clips=2,
        trainval_clips=1,
        test_clips=1,
        speakers=3,
        noise_files=2,
        jobs=7,
    )
    assert (corpus / "stage.json").stat().st_mtime_ns == before
