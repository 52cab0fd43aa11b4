"""Phones written in the International Phonetic Alphabet, as Montreal Forced Aligner and espeak-ng write them.

English folds onto CMUdict's 39 phones; any other language is spelt with the letters of one inventory, the same for all
of them: a diphthong is two letters, a nasal vowel has its own, length, stress, tone and finer marks are left out.
"""

import unicodedata

VOWELS = "iyɨʉɯuɪʏʊeøɘɵɤoəɛœɜɞʌɔæɐaɶɑɒ"
CONSONANTS = "pbtdʈɖcɟkgqɢʔmɱnɳɲŋɴʙrʀɾɽɹɻɸβfvθðszʃʒʂʐɕʑçʝxɣχʁħʕhɦɬɮʋjɥwʍɰlɭʎʟɫɓɗʄɠɧɚɝᵻ"
NASAL = "\u0303"
_TWINS = str.maketrans({"ɡ": "g", "ε": "ɛ", "ʦ": "ts"})  # other characters for the same sound
LETTERS = (*VOWELS, *(vowel + NASAL for vowel in VOWELS), *CONSONANTS)

# Longest first. Vowels before a written r keep it: British and American speech differ there, CMUdict is American.
_ENGLISH = {
    "aɪ": "AY", "aj": "AY", "aʊ": "AW", "aw": "AW", "eɪ": "EY", "ej": "EY", "oʊ": "OW", "ow": "OW", "əʊ": "OW",
    "əw": "OW", "ɔɪ": "OY", "ɔj": "OY", "tʃ": "CH", "dʒ": "JH",
    "i": "IY", "ɪ": "IH", "ᵻ": "IH", "ɨ": "IH", "e": "EH", "ɛ": "EH", "æ": "AE", "a": "AE", "ɑ": "AA", "ɒ": "AA",
    "ɔ": "AO", "o": "OW", "ʊ": "UH", "u": "UW", "ʉ": "UW", "ʌ": "AH", "ɐ": "AH", "ə": "AH", "ɜ": "ER", "ɝ": "ER",
    "ɚ": "ER", "p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "g": "G", "c": "K", "ɟ": "G", "ʔ": "T", "ɾ": "T",
    "f": "F", "v": "V", "θ": "TH", "ð": "DH", "s": "S", "z": "Z", "ʃ": "SH", "ʒ": "ZH", "h": "HH", "ɦ": "HH",
    "ç": "HH", "x": "K", "m": "M", "ɱ": "M", "n": "N", "ɲ": "N", "ŋ": "NG", "l": "L", "ɫ": "L", "ʎ": "L", "r": "R",
    "ɹ": "R", "j": "Y", "w": "W", "ʍ": "W",
}  # fmt: skip


def english(label: str) -> list[str]:
    """CMUdict's phones of one label, most often one; espeak-ng joins some (`ɑːɹ`, `əl`). Empty: not English IPA."""
    plain = _plain(label).replace("ɾ" + NASAL, "n").replace(NASAL, "")
    found = []
    while plain:
        size = 2 if plain[:2] in _ENGLISH else 1
        if plain[:size] not in _ENGLISH:
            return []
        found.append(_ENGLISH[plain[:size]])
        plain = plain[size:]
    return found


def letters(label: str) -> list[str]:
    """The letters of one label; empty if one of them is not in LETTERS."""
    found: list[str] = []
    for letter in _plain(label):
        if letter != NASAL:
            found.append(letter)
        elif found and found[-1] in VOWELS:
            found[-1] += NASAL
    return found if all(letter in LETTERS for letter in found) else []


def _plain(label: str) -> str:
    """Letters and the mark of nasal vowels alone, one way of writing each."""
    marks = unicodedata.normalize("NFD", label).replace("c\u0327", "ç").translate(_TWINS)
    return "".join(mark for mark in marks if mark == NASAL or unicodedata.category(mark) in ("Ll", "Lo", "Lu"))
