"""Text as token ids: SentencePiece unigrams, characters, words or phones, with the public models' special ids.

A sequence of ids ends with </s>. Text is lower-cased, as for the published models. A space is part of the piece that
follows it, written `▁`, so that joining pieces and replacing `▁` gives the text back. Of phones, which a lexicon finds,
the text does not come back: they are decoded to phones with spaces between.
"""

import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sentencepiece

from mmspeech.console import say
from mmspeech.errors import BadItem, UserError
from mmspeech.files import replacing, write_json

if TYPE_CHECKING:  # slow to import, and scoring, which normalises texts too, can do without
    from lhotse.cut import Cut

    from mmspeech.data.phones import Lexicon

START, PAD, END, UNKNOWN = range(4)
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SPACE = "▁"
TRANSCRIPT = "transcript"  # which of a cut's texts is learnt; or translation.LANGUAGE


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What the text is cut into."""

    kind: Literal["unigram", "characters", "words", "phones"] = "unigram"
    # Entries, the four special ones included. Unigrams: at most so many, a small corpus supports fewer; words and
    # characters: all there are by default. Phones: always those of their language.
    size: int | None = None
    lexicon: Path | None = None  # of phones: a file with lines WORD PH PH ...; without, CMUdict
    language: str | None = None  # of phones: a code that espeak-ng knows; without, English


class Tokenizer:
    """Text -> ids and back; `symbols[i]` is what id i stands for."""

    def __init__(
        self, kind: str, symbols: Sequence[str], model: bytes | None = None, lexicon: "Lexicon | None" = None
    ) -> None:
        """`model`: the SentencePiece model of a unigram tokenizer; `lexicon`: the words of one of phones."""
        self.kind, self.symbols, self.model, self.lexicon = kind, list(symbols), model, lexicon
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self._pieces = None if model is None else sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def from_sentencepiece(cls, model: bytes) -> "Tokenizer":
        """A unigram tokenizer from the bytes of a SentencePiece model with our special ids."""
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        return cls("unigram", [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())], model)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer that `save` wrote. Raises UserError if there is none."""
        try:
            record = json.loads((folder / "tokenizer.json").read_text())
            model = (folder / "tokenizer.model").read_bytes() if record["kind"] == "unigram" else None
            lexicon = _lexicon(folder / "lexicon.txt", record["language"]) if record["kind"] == "phones" else None
            return cls(record["kind"], record["symbols"], model, lexicon)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: expected tokenizer.json in it ({error}); give the folder of a recognizer"
            ) from None

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and, for unigrams, tokenizer.model; for phones, lexicon.txt."""
        folder.mkdir(parents=True, exist_ok=True)
        record: dict[str, object] = {"kind": self.kind, "symbols": self.symbols}
        if self.lexicon is not None:
            self.lexicon.save(folder / "lexicon.txt")
            record["language"] = self.lexicon.language
        if self.model is not None:
            with replacing(folder / "tokenizer.model") as temporary:
                temporary.write_bytes(self.model)
        write_json(folder / "tokenizer.json", record)

    @property
    def size(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, lower-cased, with </s> behind them; what the vocabulary lacks becomes <unk>.

        Raises BadItem for a word that has no phones, where they are asked for.
        """
        if self.lexicon is not None:
            return [*(i for word in self.lexicon.ids(text) for i in word), END]
        text = normalise(text)
        if self._pieces is not None:  # by way of pieces: a dictionary may number them otherwise than their model
            return [*(self._ids.get(piece, UNKNOWN) for piece in self._pieces.encode(text, out_type=str)), END]
        return [*(self._ids.get(piece, UNKNOWN) for piece in _cut(text, self.kind)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ones but <unk> are left out."""
        unknown = SPACE + SPECIAL[UNKNOWN] if self.kind == "words" else SPECIAL[UNKNOWN]
        pieces = (unknown if i == UNKNOWN else self.symbols[i] for i in ids if i not in (START, PAD, END))
        return (" " if self.kind == "phones" else "").join(pieces).replace(SPACE, " ").strip()

    def reference(self, text: str) -> str:
        """What `decode` gives where all is right: the text, normalised, or its phones, "" if nothing tells them."""
        if self.lexicon is None:
            return normalise(text)
        try:
            return self.decode(self.encode(text))
        except BadItem:
            return ""


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """A tokenizer learned from texts.

    Unigram pieces are as many as the texts support where they do not support the size asked for, which is said in a
    line. Raises UserError if there is no text, or for another size that cannot be; it names one that can.
    """
    if config.kind != "phones" and (config.lexicon or config.language):
        raise UserError(
            f"tokenizer: `lexicon` and `language` are for `kind: phones`, not {config.kind}; leave them out"
        )
    texts = [text for text in map(normalise, texts) if text]
    if not texts:
        raise UserError("tokenizer: no text to learn from; give cuts that have texts")
    if config.kind == "phones":
        if config.size is not None:
            raise UserError(f"tokenizer.size: {config.size}, but phones are those of their language; leave it out")
        lexicon = _lexicon(config.lexicon, config.language or "en")
        return Tokenizer("phones", lexicon.symbols, lexicon=lexicon)
    if config.kind == "unigram":
        if config.size is None:
            raise UserError("tokenizer.size: unigram pieces need a size; set one, e.g. 1000 for LRS3")
        return Tokenizer.from_sentencepiece(_train_unigram(texts, config.size))
    counts = Counter(piece for text in texts for piece in _cut(text, config.kind))
    symbols = [*SPECIAL, *sorted(counts, key=lambda piece: (-counts[piece], piece))]
    if config.size is not None and not len(SPECIAL) < config.size <= len(symbols):
        raise UserError(
            f"tokenizer.size: {config.size} {config.kind}, but the texts have {len(symbols)} with the special ones; "
            f"set at most {len(symbols)}, or leave it out"
        )
    return Tokenizer(config.kind, symbols[: config.size])


def _lexicon(path: Path | None, language: str) -> "Lexicon":
    from mmspeech.data.phones import Lexicon  # that file is built on this one

    return Lexicon.load(path, language)


def check_target(target: str) -> None:
    """Raise UserError unless it names one of a cut's texts: `transcript`, or `translation.es` for the Spanish one."""
    kind, _, language = target.partition(".")
    if target != TRANSCRIPT and (kind != "translation" or not language):
        raise UserError(f"text: {target!r}; expected {TRANSCRIPT}, or translation.LANGUAGE as in translation.es")


def text_of(cut: "Cut", target: str = TRANSCRIPT) -> str:
    """What a model is to make of a cut: its transcript, or its translation into a language; "" where it has none."""
    language = target.partition(".")[2]
    for supervision in cut.supervisions:
        text = supervision.text
        if language:
            text = ((supervision.custom or {}).get("translation") or {}).get(language)
        if text and text.strip():
            return text
    return ""


def texts_of(cuts: Iterable["Cut"], target: str = TRANSCRIPT) -> Iterator[str]:
    """The texts of all cuts that have one."""
    return (text for cut in cuts if (text := text_of(cut, target)))


def normalise(text: str) -> str:
    """Lower case, one space between words, one code for each character (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


# Of a line of written English: tags such as <s>, and all that is neither a letter, a digit nor an apostrophe in a word.
_TAG = re.compile(r"<[^<>\s]*>|\[[^\[\]]*\]|\{[^{}]*\}")
# What TED-LIUM and Cantab-TEDLIUM set apart; other apostrophes behind a space begin a word, or a quotation.
_SPLIT = re.compile(r"(?<=\w) '(?=(?:s|t|d|m|ll|re|ve|clock|all)\b)")
_APOSTROPHE = re.compile("[\u2018\u2019\u02bc\u00b4`]")
_NO_WORD = re.compile(r"[^\w']|_|(?<!\w)'|'(?!\w)")


def without_tags(line: str) -> str:
    """A line of a text corpus without <s>, [laughter], {LG}, which are no words, and with one space between words.

    What an author put into square brackets is lost with them.
    """
    return " ".join(_TAG.sub(" ", line).split())


def joined(text: str) -> str:
    """Lower-cased English without the space that its corpus puts into words: `it 's` -> `it's`, `o 'clock` too."""
    return _SPLIT.sub("'", text)


def words_of_english(line: str) -> str:
    """A line of a text corpus as transcripts are written: lower case, words alone; "" if there are none.

    `<s> "WELL," SAID MR. O\u2019NEIL - IT 'S TWENTY-ONE </s>` -> `well said mr o'neil it's twenty one`. Digits stay: a
    corpus for language models spells numbers, as Cantab-TEDLIUM does.
    """
    line = joined(_APOSTROPHE.sub("'", normalise(without_tags(line))))
    return " ".join(_NO_WORD.sub(" ", line).split())


def _cut(text: str, kind: str) -> list[str]:
    """Pieces of normalised text: `▁one ▁two` as words, `▁ o n e ▁ t w o` as characters."""
    if not text:
        return []
    if kind == "words":
        return [SPACE + word for word in text.split(" ")]
    return list((SPACE + text).replace(" ", SPACE))


def _train_unigram(texts: list[str], size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            character_coverage=1.0,
            bos_id=START,
            pad_id=PAD,
            eos_id=END,
            unk_id=UNKNOWN,
            num_threads=4,  # fixed: the sum of their shares is the model's
            minloglevel=2,
        )
    except RuntimeError as error:
        # "Vocabulary size too high (N). Please set it to a value <= M.", or that N is below the M characters needed.
        if "ocabulary size" not in str(error):
            raise
        if (largest := re.search(r"value <= (\d+)", str(error))) and int(largest[1]) < size:
            say(f"tokenizer.size: {size} unigram pieces, but these texts support {largest[1]}; made {largest[1]}")
            return _train_unigram(texts, int(largest[1]))
        smallest = len(SPECIAL) + len(set("".join(texts).replace(" ", SPACE)) | {SPACE})
        raise UserError(
            f"tokenizer.size: {size} unigram pieces do not hold the characters of these texts; set at least {smallest}"
        ) from None
    return model.getvalue()
