"""The embedded corpus: a talking-face corpus that we make, in LRS3's own layout on disk, with noise in MUSAN's.

    speaker ─▶ voice, look, habits          espeak-ng ──▶ samples, phones, words ──▶ mouth shapes ──▶ frames ──▶ mp4
    clip ────▶ text, camera, head motion ──▶    ┘               └──▶ txt, TextGrid       └──▶ 68 landmarks

Everything that is drawn has a key of its own (seed, purpose, speaker or clip): the same seed gives the same texts,
speakers, looks and splits for any number of processes. The samples themselves differ slightly from run to run.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import soundfile

from mmspeech import files
from mmspeech.console import say
from mmspeech.corpora import (
    synth_face,
    synth_lips,
    synth_noise,
    synth_paint,
    synth_speech,
    synth_talks,
    synth_text,
    synth_video,
)
from mmspeech.corpora.lrs3 import STAND_IN
from mmspeech.corpora.synth_sound import SAMPLES_PER_FRAME, SPLITS, record, text_grid, timbres_of
from mmspeech.corpora.synth_speech import RATE_HZ, Mark
from mmspeech.errors import UserError
from mmspeech.seeds import numpy_rng

SHARES = (0.5, 0.36, 0.14)  # of the speakers: labelled ones must be many, or unknown voices are not understood
NOISE_SPEAKERS = 20  # so that a tenth of them, the usual test share, are still two


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip to make; all that it will be follows from this and its speaker."""

    split: str
    speaker: str
    timbre: str
    name: str
    vocabulary: str
    difficulty: float
    seed: int

    @property
    def id(self) -> str:
        """As the cut will be called after `prepare lrs3`."""
        return f"{self.split}-{self.speaker}-{self.name}"


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One file of the noise corpus to make."""

    kind: str
    path: str
    speaker: str
    timbre: str
    seed: int

    @property
    def id(self) -> str:
        """Its name among the rejected."""
        return self.path


class Made(NamedTuple):
    """What became of a clip: for the summary and the translations."""

    clip: Clip
    words: tuple[str, ...]
    translation: dict[str, str]
    duration_s: float


def prepare(
    out: Path,
    seed: int = 0,
    vocabulary: Literal["digits", "commands"] = "digits",
    difficulty: float = 0.3,
    pretrain_clips: int = 900,
    trainval_clips: int = 400,
    test_clips: int = 400,
    speakers: int = 120,
    noise_files: int = 160,
    sentences: int = 0,
    talks: int = 0,
    recordings: int = 0,
    jobs: int = 2,
) -> None:
    """Make a small talking-face corpus: espeak-ng speaks, a drawn face moves its lips.

    OUT receives lrs3/ (mp4 and txt in LRS3's layout: pretrain, trainval, test; no speaker in two of them),
    alignments/ (TextGrid), landmarks/ (68 points per frame), musan/ (noise in MUSAN's layout, of other speakers) and,
    for commands, translations/es.tsv and de.tsv (`prepare lrs3 --translations`). A clip lasts about 2.3 seconds. If
    asked for: text/sentences.txt (one per line), tedlium/ (talks in TED-LIUM's layout, their phones in
    talk-alignments/) and gigaspeech/ (recordings in GigaSpeech's), none of which says what a clip of test says. Does
    nothing if OUT is current. Next: `mmspeech prepare lrs3 OUT/lrs3 ...`, `mmspeech prepare musan OUT/musan ...`.

    Example: `mmspeech prepare synth exp/synth --seed 0`

    Args:
        out: Folder to write.
        seed: Fixes texts, speakers, looks and splits.
        vocabulary: digits (strings of 4 to 8 of them) or commands (GRID's grammar, with translations).
        difficulty: From 0 (clear lips, clean pictures) to 1 (sloppy lips, moving heads, poor pictures).
        pretrain_clips: Clips of pretrain.
        trainval_clips: Clips of trainval: for fine-tuning, and validation.
        test_clips: Clips of test.
        speakers: Of all clips together; at least 3, as no speaker is in two splits.
        noise_files: Files of speech in the noise corpus; music and noise add an eighth each.
        sentences: Lines of text without speech.
        talks: Talks without pictures, each of 20 sentences by another speaker: about 55 seconds. To each eight of them
            comes one more, to validate on.
        recordings: The same as talks, by others, for speech whose words nobody looks at.
        jobs: Processes that make clips.
    """
    counts = dict(zip(SPLITS, (pretrain_clips, trainval_clips, test_clips), strict=True))
    settings: dict[str, object] = {"seed": seed, "vocabulary": vocabulary, "difficulty": difficulty, "clips": counts}
    settings |= {"speakers": speakers, "noise_files": noise_files}
    more = {"sentences": sentences, "talks": talks, "recordings": recordings}
    # Named only where there are any: a corpus without them is the one it was before they could be made.
    stage = files.Stage(out, settings=settings | {name: number for name, number in more.items() if number})
    clips = plan_clips(seed, vocabulary, difficulty, counts, speakers)
    sounds = plan_sounds(seed, noise_files)
    if stage.is_current():
        return
    synth_speech.check_installed()
    with stage.writing() as folder, files.Rejects(folder / "rejected.jsonl") as rejects:
        make = functools.partial(make_one, folder=folder)
        results = files.parallel_map(make, [*clips, *sounds], jobs=jobs, rejects=rejects, title="talking faces, noise")
        made = [result for result in results if result is not None]
        if len(made) < 0.9 * len(clips):
            raise UserError(
                f"{out}: only {len(made)} of {len(clips)} clips could be made; "
                f"the first reason: {(folder / 'rejected.jsonl').read_text().splitlines()[0]}"
            )
        (folder / "lrs3" / STAND_IN).write_text(f"synth {vocabulary}\n", encoding="utf-8")
        if vocabulary == "commands":
            write_translations(folder / "translations", made)
        unseen = synth_talks.Unseen(vocabulary, frozenset(sentence_of(c).words for c in clips if c.split == "test"))
        synth_talks.write_sentences(folder, unseen, sentences, seed)
        synth_talks.make(folder, unseen, seed, difficulty, talks, recordings, jobs, rejects)
    for split in SPLITS:
        own = [item for item in made if item.clip.split == split]
        minutes = sum(item.duration_s for item in own) / 60
        names = {item.clip.speaker for item in own}
        words = sum(len(item.words) for item in own)
        say(f"{split}: {len(own)} clips, {minutes:.1f} minutes, {words} words, {len(names)} speakers")


def plan_clips(seed: int, vocabulary: str, difficulty: float, counts: dict[str, int], speakers: int) -> list[Clip]:
    """All clips, speaker by speaker. Raises UserError for sizes that cannot be."""
    if vocabulary not in synth_text.VOCABULARIES:
        raise UserError(f"vocabulary: expected one of {', '.join(synth_text.VOCABULARIES)}, not `{vocabulary}`")
    if not 0.0 <= difficulty <= 1.0:
        raise UserError(f"difficulty: expected 0 to 1, not {difficulty}")
    if speakers < len(SPLITS):
        raise UserError(f"speakers: expected at least {len(SPLITS)}, not {speakers}; every split needs its own")
    timbres = timbres_of(seed)
    rest = speakers - len(SPLITS)
    sizes = [1 + round(share * rest) for share in SHARES[:2]]
    sizes.append(speakers - sum(sizes))
    clips, first = [], 0
    for split, size in zip(SPLITS, sizes, strict=True):
        own, theirs = range(first, first + size), timbres[split]
        first += size
        for i, number in enumerate(own):
            # As even as can be: the first speakers have one clip more.
            for k in range(i, counts[split], size):
                clips.append(
                    Clip(
                        split=split, speaker=f"s{number:03d}", timbre=theirs[i % len(theirs)], name=f"{k:05d}",
                        vocabulary=vocabulary, difficulty=difficulty, seed=seed,
                    )
                )  # fmt: skip
    return clips


def plan_sounds(seed: int, noise_files: int) -> list[Sound]:
    """All files of the noise corpus; a folder of speech holds one speaker."""
    timbres = timbres_of(seed)["noise"]
    sounds = []
    for k in range(noise_files):
        speaker = f"n{k % NOISE_SPEAKERS:02d}"
        path = f"speech/{speaker}/speech-{speaker}-{k // NOISE_SPEAKERS:04d}.wav"
        timbre = timbres[k % NOISE_SPEAKERS % len(timbres)]
        sounds.append(Sound(kind="speech", path=path, speaker=speaker, timbre=timbre, seed=seed))
    for kind in ("music", "noise"):
        for k in range((noise_files + 7) // 8):
            path = f"{kind}/synth/{kind}-synth-{k:04d}.wav"
            sounds.append(Sound(kind=kind, path=path, speaker="", timbre="", seed=seed))
    return sounds


def sentence_of(clip: Clip) -> synth_text.Sentence:
    """What the clip says."""
    return synth_text.VOCABULARIES[clip.vocabulary](numpy_rng(clip.seed, "synth text", clip.vocabulary, clip.id))


def look_of(clip: Clip) -> synth_face.Look:
    """How the clip's speaker looks."""
    return synth_face.draw_look(clip.difficulty, numpy_rng(clip.seed, "synth look", clip.speaker))


def voice_of(thing: Clip | Sound) -> synth_speech.Voice:
    """How the speaker sounds."""
    return synth_speech.draw_voice(thing.timbre, numpy_rng(thing.seed, "synth voice", thing.speaker))


def make_one(thing: Clip | Sound, folder: Path) -> Made | None:
    """Write one clip or one file of noise."""
    if isinstance(thing, Clip):
        return make_clip(thing, folder)
    make_sound(thing, folder)
    return None


def make_clip(clip: Clip, folder: Path) -> Made:
    """Speak, film and write one clip: mp4, txt, TextGrid and landmarks."""
    cv2.setNumThreads(1)
    sentence = sentence_of(clip)
    draw = functools.partial(numpy_rng, clip.seed)
    samples, phones, words = record(sentence, voice_of(clip), clip.difficulty, draw("synth recording", clip.id))
    num_frames = len(samples) // SAMPLES_PER_FRAME
    habits = synth_lips.draw_habits(clip.difficulty, draw("synth habits", clip.speaker))
    mouth = synth_lips.move(phones, words, num_frames, habits, draw("synth mouth", clip.id))
    blinks = synth_video.draw_blinks(num_frames, draw("synth blinks", clip.id))
    maps = synth_video.head_motion(num_frames, clip.difficulty, draw("synth head", clip.id))
    camera = synth_video.draw_camera(clip.difficulty, draw("synth camera", clip.id))
    look = look_of(clip)
    points = synth_face.landmarks(look, mouth, blinks)

    where = Path(clip.split) / clip.speaker / clip.name
    mp4, txt, grid, pixels = (
        (folder / kind / where).with_suffix(suffix)
        for kind, suffix in (("lrs3", ".mp4"), ("lrs3", ".txt"), ("alignments", ".TextGrid"), ("landmarks", ".npy"))
    )
    for path in (mp4, grid, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
    frames = synth_video.film(_painter(look).paint(mouth, blinks, points), maps, camera, draw("synth film", clip.id))
    synth_video.write_mp4(mp4, frames, samples, camera.crf)
    txt.write_text(transcript(clip.split, words), encoding="utf-8")
    grid.write_text(text_grid(phones, words, len(samples) / RATE_HZ), encoding="utf-8")
    np.save(pixels, synth_video.to_pixels(points, maps).astype(np.float16))
    return Made(clip, sentence.words, sentence.translation, len(samples) / RATE_HZ)


def make_sound(sound: Sound, folder: Path) -> None:
    """Write one file of the noise corpus."""
    rng = numpy_rng(sound.seed, "synth noise", sound.path)
    if sound.kind == "speech":
        samples = synth_noise.speech(voice_of(sound), rng)
    else:
        samples = {"music": synth_noise.music, "noise": synth_noise.noise}[sound.kind](rng)
    path = folder / "musan" / sound.path
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")


def transcript(split: str, words: Sequence[Mark]) -> str:
    """A clip's txt, as in LRS3: word times in pretrain only."""
    lines = [f"Text:  {' '.join(word.label.upper() for word in words)}", "Conf:  5"]
    if split == "pretrain":
        lines += ["", "WORD START END ASDSCORE"]
        lines += [f"{word.label.upper()} {word.start_s:.2f} {word.end_s:.2f} 5.0" for word in words]
    return "\n".join(lines) + "\n"


def write_translations(folder: Path, made: Sequence[Made]) -> None:
    """A file per language, LANGUAGE.tsv, with lines SPLIT/SPEAKER/CLIP, a tab, and what is said in that language."""
    folder.mkdir()
    for language in made[0].translation:
        lines = [f"{clip.split}/{clip.speaker}/{clip.name}\t{texts[language]}\n" for clip, _, texts, _ in made]
        (folder / f"{language}.tsv").write_text("".join(lines), encoding="utf-8")


@functools.lru_cache(maxsize=4)
def _painter(look: synth_face.Look) -> synth_paint.Painter:
    """A speaker's face, drawn once for the clips that follow each other."""
    return synth_paint.Painter(look)
