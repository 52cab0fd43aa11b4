"""MUSAN: music, speech and noise to mix into speech, and babble made of its speech.

    CORPUS/{music,speech,noise}/SOURCE/*.wav; in speech, a SOURCE other than librivox and us-gov is one speaker

Pieces of 10 s, babble as the mean of 30 of speech, shares of 80 / 10 / 10: the public AV-HuBERT preparation.
Snyder, Chen, Povey: MUSAN, a music, speech, and noise corpus, 2015.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut

from mmspeech import media
from mmspeech.console import say
from mmspeech.corpora.splits import check_places, not_there, recording
from mmspeech.data.cutfiles import writing_cuts
from mmspeech.errors import BadItem, UserError
from mmspeech.files import Rejects, Stage, parallel_map
from mmspeech.seeds import numpy_rng, stable_hash

KINDS = ("music", "speech", "noise")
SPLITS = ("train", "valid", "test")
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
PIECE_S, SHORTEST_S, LONGEST_S = 10, 3, 11
# Folders of MUSAN's speech in which every file is another speaker, as far as anybody knows.
OF_MANY_SPEAKERS = ("librivox", "us-gov")
ABOUT = (
    "MUSAN (music, speech and noise, free, openslr.org/17) is a folder with music/, speech/ and noise/, each with "
    "SOURCE/*.wav; `mmspeech prepare synth` makes a small one"
)


@dataclass(frozen=True)
class Sound:
    """One file of the corpus."""

    kind: str
    split: str
    path: Path
    id: str


@dataclass(frozen=True)
class Babble:
    """A mixture to make: pieces as (file, first sample, number of samples)."""

    id: str
    split: str
    pieces: tuple[tuple[str, int, int], ...]


def prepare(
    corpus: Path,
    out: Path,
    babbles: int = 10_000,
    voices: int = 30,
    seed: int = 0,
    jobs: int = 4,
    strict: bool = False,
) -> None:
    """MUSAN -> noise to mix into speech: music, speech, noise and babble, each for training, validation and test.

    CORPUS holds music/, speech/ and noise/, each with SOURCE/*.wav. OUT receives
    noise_{music,speech,noise,babble}_{train,valid,test}.jsonl.gz: pieces of 10 seconds, and babble, the mean of 30
    pieces of speech. No file, and no speaker, is in two of the splits. Does nothing if the output is current.

    Example: `mmspeech prepare musan /data/musan exp/noise`

    Args:
        corpus: The folder that holds music, speech and noise.
        out: Folder to write.
        babbles: Mixtures to make of babble, 10 seconds each, for all three splits together; at least one for each.
        voices: Pieces of speech in a mixture; fewer where a small corpus has fewer.
        seed: Fixes the splits and the mixtures.
        jobs: Processes that decode and mix.
        strict: Stop at the first file that cannot be used.
    """
    sounds = find_sounds(corpus, seed)
    check_places(corpus, out)
    if babbles < 0 or voices < 1:
        raise UserError(f"--babbles {babbles}, --voices {voices}: expected 0 or more mixtures of at least one voice")
    stage = Stage(out, [corpus], {"babbles": babbles, "voices": voices, "seed": seed})
    if stage.is_current():
        return
    with stage.resuming() as folder, Rejects(folder / "rejected.jsonl", strict) as rejects:
        read = functools.partial(read_pieces, audio=folder / "audio")
        speech: defaultdict[str, list[MonoCut]] = defaultdict(list)
        counts: Counter[str] = Counter()
        with ExitStack() as stack:
            writers = {
                (kind, split): stack.enter_context(writing_cuts(noise_file(folder, kind, split)))
                for kind in KINDS
                for split in SPLITS
            }
            for sound, cuts in parallel_map(read, sounds, jobs=jobs, rejects=rejects, title="musan"):
                for cut in cuts:
                    writers[sound.kind, sound.split].write(cut)
                    counts[f"{sound.kind} {sound.split}"] += 1
                if sound.kind == "speech":
                    speech[sound.split] += cuts
        if not counts:
            raise UserError(f"{corpus}: no file gave {SHORTEST_S} s of sound; {rejects.path} has the reasons. {ABOUT}")
        mixtures = [
            mixture
            for split in SPLITS
            for mixture in plan_babble(speech[split], split, share(babbles, split), voices, seed)
        ]
        mix = functools.partial(mix_babble, audio=folder / "audio")
        with ExitStack() as stack:
            babble = {split: stack.enter_context(writing_cuts(noise_file(folder, "babble", split))) for split in SPLITS}
            for split, cut in parallel_map(mix, mixtures, jobs=jobs, rejects=rejects, title="babble"):
                babble[split].write(cut)
                counts[f"babble {split}"] += 1
    for kind in (*KINDS, "babble"):
        say(f"{out}: {kind}: " + ", ".join(f"{counts[f'{kind} {split}']} {split}" for split in SPLITS))


def share(babbles: int, split: str) -> int:
    """How many mixtures a split gets: of few at least one, lest a test in babble find none after the training."""
    return max(1, round(babbles * SHARES[split])) if babbles else 0


def noise_file(folder: Path, kind: str, split: str) -> Path:
    return folder / f"noise_{kind}_{split}.jsonl.gz"


def find_sounds(corpus: Path, seed: int) -> list[Sound]:
    """All files with their split. Raises UserError if there is none; says which kinds are missing."""
    sounds = []
    for kind in KINDS:
        paths = sorted((corpus / kind).rglob("*.wav"))
        if not paths:
            say(f"{corpus / kind}: no .wav file there; going on without {kind}")
        splits = deal([owner(kind, path) for path in paths], seed, kind)
        for path in paths:
            name = "-".join(path.relative_to(corpus).with_suffix("").parts)
            sounds.append(Sound(kind, splits[owner(kind, path)], path, name))
    if not sounds:
        raise not_there(
            corpus, "MUSAN", "nothing of it is there", ABOUT, lambda place: any(place.glob("noise/*/*.wav"))
        )
    return sounds


def owner(kind: str, path: Path) -> str:
    """What must not be split: a speaker's files, or one file."""
    folder = path.parent.name
    return folder if kind == "speech" and folder not in (*OF_MANY_SPEAKERS, "speech") else str(path.name)


def deal(owners: Sequence[str], seed: int, kind: str) -> dict[str, str]:
    """Owner -> split, 80 / 10 / 10 by number of owners; of three or more, each split has one."""
    order = sorted(set(owners), key=lambda name: (stable_hash(seed, "musan", kind, name), name))
    tenth = max(1, round(SHARES["test"] * len(order))) if len(order) >= 3 else 0
    return {
        name: "test" if index < tenth else "valid" if index < 2 * tenth else "train" for index, name in enumerate(order)
    }


def read_pieces(sound: Sound, audio: Path) -> tuple[Sound, list[MonoCut]]:
    """A file as cuts of 10 s; a rest of less than 1 s stays with the last, one of less than 3 s is dropped."""
    path = audio / f"{sound.id}.flac"
    num_samples = media.to_flac(sound.path, path).num_samples
    whole = recording(sound.id, path, num_samples).to_cut()
    cuts = []
    duration_s = num_samples / media.RATE_HZ
    for number in range(max(1, int(duration_s // PIECE_S) + 1)):
        start_s = number * PIECE_S
        rest_s = duration_s - start_s
        length_s = rest_s if rest_s <= LONGEST_S else PIECE_S
        if length_s >= SHORTEST_S:
            cut = whole.truncate(offset=start_s, duration=length_s)
            cut.id = f"{sound.id}-{number}"
            cuts.append(cut)
        if rest_s <= LONGEST_S:
            break
    return sound, cuts


def plan_babble(cuts: Sequence[MonoCut], split: str, number: int, voices: int, seed: int) -> list[Babble]:
    """Which pieces go into which mixture; says so if there are fewer than `voices`."""
    if not cuts:
        say(f"babble {split}: no speech, no babble")
        return []
    if len(cuts) < voices:
        say(f"babble {split}: mixtures of {len(cuts)} pieces of speech instead of {voices}: there are no more")
    mixtures = []
    for index in range(number):
        rng = numpy_rng(seed, "babble", split, index)
        chosen = rng.choice(len(cuts), size=min(voices, len(cuts)), replace=False)
        pieces = tuple(_place(cuts[k]) for k in sorted(chosen))
        mixtures.append(Babble(f"babble-{split}-{index:05d}", split, pieces))
    return mixtures


def mix_babble(babble: Babble, audio: Path) -> tuple[str, MonoCut]:
    """Split and cut: 10 s of the mean of the pieces, each repeated from its beginning if it is shorter."""
    path = audio / "babble" / f"{babble.id}.flac"
    num_samples = PIECE_S * media.RATE_HZ
    # Made again even if it is there: the pieces of an interrupted run may have been others.
    total = np.zeros(num_samples)
    for file, start, length in babble.pieces:
        try:
            samples, _ = soundfile.read(file, frames=length, start=start)
        except soundfile.LibsndfileError as error:
            raise BadItem(f"{file}: cannot be read ({error}); remove it and run again") from error
        total += np.resize(samples, num_samples)
    media.write_flac(path, [total / len(babble.pieces)])
    return babble.split, recording(babble.id, path, num_samples).to_cut()


def _place(cut: MonoCut) -> tuple[str, int, int]:
    return cut.recording.sources[0].source, round(cut.start * media.RATE_HZ), cut.num_samples
