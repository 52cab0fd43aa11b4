"""Phones as symbols: labels of alignments, words by lexicons, and words that no lexicon has."""

import sys

import numpy as np
import pytest
from kaldialign import edit_distance

from mmspeech.corpora import synth_speech, synth_text
from mmspeech.data import espeak, ipa, phones, spelling
from mmspeech.data.phones import ARPABET, CATEGORIES, ID, IPA_SYMBOLS, SYMBOLS, Lexicon, category, guess, spelt
from mmspeech.data.text import Tokenizer, TokenizerConfig, train_tokenizer
from mmspeech.errors import BadItem, UserError


@pytest.fixture(scope="module")
def cmudict():
    return Lexicon.load()


@pytest.fixture
def without_espeak(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak.start_engine.cache_clear()
    guess.cache_clear()
    phones._say_rules.cache_clear()
    yield
    espeak.start_engine.cache_clear()
    guess.cache_clear()


def test_symbols_are_those_of_the_public_layout():
    """46 ids: four special ones with 1 for padding, 41 categories, one to spare."""
    assert len(SYMBOLS) == 46 and len(CATEGORIES) == 41 and len(set(SYMBOLS)) == 46
    assert SYMBOLS[:4] == ("<s>", "<pad>", "</s>", "<unk>")
    assert (ID["AA"], ID["ZH"], ID["SIL"], ID["SPN"]) == (4, 42, 43, 44)
    assert list(ARPABET) == sorted(ARPABET) and len(ARPABET) == 39
    assert len(set(IPA_SYMBOLS)) == len(IPA_SYMBOLS) < 256 and IPA_SYMBOLS[:4] == SYMBOLS[:4]


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ("AH0 AH1 AH ah AH0_B AH_I ə ɐ ʌ", "AH"),
        ("D d D_S d̪ dʲ", "D"),
        ("DH dh ð", "DH"),
        ("T t tʰ ɾ ʔ T_E", "T"),
        ("TH θ", "TH"),
        ("ER0 ɝ ɚ ɜː", "ER"),
        ("OW1 ow oʊ əw əʊ", "OW"),
        ("AY aj aɪ", "AY"),
        ("CH tʃ tʃʰ t͡ʃ", "CH"),
        ("L ɫ ɫ̩ l", "L"),
        ("G ɡ g ɟ", "G"),
        ("N n n̩ ɲ ɾ̃", "N"),
        ("HH h ç", "HH"),
        ("sil SIL sp <eps> SIL_S h#", "SIL"),
        ("spn SPN SPN_S nsn <unk>", "SPN"),
    ],
)
def test_labels_of_aligners_fall_into_their_category(labels, wanted):
    """ARPAbet with stress and Kaldi's positions, in either case, and MFA's English IPA."""
    assert {category(label) for label in labels.split()} == {wanted}
    assert category("") == category("  ") == "SIL"


@pytest.mark.parametrize("label", ["A:", "@", "tS", "XX", "AH3", "Aa", "ʘ", "ɑːɹ", "0"])
def test_labels_of_no_known_alphabet_are_refused(label):
    """espeak-ng's mnemonics too: its D is ARPAbet's DH, so that half of them would pass as other phones."""
    with pytest.raises(BadItem, match=r"phone `.*`: is neither ARPAbet"):
        category(label)


def test_every_phone_of_the_embedded_corpus_is_its_own_category():
    """Its alignments have ARPAbet's names and `sil`."""
    assert {category(label) for label in synth_speech.PHONES.values()} <= set(ARPABET)
    assert all(category(label) == label for label in synth_speech.PHONES.values())
    assert category(synth_speech.SILENCE) == "SIL"


def test_words_of_the_embedded_corpus_are_in_cmudict(cmudict):
    """Digits, commands and letters of GRID's grammar."""
    vocabulary = [
        *synth_text.DIGITS,
        *synth_text.COMMANDS,
        *synth_text.COLORS,
        *synth_text.PREPOSITIONS,
        *synth_text.ADVERBS,
        *synth_text.LETTERS,
        *synth_text.OTHER_WORDS,
    ]
    assert [word for word in vocabulary if word not in cmudict.words] == []


def test_alignments_of_the_embedded_corpus_agree_with_cmudict(cmudict):
    """What espeak-ng says of a word, and CMUdict: less than 8 % of the phones differ (an American voice, commands)."""
    pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")
    voice = synth_speech.Voice("en-US", "m3", 1.0, 160, 50, 50)
    errors = total = 0
    for seed in range(6):
        sentence = synth_text.commands(np.random.default_rng(seed))
        said = synth_speech.speak(sentence.words, sentence.spoken, voice)
        heard = [category(mark.label) for mark in said.phones if mark.label != synth_speech.SILENCE]
        wanted = [phone for word in cmudict.phones(" ".join(sentence.words)) for phone in word]
        errors, total = errors + edit_distance(wanted, heard)["total"], total + len(wanted)
    assert errors < 0.08 * total


def test_text_becomes_the_first_pronunciation_of_each_word(cmudict):
    """Case and punctuation do not matter; parts of a compound are one word; tags are spoken noise."""
    assert cmudict.phones("Hello, WORLD! -- [noise]") == [
        ["HH", "AH", "L", "OW"],
        ["W", "ER", "L", "D"],
        ["SPN"],
    ]
    assert cmudict.phones("six-seven") == [cmudict.words["six"].split() + cmudict.words["seven"].split()]
    assert cmudict.phones("it’s") == cmudict.phones("it's") == [["IH", "T", "S"]]
    assert cmudict.phones("a") == [["AH"]]  # a(2) is EY
    assert cmudict.phones(" ... ") == []
    assert cmudict.ids("zero two") == [[ID[phone] for phone in word] for word in cmudict.phones("zero two")]


def test_possessives_follow_from_their_word():
    """Z, S behind voiceless sounds, AH Z behind hissing ones."""
    lexicon = Lexicon({"zug": "Z AH G", "zuk": "Z AH K", "zuss": "Z AH S"})
    assert lexicon.phones("zug's zuk's zuss's zugs'") == [
        ["Z", "AH", "G", "Z"],
        ["Z", "AH", "K", "S"],
        ["Z", "AH", "S", "AH", "Z"],
        ["Z", "AH", "G", "Z"],
    ]


@pytest.mark.parametrize("text", ["in 1984", "你好"])
def test_what_has_no_phones_is_named(cmudict, text):
    with pytest.raises(BadItem, match=f"`{text.split()[-1]}` in a text: "):
        cmudict.phones(text)


def test_lexicon_files_of_kaldi_and_mfa_are_read(tmp_path):
    """Variants and probabilities: the first pronunciation, or the most probable one; IPA becomes ARPAbet."""
    file = tmp_path / "lexicon.txt"
    file.write_text(
        ";;; a comment\nONE W AH1 N\nONE(2) HH W AH1 N\nTwo\tT UW1 # a number\n\n"
        "three 0.2 TH R IY\nthree 0.8 T R IY\nfour 0.99 0.1 0.5 1.2 f ɔː ɹ\n<UNK> SPN\nfive 1 F AY V\n"
    )
    lexicon = Lexicon.load(file)
    assert lexicon.words == {
        "one": "W AH N",
        "two": "T UW",
        "three": "T R IY",
        "four": "F AO R",
        "<unk>": "SPN",
        "five": "F AY V",
    }
    lexicon.save(tmp_path / "again.txt")
    assert Lexicon.load(tmp_path / "again.txt") == lexicon


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one W AH N\ntwo\n", r"line 2: `two` has no phones; expected WORD PH PH"),
        ("one W AH N\n\ntwo 0.5\n", r"line 3: `two` has no phones"),
        ("one W QQ N\n", r"line 1: `one`, phone `QQ`: is neither"),
        ("one 1x W AH N\n", r"line 1: `1x` is neither a probability nor a phone"),
        ("\n\n", r"expected lines WORD PH PH"),
        (None, r"expected a lexicon in UTF-8"),
    ],
)
def test_a_bad_lexicon_is_an_error_with_its_line(tmp_path, text, message):
    file = tmp_path / "lexicon.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=rf"lexicon\.txt.*{message}"):
        Lexicon.load(file)


def test_unknown_words_have_the_same_phones_every_time(cmudict):
    """By espeak-ng, between other voices and languages too; all of them are phones of ours."""
    pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")
    words = ["zephyrically", "qwyzzle", "tiktok", "covid", "naïve"]
    first = [guess(word) for word in words]
    guess.cache_clear()
    assert guess("perro", "es") == "p e r o"
    assert [guess(word) for word in reversed(words)] == first[::-1]
    assert first[0] == "Z EH F IH R IH K L IY"
    assert {phone for found in first for phone in found.split()} <= set(ARPABET)


def test_espeak_and_rules_come_near_cmudict(cmudict):
    """Of every 500th word: espeak-ng errs in less than 15 % of the phones, rules of spelling in less than 35 %."""
    pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")
    words = [word for word in sorted(cmudict.words) if word.isalpha()][::500]
    for way, most in ((lambda word: guess(word).split(), 0.15), (spelling.english, 0.35)):
        errors = sum(edit_distance(cmudict.words[word].split(), way(word))["total"] for word in words)
        assert errors / sum(len(cmudict.words[word].split()) for word in words) < most


def test_without_espeak_spelling_decides_and_says_so_once(without_espeak, capsys):
    """English goes on; any other language says what is missing."""
    lexicon = Lexicon({"a": "AH"})
    assert lexicon.phones("shelf phone tiktok bbc") == [
        ["SH", "EH", "L", "F"],
        ["F", "AA", "N"],
        ["T", "IH", "K", "T", "AA", "K"],
        ["B", "IY", "B", "IY", "S", "IY"],
    ]
    assert capsys.readouterr().err.count("by rules of spelling") == 1
    with pytest.raises(UserError, match=r"language es: .* pip install mmspeech\[synth\]"):
        Lexicon.load(None, "es")


def test_other_languages_are_spelt_in_letters_of_one_alphabet(tmp_path):
    """A diphthong is two letters, a nasal vowel one; stress and length are left out; files may have IPA of MFA."""
    pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")
    assert Lexicon.load(None, "es").phones("perro, niño") == [["p", "e", "r", "o"], ["n", "i", "ɲ", "o"]]
    assert Lexicon.load(None, "de").phones("fünf")[0] == ["f", "ʏ", "n", "f"]
    french = Lexicon.load(None, "fr")
    assert french.phones("bon")[0] == ["b", "ɔ̃"]
    assert french.symbols == IPA_SYMBOLS and max(french.ids("garçon")[0]) < len(IPA_SYMBOLS)
    assert spelt("aɪ", "de") == ("a", "ɪ") and spelt("tʃʰ", "hi") == ("t", "ʃ") and spelt("sp", "de") == ("SIL",)
    assert ipa.letters("ç") == ["ç"] and ipa.letters("ˈuː") == ["u"]
    with pytest.raises(BadItem, match="is no IPA"):
        spelt("AH0", "de")
    (tmp_path / "de.txt").write_text("eins aɪ n s\n")
    assert Lexicon.load(tmp_path / "de.txt", "de").phones("eins") == [["a", "ɪ", "n", "s"]]
    with pytest.raises(UserError, match="language tlh-x: espeak-ng has no such voice"):
        Lexicon.load(None, "tlh-x")


def test_tokenizer_of_phones_is_saved_with_its_lexicon(tmp_path):
    """Ids are those of the text stream; the loaded one knows the same words; references are phones."""
    (tmp_path / "own.txt").write_text("one W AH N\ntwo T UW\n")
    config = TokenizerConfig(kind="phones", lexicon=tmp_path / "own.txt")
    tokenizer = train_tokenizer(["one two"], config)
    assert tokenizer.symbols == list(SYMBOLS)
    ids = tokenizer.encode("Two one")
    assert ids == [ID["T"], ID["UW"], ID["W"], ID["AH"], ID["N"], 2]
    assert tokenizer.decode(ids) == tokenizer.reference("two ONE.") == "T UW W AH N"
    assert tokenizer.reference("in 1984") == ""
    tokenizer.save(tmp_path / "model")
    again = Tokenizer.load(tmp_path / "model")
    assert again.encode("Two one") == ids and again.lexicon == tokenizer.lexicon


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "phones", "size": 46}, r"tokenizer\.size: 46, but phones are those of their language"),
        ({"kind": "words", "language": "es"}, r"`lexicon` and `language` are for `kind: phones`, not words"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer(["one"], TokenizerConfig(**config))
