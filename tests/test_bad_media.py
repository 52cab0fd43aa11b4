"""Bad input: one clear line each, the rest goes on, and nothing is lost."""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import beep, numbered_frames, write_clip

from mmspeech import containers, media
from mmspeech.cli import app
from mmspeech.errors import BadItem, UserError


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """The real command line, in this process: words -> (exit code, what it printed on stderr)."""

    def command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmspeech", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            app.main()
        return end.value.code, capsys.readouterr().err

    return command


def good_clip(path: Path) -> Path:
    return write_clip(path, numbered_frames(25), beep(1.0, 0.3))


def cut_off(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def make_bad_clips(folder: Path) -> dict[str, str]:
    """One file of every kind of trouble, and what the message must say of it."""
    cut_off(good_clip(folder / "a" / "truncated.mp4"), 0.6)
    write_clip(folder / "a" / "silent.mp4", numbered_frames(25), None)
    (folder / "a" / "empty.mp4").write_bytes(b"")
    (folder / "a" / "text.mp4").write_text("this is no video\n" * 100)
    write_clip(folder / "a" / "blink.mp4", numbered_frames(2), beep(0.08, 0.0))
    cut_off(write_clip(folder / "a" / "half.flac", None, np.random.default_rng(0).uniform(-1, 1, 80_000)), 0.3)
    return {
        "truncated.mp4": "not a media file, or cut off",
        "silent.mp4": "expected an audio stream, found none",
        "empty.mp4": "not a media file, or cut off",
        "text.mp4": "not a media file, or cut off",
        "blink.mp4": "expected at least 0.2 s, found 0.08 s",
        "half.flac": "cut off",
    }


def test_bad_clips_are_set_aside_with_their_reasons_and_the_rest_goes_on(run, tmp_path):
    wanted = make_bad_clips(tmp_path / "own")
    good_clip(tmp_path / "own" / "a" / "good.mp4")
    write_clip(tmp_path / "own" / "b" / "telephone.wav", None, beep(1.0, 0.5, 8_000), rate=8_000)
    code, said = run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--jobs", 1)
    assert code == 0
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {Path(line["reason"].split(":")[0]).name: line["reason"] for line in rejected}
    assert set(reasons) == set(wanted)
    for name, text in wanted.items():
        assert text in reasons[name] and "\n" not in reasons[name]
    assert f"{len(wanted)} item(s) set aside" in said and "cuts_pretrain.jsonl.gz: 2 cuts" in said
    assert not list((tmp_path / "out").rglob(".*")), "no half-written file stays"


def test_clips_too_long_to_train_on_are_counted_with_advice(run, tmp_path):
    """The loader leaves out what is longer than its limit; who prepares such clips hears of it at once."""
    good_clip(tmp_path / "own" / "a" / "short.mp4")
    write_clip(tmp_path / "own" / "a" / "talk.wav", None, beep(81.0, 0.5, 8_000), rate=8_000)
    code, said = run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--jobs", 1)
    assert code == 0 and "1 cut(s) are longer than 80 s, so training leaves them out; split" in said


def test_strict_stops_at_the_first_bad_clip(run, tmp_path):
    good_clip(tmp_path / "own" / "a" / "1good.mp4")
    write_clip(tmp_path / "own" / "a" / "2silent.mp4", numbered_frames(25), None)
    code, said = run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--strict", "--jobs", 1)
    assert code == 2
    assert "error:" in said and "2silent.mp4: expected an audio stream" in said and "--strict" in said
    assert not (tmp_path / "out" / "stage.json").exists()


def test_interrupted_preparation_goes_on_with_what_is_there(run, tmp_path):
    """After the bad clip is mended in place the finished FLAC is the same file; nothing was thrown away."""
    good_clip(tmp_path / "own" / "a" / "1good.mp4")
    bad = tmp_path / "own" / "a" / "2bad.mp4"
    size = good_clip(bad).stat().st_size
    content = bad.read_bytes()
    bad.write_bytes(b"\0" * size)
    assert run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--strict", "--jobs", 1)[0] == 2
    flac = next((tmp_path / "out").rglob("1good.flac"))
    stamp = flac.stat().st_mtime_ns
    bad.write_bytes(content)
    assert run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--strict", "--jobs", 1)[0] == 0
    assert flac.stat().st_mtime_ns == stamp


def test_nothing_left_is_an_error(run, tmp_path):
    write_clip(tmp_path / "own" / "a" / "silent.mp4", numbered_frames(25), None)
    code, said = run("prepare", "clips", tmp_path / "own", tmp_path / "out", "--jobs", 1)
    assert code == 2 and "none of 1 clips could be used" in said


@pytest.mark.parametrize("corpus", ["lrs3", "grid", "musan", "clips"])
@pytest.mark.parametrize("there", [True, False])
def test_a_corpus_that_is_not_there_is_described(run, tmp_path, corpus, there):
    if there:
        (tmp_path / "data").mkdir()
    code, said = run("prepare", corpus, tmp_path / "data", tmp_path / "out")
    assert code == 2 and not (tmp_path / "out").exists()
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'data'}: expected")
    wanted = {
        "lrs3": ["no longer handed out", "trainval/", "prepare grid", "prepare clips", "prepare synth"],
        "grid": ["zenodo", "SPEAKER/CLIP.mpg"],
        "musan": ["openslr", "music/", "prepare synth"],
        "clips": ["mp4", "wav"],
    }
    assert all(text in last for text in wanted[corpus])
    assert ("no such folder" in last) is not there


def test_lrs3_clips_need_a_picture_and_a_transcript(run, tmp_path):
    """Sound alone, no transcript, an empty one, a transcript alone: four lines, and the fifth clip goes on."""
    folder = tmp_path / "lrs3" / "test" / "spk"
    for name in ("good", "untold", "wordless", "backward"):
        good_clip(folder / f"{name}.mp4")
    write_clip(folder / "sound.mp4", None, beep(1.0, 0.5))
    for name in ("good", "sound", "lonely"):
        (folder / f"{name}.txt").write_text("Text:  HELLO\nConf:  4\n")
    (folder / "wordless.txt").write_text("Conf:  4\n")
    (folder / "backward.txt").write_text("Text:  A\n\nWORD START END ASDSCORE\nA 2.0 1.0 3\n")
    code, _ = run("prepare", "lrs3", tmp_path / "lrs3", tmp_path / "out", "--jobs", 1)
    assert code == 0
    reasons = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    for text in (
        "lonely.txt: a transcript without its clip lonely.mp4",
        "untold.txt: no transcript there",
        "wordless.txt: expected a first line `Text: ...`",
        "sound.mp4: expected a video stream, found sound only",
        "backward.txt:4: the word ends before it begins",
    ):
        assert sum(text in line for line in reasons) == 1, text
    assert len(reasons) == 5


def test_output_inside_the_corpus_is_refused(run, tmp_path):
    good_clip(tmp_path / "own" / "a" / "1.mp4")
    code, said = run("prepare", "clips", tmp_path / "own", tmp_path / "own" / "out")
    assert code == 2 and "lies inside the corpus" in said


def test_truncated_frames_and_sound_are_noticed_in_a_file_whose_header_comes_first(tmp_path):
    """A header at the front survives the cut; then the header's counts give it away."""
    whole = write_clip(tmp_path / "a.mp4", numbered_frames(60), beep(2.4, 0.3), faststart=True)
    cut_off(whole, 0.7)
    with pytest.raises(BadItem, match="cut off"):
        media.to_flac(whole, tmp_path / "a.flac")
    assert not (tmp_path / "a.flac").exists()


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_a_full_disk_is_said_and_leaves_no_half_file(tmp_path, limit):
    """No room is imitated by a limit on the size of files, which holds for root too."""
    noise = np.random.default_rng(0).uniform(-1, 1, 20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="could not be written"):
            media.write_flac(tmp_path / "a.flac", [noise])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_file_without_picture_are_refused(tmp_path):
    path = write_clip(tmp_path / "a.wav", None, beep(1.0, 0.5))
    with pytest.raises(BadItem, match="expected a video stream"):
        next(media.read_frames(path, grey=True))


def test_the_installed_command_prints_one_line_and_no_traceback(mmspeech, tmp_path):
    done = mmspeech("prepare", "lrs3", tmp_path / "nowhere", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_tags_in_latin_1_are_no_reason_to_stop(tmp_path):
    """An artist's name as many old files hold it: the sound is read."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1600, np.float32), 16000)
    tag = b"Bj\xf6rk\0"
    info = b"INFOIART" + len(tag).to_bytes(4, "little") + tag
    data = path.read_bytes() + b"LIST" + len(info).to_bytes(4, "little") + info
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:])
    with containers.open_container(path) as container:
        assert len(container.streams.audio) == 1
