"""When each phone sounds: the best path of a CTC model through a known sequence (forced alignment).

A CTC model says a phone in few frames and is silent, with blanks, around them. Between phones of a word its blanks are
shared by the two. Between words, before the first and behind the last one, they are silence if they are many.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torchaudio import functional as F

# Both chosen on the embedded corpus: of 0 to 3 and 1 to 8 these agree best with its alignments.
KEPT = 1  # blank frames on either side of a silence that belong to the phones: they are longer than they are said
SILENCE = 3  # blank frames in a row, beside those, from which on there is a silence: 0.12 s


def frames_needed(words: Sequence[Sequence[int]]) -> int:
    """The fewest frames that hold the tokens, with a blank between two equal ones."""
    tokens = [token for word in words for token in word]
    return len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens))


def align(log_probs: Tensor, words: Sequence[Sequence[int]], *, blank: int, silence: int) -> Tensor:
    """The token of every frame, `silence` where none sounds. (torchaudio aligns one utterance at a time, in C++.)

    Args:
        log_probs: (T, V) of one utterance, with T >= frames_needed(words).
        words: the tokens of each word, none empty, none of them blank.

    Returns:
        (T,) int64 on the host.
    """
    size = log_probs.shape[0]
    tokens = torch.tensor([token for word in words for token in word])  # (P,)
    path, scores = F.forced_align(log_probs.float().cpu()[None], tokens[None], blank=blank)
    spans = F.merge_tokens(path[0], scores[0], blank=blank)
    starts = torch.tensor([span.start for span in spans])  # (P,)
    ends = torch.tensor([span.end for span in spans])
    before = torch.cat([starts, torch.tensor([size])]) - torch.cat([torch.tensor([0]), ends])  # (P + 1,) blanks
    at_word = torch.zeros(len(tokens) + 1, dtype=torch.bool)
    at_word[torch.tensor([0, *map(len, words)]).cumsum(0)] = True
    silent = at_word & (before >= SILENCE + 2 * KEPT)
    silent[[0, -1]] = before[[0, -1]] >= SILENCE + KEPT
    # What the phone behind a gap takes of it; the one before takes the rest.
    taken = torch.where(silent, KEPT, before // 2)
    given = torch.where(silent, KEPT, before - before // 2)
    taken[0] = KEPT if silent[0] else before[0]
    given[-1] = KEPT if silent[-1] else before[-1]
    first, last = starts - taken[:-1], ends + given[1:]  # (P,)
    frames = torch.arange(size)
    owner = torch.searchsorted(first, frames, right=True) - 1  # (T,), -1 before the first phone
    sounds = (owner >= 0) & (frames < last[owner])
    return torch.where(sounds, tokens[owner], silence)
