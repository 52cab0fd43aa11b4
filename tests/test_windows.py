"""Windows over long recordings: what they cover, where words are placed, one text out of many, subtitles."""

import itertools
import re

import kaldialign
import numpy as np
import pytest

from mmspeech.decoding import subtitles, windows
from mmspeech.decoding.windows import Span, Word

SIZE, OVERLAP = 375, 93  # frames: 15 s, a quarter


@pytest.mark.parametrize("num_frames", [1, 5, 93, 375, 376, 400, 657, 658, 1000, 90_000])
def test_windows_cover_everything_and_share_the_overlap(num_frames):
    spans = windows.spans(num_frames, SIZE, OVERLAP)
    assert spans[0].start == 0 and spans[-1].stop == num_frames
    lengths = [span.stop - span.start for span in spans]
    assert 0 < max(lengths) <= SIZE and max(lengths) - min(lengths) <= 1
    assert all(left.stop - right.start == OVERLAP for left, right in itertools.pairwise(spans))
    assert len(spans) == 1 or num_frames > SIZE


def told(rng, vocabulary, pauses=0.0, num_words=400):
    """A long speech: its words with their true places, and (T,) bool where somebody speaks; pauses of 1 to 6 s."""
    words, frame, speaking = [], 0, []
    for text in rng.choice(vocabulary, num_words):
        pause = int(rng.integers(25, 150)) if rng.random() < pauses else 0
        length = 3 * (len(text) + 1) + int(rng.integers(0, 4))  # frames
        speaking += [False] * pause + [True] * length
        words.append(Word(str(text), frame + pause, frame + pause + length, 0.0))
        frame += pause + length
    return words, np.array(speaking)


def heard(words, speaking, mishear=lambda text: text):
    """The windows' texts, joined, if a recognizer hears every word of which a window holds the middle."""
    joined, before, clock = [], None, windows.clock_of(speaking)
    for span in windows.spans(len(speaking), SIZE, OVERLAP):
        inside = [mishear(word.text) for word in words if span.start <= (word.start + word.stop) / 2 < span.stop]
        own = windows.place(" ".join(inside), clock, span)
        overlap = Span(0, 0) if before is None else Span(clock[span.start], clock[before.stop])
        joined = windows.join(joined, own, overlap)
        before = span
    return [word.text for word in joined]


VOCABULARIES = {
    "digits": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "letters": list("abcdefgh"),
    "many": [f"word{n}" for n in range(500)],
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_windows_heard_without_error_give_the_text_back(seed, vocabulary):
    """Exactly, though ten digits or eight letters are repeated all the time."""
    speech, speaking = told(np.random.default_rng(seed), VOCABULARIES[vocabulary])
    assert heard(speech, speaking) == [word.text for word in speech]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_pauses_longer_than_an_overlap_cost_next_to_nothing(vocabulary):
    """Overlaps with a word or none leave room for doubt: under 1 word in 1,000 is lost or doubled."""
    errors = 0
    for seed in range(10):
        speech, speaking = told(np.random.default_rng(seed), VOCABULARIES[vocabulary], pauses=0.08)
        errors += kaldialign.edit_distance([word.text for word in speech], heard(speech, speaking))["total"]
    assert errors < 4


@pytest.mark.parametrize("pauses", [0.0, 0.08])
@pytest.mark.parametrize("seed", range(4))
def test_misheard_words_are_not_doubled_and_little_is_lost(seed, pauses):
    """Every window mishears a fifth of its words, each in its own way; every word is another one."""
    rng = np.random.default_rng(seed)
    speech, speaking = told(rng, ["word"], pauses)
    speech = [word._replace(text=f"{n:04d}") for n, word in enumerate(speech)]
    text = heard(speech, speaking, lambda text: text if rng.random() > 0.2 else f"?{rng.integers(1000)}")
    right = [word for word in text if not word.startswith("?")]
    assert right == sorted(set(right)), "in order, none twice"
    assert len(text) == pytest.approx(len(speech), rel=0.02) and len(right) > 0.75 * len(speech)


def word(text, start, stop):
    """A word where nobody pauses."""
    return Word(text, start, stop, (start + stop) / 2)


def test_a_side_that_heard_nothing_takes_nothing_from_the_other():
    left = [word("now", 270, 300), word("then", 340, 370)]
    assert windows.join(left, [], Span(280, 375)) == left
    assert windows.join([], left, Span(240, 333)) == left
    assert windows.join(left, left, Span(300, 300)) == [*left, *left], "no speech in the overlap"


def test_two_readings_without_a_common_word_are_cut_in_the_middle():
    left = [word(text, 280 + 20 * n, 300 + 20 * n) for n, text in enumerate("abcde")]
    right = [word(text, 280 + 20 * n, 300 + 20 * n) for n, text in enumerate("vwxyz")]
    assert [one.text for one in windows.join(left, right, Span(280, 380))] == ["a", "b", "x", "y", "z"]


def test_words_are_placed_in_the_speech_and_not_in_its_pauses():
    """One second of silence, one word, a second of silence, one word: each lies where somebody speaks."""
    clock = windows.clock_of(np.repeat([True, False, True, False, True], 25))
    found = windows.place("four nine", clock, Span(25, 125))
    assert found == [Word("four", 50, 75, 37.5), Word("nine", 100, 125, 62.5)]
    silent = windows.place("four nine", windows.clock_of(np.zeros(100, bool)), Span(0, 100))
    assert [(one.start, one.stop) for one in silent] == [(0, 50), (50, 100)]
    assert windows.place(" ", clock, Span(0, 125)) == []


def test_subtitles_are_numbered_lines_with_their_times():
    words = [word("hello", 10, 25), word("there", 26, 40), word("later", 90_000, 90_050)]
    wanted = "1\n00:00:00,900 --> 00:00:02,100\nhello there\n\n2\n01:00:00,500 --> 01:00:02,500\nlater\n"
    assert subtitles.srt(words, start_s=0.5) == wanted
    assert subtitles.srt([]) == ""


def test_subtitles_are_short_enough_to_read_and_follow_each_other():
    """At most 42 characters and 6 s (a longer word stands alone), no two at once, whatever the estimates are."""
    rng = np.random.default_rng(0)
    words, _ = told(rng, ["a", "quick", "fox", "incomprehensibility" * 3])
    words = [one._replace(start=max(0, one.start + int(rng.integers(-9, 9)))) for one in words]
    blocks = subtitles.srt(words).split("\n\n")
    texts, times = [], []
    for number, block in enumerate(blocks, start=1):
        index, clock, text = block.strip().split("\n")
        assert index == str(number) and (len(text) <= 42 or " " not in text)
        found = re.fullmatch(r"(\d\d):(\d\d):(\d\d),(\d\d\d) --> (\d\d):(\d\d):(\d\d),(\d\d\d)", clock)
        numbers = [int(group) for group in found.groups()]
        times += [3600e3 * h + 60e3 * m + 1e3 * s + ms for h, m, s, ms in (numbers[:4], numbers[4:])]
        texts.append(text)
    assert " ".join(texts) == " ".join(one.text for one in words)
    assert times == sorted(times) and all(a < b for a, b in zip(times[::2], times[1::2], strict=True))
    assert max(b - a for a, b in zip(times[::2], times[1::2], strict=True)) <= 8000
