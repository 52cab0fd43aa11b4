"""What transcripts have in common."""

import re
from pathlib import Path

from mmspeech.data.text import normalise
from mmspeech.errors import BadItem

# {LG}, {NS}, [NOISE], (APPLAUSE): marks of what is heard, not words. Brackets within a word are left alone.
MARK = re.compile(r"(?<!\S)(\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\))(?!\S)")


def clean(text: str) -> str:
    """The text as tokenizers see it, without marks in brackets; everything else as it was written."""
    return normalise(MARK.sub(" ", text))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8. Raises BadItem if it is missing or is none."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BadItem(f"{path}: no transcript there; the clip is left out") from None
    except UnicodeDecodeError as error:
        raise BadItem(f"{path}: expected UTF-8 text, found other bytes at {error.start}; save it as UTF-8") from error
