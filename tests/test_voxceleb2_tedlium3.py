"""VoxCeleb2 and TED-LIUM 3, each made in its own layout with real, tiny files, become cuts."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import beep, numbered_frames, write_clip
from cuts import command
from lhotse import CutSet

from mmspeech.corpora import tedlium3, voxceleb2
from mmspeech.data.cutfiles import is_empty
from mmspeech.errors import BadItem, UserError

VIDEO = "01dfn2spqyE"


def load(folder: Path, split: str) -> list:
    path = folder / f"cuts_{split}.jsonl.gz"
    return [] if is_empty(path) else list(CutSet.from_jsonl_lazy(path))


def rejected(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "rejected.jsonl").read_text().splitlines()]


def write_vox(folder: Path, part: str, key: str, frames: int | None = 15, seconds: float | None = 0.6) -> None:
    if frames:
        write_clip(folder / part / "mp4" / f"{key}.mp4", numbered_frames(frames), None)
    if seconds:
        write_clip(folder / part / "aac" / f"{key}.m4a", None, beep(seconds, 0.2))


@pytest.fixture(scope="module")
def vox(tmp_path_factory) -> Path:
    """Five whole clips of dev and test; a picture and a sound without partner; a pair of two clips; one cut off."""
    folder = tmp_path_factory.mktemp("vox") / "voxceleb2"
    for part, key, *sizes in [
        ("dev", f"id00012/{VIDEO}/00001"),
        ("dev", f"id00012/{VIDEO}/00002", 15, 0.5),
        ("dev", "id00012/-xyz_1234_A/00001", 15, 0.8),
        ("dev", f"id00013/{VIDEO}/00001"),
        ("test", f"id00017/{VIDEO}/00001"),
        ("dev", "id00014/picture/00001", 15, None),
        ("dev", "id00014/sound/00001", None, 0.6),
        ("dev", "id00014/another/00001", 15, 2.4),
        ("dev", "id00014/cutoff/00001"),
    ]:
        write_vox(folder, part, key, *sizes)
    broken = folder / "dev/aac/id00014/cutoff/00001.m4a"
    broken.write_bytes(broken.read_bytes()[:300])
    return folder


def test_voxceleb2_joins_picture_and_sound_of_each_clip(vox, tmp_path):
    """Sound as long as the picture, from its beginning; no transcript; what has no partner is set aside."""
    out = tmp_path / "out"
    voxceleb2.prepare(vox, out, jobs=1)
    cuts = load(out, "pretrain")
    names = [f"id00012-{VIDEO}-00001", f"id00012-{VIDEO}-00002", "id00012--xyz_1234_A-00001", f"id00013-{VIDEO}-00001"]
    assert {cut.id for cut in cuts} == {f"pretrain-{name}" for name in [*names, f"id00017-{VIDEO}-00001"]}
    assert not load(out, "trainval") and not load(out, "valid") and not load(out, "test")
    for cut in cuts:
        wave = cut.load_audio()[0]
        loud = np.flatnonzero(np.abs(wave) > 0.2)
        assert (cut.duration, len(wave)) == (0.6, 9600)
        assert abs(loud[0] / 16_000 - 0.2) < 0.02  # the sound begins with the picture
        assert cut.source["path"].endswith(".mp4") and cut.source["num_frames"] == 15
        assert cut.supervisions[0].text is None and cut.supervisions[0].speaker.startswith("id000")
    reasons = rejected(out)
    assert len(reasons) == 4
    for part in (
        "a picture without its sound",
        "a sound without its picture",
        "lasts 2.40 s, but its picture",
        "cutoff",
    ):
        assert sum(part in reason for reason in reasons) == 1, reasons


def test_voxceleb2_list_names_the_english_clips(vox, tmp_path, capsys):
    """With or without endings and folders before; clips that are not there are counted; the language is known."""
    ids = tmp_path / "en.id"
    ids.write_text(
        f"id00012/{VIDEO}/00001\ndev/mp4/id00013/{VIDEO}/00001.mp4\n\nid00012/{VIDEO}/00002.m4a\nid9/gone/00001\n"
    )
    voxceleb2.prepare(vox, tmp_path / "out", ids=ids, jobs=1)
    cuts = load(tmp_path / "out", "pretrain")
    assert len(cuts) == 3 and {cut.supervisions[0].language for cut in cuts} == {"en"}
    assert "1 of 4 clips of the list are not there, such as id9/gone/00001" in capsys.readouterr().err
    assert rejected(tmp_path / "out") == []
    voxceleb2.prepare(vox, tmp_path / "out", ids=ids, jobs=1)
    assert "current, nothing to do" in capsys.readouterr().err
    for text, message in [("id1/00001\n", r"en\.id:1: expected SPEAKER/VIDEO/CLIP"), ("\n", "names no clip")]:
        ids.write_text(text)
        with pytest.raises(UserError, match=message):
            voxceleb2.prepare(vox, tmp_path / "other", ids=ids, jobs=1)
    ids.write_text("id9/gone/00001\n")
    with pytest.raises(UserError, match="none of the clips of the list is there"):
        voxceleb2.prepare(vox, tmp_path / "other", ids=ids, jobs=1)


def test_voxceleb2_gives_its_sound_alone(tmp_path):
    """Figure 4's audio-only data: only the aac trees, here right in the folder; no picture is looked for."""
    write_vox(tmp_path / "vox", ".", f"id00012/{VIDEO}/00001", frames=None, seconds=0.7)
    assert command("prepare", "voxceleb2", tmp_path / "vox", tmp_path / "out", "--audio-only", "--jobs", 1) == 0
    (cut,) = load(tmp_path / "out", "pretrain")
    assert not cut.has_custom("source") and abs(cut.duration - 0.7) < 0.1


def test_voxceleb2_that_is_not_there_is_explained(vox, tmp_path, capsys):
    """What it is, who gives it, what the folder looks like; --strict stops at the first clip."""
    with pytest.raises(UserError, match=r"no such folder\. VoxCeleb2 .*Visual Geometry Group.*SPEAKER/VIDEO/CLIP\.m4a"):
        voxceleb2.prepare(tmp_path / "nowhere", tmp_path / "out")
    write_vox(tmp_path / "vox", "dev", "a/b/1", frames=None)
    with pytest.raises(UserError, match=r"has aac, but no mp4.*--audio-only"):
        voxceleb2.prepare(tmp_path / "vox", tmp_path / "out")
    assert command("prepare", "voxceleb2", vox, tmp_path / "out", "--strict", "--jobs", 1) == 2
    assert "--strict stops here" in capsys.readouterr().err


def write_talk(folder: Path, name: str, lines: list[str], seconds: float = 4.0) -> None:
    """A talk as NIST sphere and STM: a beep at 1 s and one at 3 s."""
    for kind in ("sph", "stm"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    wave = beep(seconds, 1.0) + beep(seconds, 3.0)
    soundfile.write(folder / "sph" / f"{name}.sph", wave, 16_000, format="NIST", subtype="PCM_16")
    (folder / "stm" / f"{name}.stm").write_text("".join(f"{name} 1 {name} {line}\n" for line in lines))


@pytest.fixture
def ted(tmp_path) -> Path:
    """Two training talks, one for development, one for test; the last is among the data, too."""
    folder = tmp_path / "TEDLIUM_release-3"
    lines = [
        "0.50 2.00 <o,f0,male> it 's <unk> what they 'll 've {NOISE} done ' cause I said so",
        "2.00 2.90 <NA> ignore_time_segment_in_scoring",
        "2.9 4.02 <o,f0,male> <unk>",
    ]
    write_talk(folder / "data", "AlGore_2006", lines)
    write_talk(folder / "data", "JamesCameron_2010", ["0.0 1.5 <o,f0,male> avatar", "2.5 3.5 <o,f0,male> titanic"])
    for split, name in (("dev", "DanBarber_2010"), ("test", "GaryFlake_2010")):
        write_talk(folder / "legacy" / split, name, ["0.0 2.0 <o,f0,male> held out"])
    write_talk(folder / "data", "GaryFlake_2010", ["0.0 2.0 <o,f0,male> held out"])
    return folder


def test_tedlium_becomes_cuts_of_segments(ted, tmp_path):
    """Sound where the times say; words joined and marks gone; what nobody says is left out."""
    tedlium3.prepare(ted, tmp_path / "out", jobs=1)
    cuts = load(tmp_path / "out", "trainval")
    assert [cut.id for cut in cuts] == [
        *("trainval-AlGore-2006-0000", "trainval-AlGore-2006-0001"),
        *("trainval-JamesCameron-2010-0000", "trainval-JamesCameron-2010-0001"),
    ]
    first, unknown = cuts[:2]
    assert first.supervisions[0].text == "it's what they'll've done 'cause i said so"
    assert (first.start, first.duration, unknown.start, unknown.end) == (0.5, 1.5, 2.9, 4.0)
    assert unknown.supervisions[0].text is None and first.supervisions[0].speaker == "AlGore"
    wave = first.load_audio()[0]
    loud = np.flatnonzero(np.abs(wave) > 0.2)
    assert len(wave) == 24_000 and abs(loud[0] / 16_000 - 0.5) < 0.005
    assert str(first.recording.sources[0].source).endswith("AlGore/2006.flac") and first.sampling_rate == 16_000


def test_tedlium_segments_carry_the_phones_of_their_time(ted, tmp_path):
    """A CTM of whole talks: each segment has its part, counted from its own beginning."""
    phones = [("0.60", "0.30", "IH1"), ("0.90", "1.05", "T"), ("2.95", "0.50", "S"), ("3.45", "0.40", "OW1")]
    lines = [f"AlGore/2006 1 {start} {length} {phone}\n" for start, length, phone in phones]
    (tmp_path / "phones.ctm").write_text("".join(lines))
    tedlium3.prepare(ted, tmp_path / "out", alignments=tmp_path / "phones.ctm", jobs=1)
    first, second = (cut.supervisions[0].alignment["phone"] for cut in load(tmp_path / "out", "trainval")[:2])
    assert [(one.symbol, one.start, one.duration) for one in first] == [("IH1", 0.1, 0.3), ("T", 0.4, 1.05)]
    assert [(one.symbol, one.start, one.duration) for one in second] == [("S", 0.05, 0.5), ("OW1", 0.55, 0.4)]


def test_tedlium_talks_for_development_and_test_are_never_trained_on(ted, tmp_path):
    """Also when the folder of all data has them; and when their own files are incomplete."""
    tedlium3.prepare(ted, tmp_path / "out", jobs=1)
    speakers = {
        s: {cut.supervisions[0].speaker for cut in load(tmp_path / "out", s)} for s in ("trainval", "valid", "test")
    }
    assert speakers == {"trainval": {"AlGore", "JamesCameron"}, "valid": {"DanBarber"}, "test": {"GaryFlake"}}
    assert not load(tmp_path / "out", "pretrain")
    (ted / "legacy/test/sph/GaryFlake_2010.sph").unlink()
    (ted / "data/sph/GaryFlake_2010.sph").unlink()
    talks, left_out = tedlium3.find_talks(ted)
    assert "GaryFlake" not in {talk.speaker for talk in talks} and "without its GaryFlake_2010.sph" in left_out[0][1]


def test_tedlium_links_of_the_legacy_split_are_followed(ted, tmp_path):
    """legacy/train holds links to data; broken ones lead there by name."""
    for kind in ("sph", "stm"):
        (ted / "legacy/train" / kind).mkdir(parents=True)
    for name in ("AlGore_2006", "JamesCameron_2010"):
        (ted / f"legacy/train/stm/{name}.stm").write_text((ted / f"data/stm/{name}.stm").read_text())
        (ted / f"legacy/train/sph/{name}.sph").symlink_to("nowhere.sph")
    talks, left_out = tedlium3.find_talks(ted)
    assert sum(talk.split == "trainval" for talk in talks) == 2 and left_out == []


def test_tedlium_talks_that_cannot_be_used_are_set_aside(ted, tmp_path):
    """A line that is no segment, times beyond the sound, no transcript, a cut-off file: each with its reason."""
    write_talk(ted / "data", "A_1", ["zero 2.0 <o,f0,male> hello"])
    write_talk(ted / "data", "B_1", ["0.0 9.0 <o,f0,male> hello"])
    write_talk(ted / "data", "C_1", ["0.0 1.0 <o,f0,male> hello"])
    (ted / "data/stm/C_1.stm").unlink()
    write_talk(ted / "data", "D_1", ["0.0 1.0 <o,f0,male> hello"])
    (ted / "data/sph/D_1.sph").write_bytes(b"NIST_1A\n   1024\n")
    tedlium3.prepare(ted, tmp_path / "out", jobs=1)
    assert len(load(tmp_path / "out", "trainval")) == 4
    reasons = "\n".join(rejected(tmp_path / "out"))
    for part in ("A_1.stm:1: expected TALK CHANNEL", "ends at 9.00 s, but", "a talk without its C_1.stm", "D_1.sph"):
        assert part in reasons, reasons
    path = tmp_path / "x.stm"
    path.write_text(";; a comment\n\na 1 a 2.0 1.0 <o> b\n")
    with pytest.raises(BadItem, match=r"x\.stm:3: the segment ends before it begins"):
        tedlium3.read_stm(path)


def test_tedlium_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"no talk with its \.sph and \.stm is there\. TED-LIUM 3 .*openslr\.org/51"):
        tedlium3.prepare(tmp_path, tmp_path / "out")


def test_tedlium_text_is_cleaned():
    """What the corpus sets apart is one word; marks are none."""
    for text, wanted in [
        ("it 's {BREATH} don 't <unk>", "it's don't"),
        ("rock ' n roll in the ' 60s", "rock 'n roll in the '60s"),
        ("<unk>", ""),
        ("they 're we 've i 'd 've", "they're we've i'd've"),
        ("five o 'clock go get 'em", "five o'clock go get 'em"),
        ("[NOISE] Hello", "hello"),
    ]:
        assert tedlium3.clean_text(text) == wanted
