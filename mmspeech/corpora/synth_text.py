"""What is said in the embedded corpus: digit strings, or GRID's command grammar with Spanish and German renderings."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Sentence(NamedTuple):
    """The words as written, what espeak-ng reads for each, and translations by language code (may be empty)."""

    words: tuple[str, ...]
    spoken: tuple[str, ...]
    translation: dict[str, str]


def digits(rng: np.random.Generator) -> Sentence:
    """Four to eight digits, each as likely as the others."""
    words = tuple(DIGITS[i] for i in rng.integers(len(DIGITS), size=rng.integers(4, 9)))
    return Sentence(words, words, {})


# English -> Spanish; German verb and the particle that German moves to the end of the sentence.
COMMANDS = {
    "bin": ("tira", "wirf", "weg"),
    "lay": ("tiende", "leg", "hin"),
    "place": ("coloca", "stell", "auf"),
    "set": ("pon", "setz", "ab"),
}
COLORS = {"blue": ("azul", "Blau"), "green": ("verde", "Grün"), "red": ("rojo", "Rot"), "white": ("blanco", "Weiß")}
PREPOSITIONS = {
    "at": ("junto a la", "bei"),
    "by": ("cerca de la", "neben"),
    "in": ("en la", "in"),
    "with": ("con la", "mit"),
}
ADVERBS = {
    "again": ("otra vez", "nochmal"),
    "now": ("ahora", "jetzt"),
    "please": ("por favor", "bitte"),
    "soon": ("pronto", "bald"),
}
SPANISH_DIGITS = ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve")
GERMAN_DIGITS = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
# GRID leaves out W, the only letter of several syllables. Phones, as espeak-ng reads some single letters as words.
LETTERS = {
    "a": "'eI", "b": "b'i:", "c": "s'i:", "d": "d'i:", "e": "'i:", "f": "'Ef", "g": "dZ'i:", "h": "'eItS", "i": "'aI",
    "j": "dZ'eI", "k": "k'eI", "l": "'El", "m": "'Em", "n": "'En", "o": "'oU", "p": "p'i:", "q": "kj'u:", "r": "'A@",
    "s": "'Es", "t": "t'i:", "u": "j'u:", "v": "v'i:", "x": "'Eks", "y": "w'aI", "z": "z'Ed",
}  # fmt: skip


def commands(rng: np.random.Generator) -> Sentence:
    """GRID's grammar: command, colour, preposition, letter, digit, adverb, such as `bin blue at f two now`.

    The German verb is separable and the adverbs move, so that translation is more than a word for a word.
    """
    command, color, preposition, letter, adverb = (
        str(rng.choice(list(words))) for words in (COMMANDS, COLORS, PREPOSITIONS, LETTERS, ADVERBS)
    )
    digit = int(rng.integers(len(DIGITS)))
    words = (command, color, preposition, letter, DIGITS[digit], adverb)
    spoken = (command, color, preposition, f"[[{LETTERS[letter]}]]", DIGITS[digit], adverb)
    spanish_verb, german_verb, particle = COMMANDS[command]
    (spanish_color, german_color), (spanish_at, german_at) = COLORS[color], PREPOSITIONS[preposition]
    spanish_when, german_when = ADVERBS[adverb]
    spanish = f"{spanish_when} {spanish_verb} {spanish_color} {spanish_at} {letter} {SPANISH_DIGITS[digit]}"
    german = (
        f"{german_verb} {german_when} {german_color} {german_at} {letter.upper()} {GERMAN_DIGITS[digit]} {particle}"
    )
    return Sentence(words, spoken, {"es": spanish, "de": german})


VOCABULARIES: dict[str, Callable[[np.random.Generator], Sentence]] = {"digits": digits, "commands": commands}

# For the speech of the noise corpus: common words, none of them a digit or a command.
_OTHER_WORDS = """
people water after little house always morning through garden mother winter school answer music river table window paper
father evening summer market brother yellow simple letter doctor travel number corner story because between against
another nothing carry follow listen finish open remember believe happen begin small early quiet heavy golden public
common island village company problem second money picture history
"""
OTHER_WORDS = tuple(_OTHER_WORDS.split())


def chatter(rng: np.random.Generator, num_words: int) -> Sentence:
    """Words in a row without sense, for babble."""
    words = tuple(str(word) for word in rng.choice(OTHER_WORDS, size=num_words))
    return Sentence(words, words, {})
