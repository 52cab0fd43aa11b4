"""English spelling -> phones by small rules, for words that no lexicon has where espeak-ng is not installed.

The longest written group that fits comes first, and nothing looks further than that: rough, but always the same.
"""

import unicodedata

_GROUPS = {
    "tch": "CH", "dge": "JH", "igh": "AY", "eigh": "EY", "ough": "AO", "augh": "AO", "tion": "SH AH N",
    "sion": "ZH AH N", "cious": "SH AH S", "tious": "SH AH S", "ture": "CH ER", "ing": "IH NG", "qu": "K W",
    "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ck": "K", "ng": "NG", "nk": "NG K", "gh": "G",
    "kn": "N", "wr": "R", "ps": "P S", "sc": "S K", "sce": "S EH", "sci": "S IH", "ce": "S EH", "ci": "S IH",
    "cy": "S IY", "ge": "JH EH", "gi": "JH IH", "gy": "JH IY", "ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW",
    "ow": "OW", "oa": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "au": "AO", "aw": "AO", "ew": "UW",
    "ey": "IY", "ie": "IY", "ei": "EY", "ue": "UW", "er": "ER", "ir": "ER", "ur": "ER", "ar": "AA R", "or": "AO R",
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH",
    "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
_ENDS = {"ce": "S", "ge": "JH", "dge": "JH", "se": "S", "le": "AH L", "y": "IY", "e": ""}  # of a word
_LONGEST = max(map(len, _GROUPS))
_NAMES = {
    "a": "EY", "b": "B IY", "c": "S IY", "d": "D IY", "e": "IY", "f": "EH F", "g": "JH IY", "h": "EY CH", "i": "AY",
    "j": "JH EY", "k": "K EY", "l": "EH L", "m": "EH M", "n": "EH N", "o": "OW", "p": "P IY", "q": "K Y UW",
    "r": "AA R", "s": "EH S", "t": "T IY", "u": "Y UW", "v": "V IY", "w": "D AH B AH L Y UW", "x": "EH K S",
    "y": "W AY", "z": "Z IY",
}  # fmt: skip


def english_letters(word: str) -> str:
    """The letters a to z of a word, accents taken off; empty if it has a letter of another script."""
    plain = unicodedata.normalize("NFKD", word.lower().replace("ß", "ss").replace("æ", "ae").replace("ø", "o"))
    letters = [mark for mark in plain if unicodedata.category(mark).startswith("L")]
    return "".join(letters) if all("a" <= letter <= "z" for letter in letters) else ""


def english(word: str) -> list[str]:
    """CMUdict's phones of a word written with a to z; of letters without a vowel (`bbc`) their names."""
    letters = english_letters(word)
    if not set(letters) & set("aeiouy"):
        return " ".join(_NAMES[letter] for letter in letters).split()
    found: list[str] = []
    place = 0
    while place < len(letters):
        rest = letters[place:]
        if rest in _ENDS and found:
            found += _ENDS[rest].split()
            break
        group = next(rest[:size] for size in range(_LONGEST, 0, -1) if rest[:size] in _GROUPS)
        doubled = len(group) == 1 and rest[:1] == rest[1:2]  # bb, ll, ss: one sound
        found += _GROUPS[group].split()
        place += len(group) + doubled
    return found
