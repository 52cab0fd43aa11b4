"""`mmspeech extract phones` on tiny cuts: from alignments, at a fixed rate, and by an aligner."""

import itertools
import json

import numpy as np
import pytest
import torch
from cuts import FINETUNE, command, write_cuts, write_run
from lhotse.supervision import AlignmentItem

from mmspeech.cli import extract_features, extract_phones
from mmspeech.data import audio, phone_frames
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.data.phones import ID, IPA_SYMBOLS, SYMBOLS, Lexicon
from mmspeech.data.text import Tokenizer, TokenizerConfig, train_tokenizer
from mmspeech.decoding import align as aligning
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTC, CTCConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder

SIL = ID["SIL"]


@pytest.fixture
def lexicon(tmp_path):
    file = tmp_path / "lexicon.txt"
    file.write_text("one W AH1 N\ntwo T UW1\nbook B UH K\ncat K AE T\n")
    return file


def aligned(path, labels):
    """The cuts, now with the labels one behind the other as an alignment that ends 0.1 s before them; None: without."""
    out = path.with_name("aligned.jsonl.gz")
    with writing_cuts(out) as writer:
        for cut, own in zip(open_cuts(path), labels, strict=True):
            if own is not None:
                step = (cut.duration - 0.1) / len(own)
                items = [AlignmentItem(label, i * step, step) for i, label in enumerate(own)]
                cut.supervisions[0].alignment = {"phone": items}
            writer.write(cut)
    return out


def read(folder, name):
    return {cut.id: cut.load_custom("phones") for cut in open_cuts(folder / name)}


def reasons(folder):
    return [json.loads(line)["reason"] for line in (folder / "rejected.jsonl").read_text().splitlines()]


def test_alignments_become_phones(tmp_path, capsys):
    """Four ids per frame of every cut that has an alignment; others are set aside, by name; run again it is current."""
    path = write_cuts(tmp_path / "data", [1.0, 0.97, 1.3, 1.1], units=None)
    cuts = aligned(path, [["HH", "AH0", "sil"], ["ə", "spn"], None, ["AH", "Q7"]])
    assert command("extract", "phones", cuts, tmp_path / "out") == 0
    found = read(tmp_path / "out", cuts.name)
    assert {name: values.shape for name, values in found.items()} == {"clip000": (25, 4), "clip001": (24, 4)}
    want = np.repeat([ID["HH"], ID["AH"], SIL], [30, 30, 40]).reshape(25, 4)
    np.testing.assert_array_equal(found["clip000"], want)
    assert found["clip001"].dtype == np.uint8 and (found["clip001"].ravel()[-9:] == SIL).all()
    without, unknown = reasons(tmp_path / "out")
    assert without.startswith("clip002: expected a phone alignment, found none;")
    assert unknown.startswith("clip003: phone `Q7`: is neither ARPAbet")
    (cut, *_) = open_cuts(tmp_path / "out" / cuts.name)
    assert cut.custom["phones_from"] == "alignment"
    table = [line.split() for line in (tmp_path / "out" / "phones.txt").read_text().splitlines()]
    assert table == [[symbol, str(i)] for i, symbol in enumerate(SYMBOLS)]
    capsys.readouterr()
    assert command("extract", "phones", cuts, tmp_path / "out") == 0
    assert "current, nothing to do" in capsys.readouterr().err


def test_transcripts_at_a_fixed_rate_are_cut_and_not_padded(tmp_path, lexicon):
    """80 ms per phone: two frames each; a long text ends with its sound, a short one before it; bad ones are named."""
    texts = ["one two", "one two one two one", "cat", "in 1984", " "]
    path = write_cuts(tmp_path / "data", [1.0, 1.0, 1.0, 1.0, 1.0], units=None, texts=texts)
    words = ("extract", "phones", path, tmp_path / "out", "--durations", "cut-or-pad", "--lexicon", lexicon)
    assert command(*words) == 0
    found = read(tmp_path / "out", path.name)
    assert {name: len(values) for name, values in found.items()} == {"clip000": 10, "clip001": 25, "clip002": 6}
    names = [SYMBOLS[i] for i in found["clip000"].ravel()[::8]]
    assert names == ["W", "AH", "N", "T", "UW"]
    digits, empty = reasons(tmp_path / "out")
    assert digits.startswith("clip003: `") and "write numbers as words" in digits
    assert empty.startswith("clip004: expected a transcript with words, found ''")
    assert command(*words[:3], tmp_path / "slow", *words[4:], "--phone-ms", 120) == 0
    assert len(read(tmp_path / "slow", path.name)["clip002"]) == 9


def test_another_language_has_its_own_symbols(tmp_path, capsys):
    """Spanish: letters of IPA and a phones.txt of their number; cuts in another language are set aside."""
    path = write_cuts(tmp_path / "data", [1.0, 1.0], units=None, texts=["perro", "dog"])
    own = path.with_name("cuts_es.jsonl.gz")
    with writing_cuts(own) as writer:
        for cut, language in zip(open_cuts(path), ["es", "en"], strict=True):
            cut.supervisions[0].language = language
            writer.write(cut)
    lexicon = tmp_path / "es.txt"
    lexicon.write_text("perro p e rr o\ndog d o g\n".replace("rr", "r"))
    options = ("--durations", "cut-or-pad", "--lexicon", lexicon, "--language", "es")
    assert command("extract", "phones", own, tmp_path / "out", *options) == 0
    ids = read(tmp_path / "out", own.name)["clip000"].ravel()[::8]
    assert [IPA_SYMBOLS[i] for i in ids] == ["p", "e", "r", "o"]
    assert len((tmp_path / "out" / "phones.txt").read_text().splitlines()) == len(IPA_SYMBOLS)
    assert "its language is en, but phones of es are asked for" in reasons(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--aligner", "x", "--durations", "cut-or-pad"], "leave one of them out"),
        (["--phone-ms", "80"], "--phone-ms 80: expected a multiple of 10, with --durations cut-or-pad"),
        (["--phone-ms", "85", "--durations", "cut-or-pad"], "--phone-ms 85: expected a multiple of 10"),
        (["--lexicon", "x"], "--lexicon x: alignments have phones already"),
        (["--lexicon", "x", "--durations", "cut-or-pad"], "x: no such file or folder"),
        (["--aligner", "nowhere"], r"nowhere: expected tokenizer.json in it"),
        ([], "no cut has phones; reasons in"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, options, message):
    path = write_cuts(tmp_path / "data", [1.0], units=None)
    assert command("extract", "phones", path, tmp_path / "out", *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line


@pytest.mark.parametrize("seed", range(5))
def test_aligner_finds_the_boundaries_that_made_up_probabilities_have(seed):
    """Phones sound from their first to their last frame, silences and gaps of blanks lie between words."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(4, 43, size).tolist() for size in rng.integers(1, 5, 4)]
    frames, wanted = [], []
    for number, word in enumerate([[], *words]):
        gap = int(rng.integers(5, 9)) if number else int(rng.integers(4, 9))
        for phone, (before, after) in zip(word, itertools.pairwise([None, *word]), strict=True):
            if before == after:  # CTC needs a blank between equal ones, which the first of them gets
                frames, wanted = [*frames, 0], [*wanted, after]
            sounds = int(rng.integers(1, 5))
            frames, wanted = [*frames, *[phone] * sounds], [*wanted, *[phone] * sounds]
        # A frame of blanks on either side of a silence is still the phone's.
        edge = [wanted[-1]] if wanted else []
        wanted += [*edge, *[SIL] * (gap - 2)] if number and number < len(words) else [*edge, *[SIL] * (gap - 1)]
        following = words[number][0] if number < len(words) else None
        wanted += [following] if following is not None else []
        frames += [0] * gap
    log_probs = torch.full((len(frames), 46), 0.01)
    log_probs[torch.arange(len(frames)), torch.tensor(frames)] = 0.5
    log_probs[torch.arange(len(frames)), torch.from_numpy(rng.integers(0, 46, len(frames)))] += 0.2  # noise
    found = aligning.align(log_probs.log(), words, blank=0, silence=SIL)
    assert found.tolist() == wanted[: len(frames)]


def test_short_gaps_are_shared_and_nothing_is_silent_in_a_word():
    """Peaks far apart, as of real CTC: the middle between two is the boundary, whatever the distance in a word."""
    path = [0, 7, 0, 0, 0, 0, 0, 0, 8, 0, 0, 9, 0, 0]
    log_probs = torch.nn.functional.one_hot(torch.tensor(path), 46).float().add(1e-3).log()
    found = aligning.align(log_probs, [[7, 8], [9]], blank=0, silence=SIL)
    assert found.tolist() == [7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 9, 9, 9, 9]
    assert aligning.align(log_probs, [[7], [8, 9]], blank=0, silence=SIL).tolist()[:9] == [7, 7, 7] + [SIL] * 4 + [8, 8]


def test_equal_phones_need_a_frame_more():
    assert aligning.frames_needed([[7, 7], [7, 8]]) == 6
    log_probs = torch.rand(6, 46).log_softmax(-1)
    assert aligning.align(log_probs, [[7, 7], [7, 8]], blank=0, silence=SIL).tolist() == [7, 7, 7, 7, 7, 8]


STREAMS = {"audio": {"frontend": "linear", "size": 104}}
SIZES = dict(num_layers=1, dim=16, ffn_dim=32, heads=2, position_groups=4, position_kernel=8)


def tiny_encoder():
    torch.manual_seed(0)
    return AVEncoder(AVEncoderConfig(streams=STREAMS, **SIZES), {"audio": {"reader": "logmel"}}).eval()


def test_aligner_does_not_depend_on_the_batch_and_writes_every_frame(tmp_path, lexicon):
    """An untrained recognizer of phones: each word's phones in their order, T frames, each id four times."""
    texts = ["one two", "book", "cat one two", "two " * 40]
    path = write_cuts(tmp_path / "data", [1.0, 0.6, 1.23, 1.0], units=None, texts=texts)
    tokenizer = train_tokenizer(texts, TokenizerConfig(kind="phones", lexicon=lexicon))
    recognizer.save(CTC(tiny_encoder(), CTCConfig(), tokenizer.size), tokenizer, tmp_path / "model")
    words = ("extract", "phones", path, tmp_path / "out", "--aligner", tmp_path / "model", "--device", "cpu")
    assert command(*words) == 0
    found = read(tmp_path / "out", path.name)
    assert list(found) == ["clip000", "clip001", "clip002"]
    for cut in open_cuts(tmp_path / "out" / path.name):
        values = found[cut.id]
        assert values.shape == (audio.num_frames(cut), 4) and (values == values[:, :1]).all()
        order = [SYMBOLS[phone] for phone, _ in itertools.groupby(values[:, 0]) if phone != SIL]
        assert order == [phone for word in Lexicon.load(lexicon).phones(cut.supervisions[0].text) for phone in word]
    assert "clip003: 80 frames at least for the phones of its text, found 25" in reasons(tmp_path / "out")[0]
    assert command(*words[:3], tmp_path / "alone", *words[4:], "--batch-seconds", 1) == 0
    for name, values in read(tmp_path / "alone", path.name).items():
        np.testing.assert_array_equal(values, found[name])


def test_recognizer_of_words_is_no_aligner(tmp_path, capsys):
    path = write_cuts(tmp_path / "data", [1.0], units=None)
    tokenizer = train_tokenizer(["word 0"], TokenizerConfig(kind="words"))
    recognizer.save(CTC(tiny_encoder(), CTCConfig(), tokenizer.size), tokenizer, tmp_path / "model")
    assert command("extract", "phones", path, tmp_path / "out", "--aligner", tmp_path / "model") == 2
    assert "expected a CTC recognizer of phones, found ctc of words" in capsys.readouterr().err


def test_a_recognizer_of_phones_is_tuned_decoded_and_aligns(tmp_path, lexicon):
    """`finetune` with `tokenizer: {kind: phones}`: its lexicon lies beside it, references are phones."""
    path = write_cuts(tmp_path / "data", [1.0, 0.9], units=None, texts=["one two", "cat"])
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    changes = {
        "task": "ctc",
        "valid_streams": [],
        "tokenizer": {"kind": "phones", "lexicon": str(lexicon)},
        "objective": {},
        "encoder": tmp_path / "encoder",
        "data.cuts": [path],
    }
    conf = write_run(tmp_path / "phones.yaml", FINETUNE, changes)
    assert command("finetune", conf, tmp_path / "exp") == 0
    model = tmp_path / "exp" / "model"
    assert Tokenizer.load(model).encode("cat") == [ID["K"], ID["AE"], ID["T"], 2]
    assert command("decode", model, path, tmp_path / "decoded", "--modality", "a") == 0
    (refs,) = (tmp_path / "decoded").rglob("ref.jsonl")
    assert [json.loads(line)["text"] for line in refs.read_text().splitlines()] == ["W AH N T UW", "K AE T"]
    assert command("extract", "phones", path, tmp_path / "out", "--aligner", model) == 0
    assert phone_frames.FIELD in read_custom(tmp_path / "out" / path.name)


def read_custom(path):
    (cut, *_) = open_cuts(path)
    return cut.custom


def test_extraction_of_phones_goes_on_after_the_last_whole_part(tmp_path, lexicon, monkeypatch):
    """What a stopped run has written is not done again, and the whole is that of a run without a stop."""
    monkeypatch.setattr(extract_features, "PART_CUTS", 2)
    path = write_cuts(tmp_path / "data", [0.5] * 5, units=None, texts=["one", "two", "cat", "book", "one two"])
    words = ["extract", "phones", path, tmp_path / "out", "--durations", "cut-or-pad", "--lexicon", lexicon]
    seen, real = [], extract_phones.phones_of

    def stopping(cut, own):
        seen.append(cut.id)
        if cut.id == "clip004":
            raise KeyboardInterrupt
        return real(cut, own)

    monkeypatch.setattr(extract_phones, "phones_of", stopping)
    assert command(*words) != 0
    monkeypatch.setattr(extract_phones, "phones_of", lambda cut, own: (seen.append(cut.id), real(cut, own))[1])
    seen.clear()
    assert command(*words) == 0
    assert seen == ["clip004"]
    whole = words.copy()
    whole[3] = tmp_path / "whole"
    assert command(*whole) == 0
    again, once = read(tmp_path / "out", path.name), read(tmp_path / "whole", path.name)
    assert list(again) == list(once)
    assert all((again[name] == once[name]).all() for name in once)
