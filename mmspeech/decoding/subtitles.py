"""Words with their times -> subtitles in the SubRip format (.srt)."""

from collections.abc import Sequence

from mmspeech.decoding.windows import Word

FRAMES_PER_S = 25
MAX_CHARACTERS = 42  # a line of text, as broadcasters have it
MAX_S = 6.0
PAUSE_S = 1.0  # words that lie further apart are not shown together


def srt(words: Sequence[Word], start_s: float = 0.0) -> str:
    """Numbered subtitles of one line each, one after another in time.

    Args:
        start_s: what a player's clock shows at frame 0.
    """
    lines: list[list[Word]] = []
    for word in words:
        if not lines or not _fits(lines[-1], word):
            lines.append([])
        lines[-1].append(word)
    blocks, stop_s = [], 0.0
    for number, line in enumerate(lines, start=1):
        # Two windows may place neighbours the wrong way round: a subtitle begins when the one before is gone.
        begin_s = max(start_s + line[0].start / FRAMES_PER_S, stop_s)
        stop_s = max(start_s + line[-1].stop / FRAMES_PER_S, begin_s + 1 / FRAMES_PER_S)
        text = " ".join(word.text for word in line)
        blocks.append(f"{number}\n{_clock(begin_s)} --> {_clock(stop_s)}\n{text}\n")
    return "\n".join(blocks)


def _fits(line: Sequence[Word], word: Word) -> bool:
    length = sum(len(one.text) + 1 for one in line) + len(word.text)
    near = word.start - line[-1].stop <= PAUSE_S * FRAMES_PER_S
    return near and length <= MAX_CHARACTERS and word.stop - line[0].start <= MAX_S * FRAMES_PER_S


def _clock(time_s: float) -> str:
    """Hours, minutes, seconds and, behind a comma, milliseconds."""
    seconds, milliseconds = divmod(round(time_s * 1000), 1000)
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{hours:02d}:{minutes:02d}:{seconds % 60:02d},{milliseconds:03d}"
