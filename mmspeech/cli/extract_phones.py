"""Phones for the text stream: from alignments, by an aligner, or at a fixed rate; streamed as features are.

alignment    supervision.alignment["phone"]                     -> ids at 100 Hz
aligner      words -> lexicon -> forced alignment with a CTC recognizer of phones, 25 Hz -> each id four times
cut-or-pad   words -> lexicon -> every phone the same length, cut to the sound (public VATLM)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut

from mmspeech import files
from mmspeech.cli.extract_features import Extractor, extract
from mmspeech.console import say
from mmspeech.data import phone_frames
from mmspeech.data.phones import SILENCE, Lexicon, ids_of, symbols_of
from mmspeech.data.reading import Item, Reading, collate, read_item
from mmspeech.data.text import Tokenizer, text_of
from mmspeech.decoding.align import align, frames_needed
from mmspeech.errors import BadItem, UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import BLANK, CTC


def from_alignment(language: str) -> Extractor:
    """Ids of the alignments that the cuts carry."""

    def read(cut: Cut) -> np.ndarray:
        phone_frames.check_language(cut, language)
        intervals = phone_frames.alignment_of(cut)
        try:
            return phone_frames.from_intervals(intervals, phone_frames.frames_of(cut), language)
        except BadItem as error:
            raise BadItem(error.args[0] if error.args[0].startswith(cut.id) else f"{cut.id}: {error}") from None

    return _ready(read, "alignment")


def from_lexicon(lexicon: Lexicon, each: int) -> Extractor:
    """Ids of the transcripts' phones, each `each` times, cut to the sound; a short text ends before it."""

    def read(cut: Cut) -> np.ndarray:
        words = phones_of(cut, lexicon)
        flat = [phone for word in words for phone in word]
        return phone_frames.at_fixed_rate(flat, each, phone_frames.frames_of(cut))

    return _ready(read, "cut-or-pad")


def from_aligner(model: recognizer.Recognizer, lexicon: Lexicon, device: torch.device) -> Extractor:
    """Ids of the transcripts' phones where a recognizer hears them, silence between words where it hears none."""
    objective = model.objective
    assert isinstance(objective, CTC)  # `load_aligner` has looked
    reading = Reading(streams=model.inputs)
    silence = ids_of(lexicon.language)[SILENCE]

    def read(cut: Cut) -> tuple[Item, list[list[int]]]:
        words, item = phones_of(cut, lexicon), read_item(cut, reading)
        frames = max(map(len, item.streams.values()))
        if (needed := frames_needed(words)) > frames:
            raise BadItem(
                f"{cut.id}: {needed} frames at least for the phones of its text, found {frames}; "
                "it does not say all of that: mend the text, or leave the cut out"
            )
        return item, words

    @torch.inference_mode()
    def compute(cuts: Sequence[Cut], values: Sequence[Any]) -> list[np.ndarray]:
        batch = collate([item for item, _ in values], list(reading.streams), [0] * len(values))
        encoded = objective.encoded(batch.to(device))
        rows, lengths = objective.log_probs(encoded).cpu(), encoded.lengths.tolist()
        found = []
        for cut, row, length, (_, words) in zip(cuts, rows, lengths, values, strict=True):
            ids = align(row[:length], words, blank=BLANK, silence=silence).numpy()
            frames = phone_frames.frames_of(cut)  # windows may reach one frame beyond its end, or lack one
            ids = np.pad(ids[:frames], (0, max(frames - length, 0)), constant_values=silence)
            found.append(phone_frames.repeated(ids))
        return found

    return Extractor(read, compute, lambda cut: ["aligner"], phone_frames.FIELD)


def phones_of(cut: Cut, lexicon: Lexicon) -> list[list[int]]:
    """The phone ids of each word of a cut's transcript. Raises BadItem if there is none, or a word has no phones."""
    phone_frames.check_language(cut, lexicon.language)
    try:
        words = lexicon.ids(text_of(cut))
    except BadItem as error:
        raise BadItem(f"{cut.id}: {error}") from None
    if not words:
        raise BadItem(f"{cut.id}: expected a transcript with words, found {text_of(cut)!r}; give cuts that have one")
    return words


def load_aligner(folder: Path, device: torch.device) -> tuple[recognizer.Recognizer, Lexicon]:
    """A CTC recognizer of phones, and its lexicon. Raises UserError if it is another one."""
    tokenizer = Tokenizer.load(folder)
    model = recognizer.load(folder, device)
    if not isinstance(model.objective, CTC) or tokenizer.lexicon is None:
        raise UserError(
            f"{folder}: expected a CTC recognizer of phones, found {model.task} of {tokenizer.kind}; fine-tune one "
            "with `task: ctc` and `tokenizer: {kind: phones}`"
        )
    return model, tokenizer.lexicon


def run(
    stage: files.Stage, cuts: Sequence[Path], extractor: Extractor, language: str, *, strict: bool, batch_s: float
) -> None:
    """Write the output of a stage: every file of cuts, with phones, and phones.txt, SYMBOL ID in each line.

    Raises UserError if no cut has phones.
    """
    out = stage.output
    with stage.resuming(), files.Rejects(out / "rejected.jsonl", strict) as rejects:
        with files.replacing(out / "phones.txt") as table:
            lines = [f"{symbol} {number}\n" for number, symbol in enumerate(symbols_of(language))]
            table.write_text("".join(lines), encoding="utf-8")
        written = sum(extract(path, out, extractor, rejects, batch_s=batch_s, jobs=1).written for path in cuts)
        if not written:
            raise UserError(f"{', '.join(map(str, cuts))}: no cut has phones; reasons in {rejects.path}")
    say(f"{out}: {written} cuts with phones")


def _ready(read: Any, origin: str) -> Extractor:
    """An extractor whose reading is all of the work."""
    return Extractor(read, lambda cuts, values: list(values), lambda cut: [origin], phone_frames.FIELD)
