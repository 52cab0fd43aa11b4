"""GigaSpeech and LRS2, each made in its own layout with real, tiny files, become cuts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from clips import beep, numbered_frames, write_clip
from cuts import command
from lhotse import CutSet

from mmspeech.corpora import alignments, gigaspeech, lrs2, splits
from mmspeech.data.cutfiles import is_empty
from mmspeech.errors import UserError


def load(folder: Path, split: str) -> list:
    path = folder / f"cuts_{split}.jsonl.gz"
    return [] if is_empty(path) else list(CutSet.from_jsonl_lazy(path))


def rejected(folder: Path) -> list[str]:
    return [json.loads(line)["reason"] for line in (folder / "rejected.jsonl").read_text().splitlines()]


def segment(number: int, begin: float, end: float, text: str, *subsets: str, speaker: str = "N/A") -> dict:
    return {
        "sid": f"S{number:07d}", "speaker": speaker, "begin_time": begin, "end_time": end, "text_tn": text,
        "subsets": [f"{{{name}}}" for name in subsets],
    }  # fmt: skip


def entry(folder: Path, aid: str, source: str, segments: list[dict], seconds: float = 4.0) -> dict:
    """A recording with a beep at 1 s and one at 3 s, as opus, and what the list says of it."""
    path = f"audio/{source}/P0000/{aid}.opus"
    write_clip((folder / path).with_suffix(".ogg"), None, beep(seconds, 1.0) + beep(seconds, 3.0))
    (folder / path).with_suffix(".ogg").rename(folder / path)
    for number, one in enumerate(segments):
        one["sid"] = f"{aid}_S{number:07d}"
    subsets = sorted({name for one in segments for name in one["subsets"]})
    about = {"title": 'a "]}" [', "path": path, "aid": aid, "source": source, "subsets": subsets, "speaker": "N/A"}
    return about | {"segments": segments}


@pytest.fixture
def giga(tmp_path) -> Path:
    """Two recordings of YouTube, a podcast, one to validate on and one to test on."""
    folder = tmp_path / "GigaSpeech"
    audios = [
        entry(folder, "YOU0000000001", "youtube", [
            segment(0, 0.5, 2.0, "AS THEY'RE LEAVING <COMMA> CAN KASH <QUESTIONMARK>", "XL", "L"),
            segment(1, 2.0, 2.9, "<SIL>", "XL"),
            segment(2, 2.9, 4.2, "YES <PERIOD>", "XL", speaker="ANN"),
        ]),
        entry(folder, "POD0000000001", "podcast", [segment(0, 0.0, 1.5, "HELLO", "XL", "XS")]),
        entry(folder, "YOU0000000002", "youtube", [segment(0, 0.0, 1.5, "NOT IN XL", "M")]),
        entry(folder, "POD1000000001", "podcast", [segment(0, 0.0, 1.5, "VALID", "DEV")]),
        entry(folder, "YOU1000000001", "youtube", [segment(0, 0.0, 1.5, "TEST", "TEST")]),
    ]  # fmt: skip
    (folder / "GigaSpeech.json").write_text(json.dumps({"dataset": "GigaSpeech", "audios": audios}, indent=4))
    return folder


def test_gigaspeech_becomes_cuts_of_segments_by_subset_and_source(giga, tmp_path):
    """Sound where the times say; tags of punctuation gone; silence, podcasts and other subsets are not there."""
    out = tmp_path / "out"
    given = ["prepare", "gigaspeech", giga, out, "--subset", "XL", "--source", "youtube", "--jobs", 1]
    assert command(*given) == 0
    first, second = load(out, "trainval")
    assert (first.id, second.id) == ("YOU0000000001_S0000000", "YOU0000000001_S0000002")
    assert first.supervisions[0].text == "as they're leaving can kash"
    assert (first.start, first.duration, second.start, second.end) == (0.5, 1.5, 2.9, 4.0)
    assert (first.supervisions[0].speaker, second.supervisions[0].speaker) == (None, "ANN")
    wave = first.load_audio()[0]
    loud = np.flatnonzero(np.abs(wave) > 0.2)
    assert len(wave) == 24_000 and abs(loud[0] / 16_000 - 0.5) < 0.02
    assert str(first.recording.sources[0].source).endswith("audio/trainval/youtube/P0000/YOU0000000001.flac")
    assert [cut.supervisions[0].text for cut in load(out, "valid") + load(out, "test")] == ["valid", "test"]
    assert not load(out, "pretrain") and rejected(out) == []
    assert {cut.corpus for cut in load(out, "test")} == {"gigaspeech"}


def test_gigaspeech_of_all_sources_and_smaller_subsets(giga, tmp_path):
    for subset, names in (("XL", ["YOU0000000001"] * 2 + ["POD0000000001"]), ("XS", ["POD0000000001"]), ("S", [])):
        gigaspeech.prepare(giga, tmp_path / subset, subset=subset, jobs=1)
        assert [cut.id.partition("_")[0] for cut in load(tmp_path / subset, "trainval")] == names


def test_gigaspeech_goes_on_where_it_was_stopped(giga, tmp_path, capsys):
    """A recording that was decoded before is not decoded again; with its output current nothing is read."""
    gone = giga / "audio/youtube/P0000/YOU1000000001.opus"
    opus = gone.read_bytes()
    gone.unlink()
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"YOU1000000001\.opus: no such file.*--strict stops here"):
        gigaspeech.prepare(giga, out, strict=True, jobs=1)
    flac = out / "audio/trainval/youtube/P0000/YOU0000000001.flac"
    written = flac.stat().st_mtime_ns
    assert not (out / "stage.json").exists()
    gigaspeech.prepare(giga, out, jobs=1)
    assert flac.stat().st_mtime_ns == written and len(load(out, "test")) == 0 and "no such file" in rejected(out)[0]
    gigaspeech.prepare(giga, out, jobs=1)
    assert "current, nothing to do" in capsys.readouterr().err
    gone.write_bytes(opus)
    gigaspeech.prepare(giga, out, jobs=1)
    assert len(load(out, "test")) == 1


@pytest.mark.parametrize("chunk", [7, 64, 1000, 1 << 20])
def test_the_list_is_read_entry_by_entry(tmp_path, monkeypatch, chunk):
    """Whatever is read at a time, and however entries are spaced, they are those that json finds."""
    monkeypatch.setattr(gigaspeech, "CHUNK", max(chunk, 40))
    audios = [{"aid": str(i), "title": '}],"[{\\"é', "segments": [{"n": j} for j in range(i)]} for i in range(9)]
    for indent in (None, 3):
        path = tmp_path / "GigaSpeech.json"
        path.write_text(json.dumps({"version": "1", "audios": audios, "end": {}}, indent=indent, ensure_ascii=False))
        assert list(gigaspeech.read_list(path)) == audios
    path.write_text('{"version": "1", "audios": []}')
    assert list(gigaspeech.read_list(path)) == []


def test_a_list_larger_than_memory_would_be_read_in_constant_memory(tmp_path, monkeypatch):
    """Never more of the text is held than an entry and two chunks."""
    monkeypatch.setattr(gigaspeech, "CHUNK", 1000)
    held = []
    path = tmp_path / "GigaSpeech.json"
    path.write_text('{"audios": [' + ", ".join(json.dumps({"aid": i, "x": "y" * 500}) for i in range(2000)) + "]}")

    class Decoder(json.JSONDecoder):
        def raw_decode(self, text, place=0):
            held.append(len(text))
            return super().raw_decode(text, place)

    monkeypatch.setattr(gigaspeech.json, "JSONDecoder", Decoder)
    assert sum(1 for _ in gigaspeech.read_list(path)) == 2000 and max(held) < 3000


def test_lists_that_cannot_be_read_are_one_line(giga, tmp_path, monkeypatch):
    """Cut off, broken in the middle, no list at all, not there, one level off."""
    path = giga / "GigaSpeech.json"
    whole = path.read_text()
    for text, message in [
        (whole[: len(whole) // 2], r"GigaSpeech\.json: cut off or broken at the entry that begins with '\{"),
        (whole.rstrip("]}\n "), "cut off or broken at"),
        ('{"version": 1}', 'expected a list "audios" near its beginning'),
        ('{"audios": []}', "no segment of subset XL and source all, nor DEV or TEST"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            gigaspeech.prepare(giga, tmp_path / "out", strict=True, jobs=1)
        assert "\n" not in str(caught.value)
    path.write_bytes(b'{"audios": [\xff')
    with pytest.raises(UserError, match="expected JSON in UTF-8"):
        list(gigaspeech.read_list(path))
    with pytest.raises(UserError, match=r"no GigaSpeech\.json is there; .*GigaSpeech holds it: give that"):
        gigaspeech.prepare(giga / "audio", tmp_path / "out")
    with pytest.raises(UserError, match=r"no GigaSpeech\.json is there; .*GigaSpeech holds it: give that"):
        gigaspeech.prepare(giga.parent, tmp_path.parent / "out")
    with pytest.raises(UserError, match=r"no such folder\. GigaSpeech \(10,000 h.*AID\.opus"):
        gigaspeech.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_gigaspeech_segments_that_cannot_be_used_are_set_aside(giga, tmp_path):
    """Times beyond the sound, times before it, no times: the other segments of the recording stay. A recording of
    nothing but music is set aside as a whole. Each with its reason."""
    path = giga / "GigaSpeech.json"
    tree = json.loads(path.read_text())
    first, second = tree["audios"][:2]
    first["segments"][2]["end_time"] = 9.0
    first["segments"].append(segment(3, -0.5, 1.0, "TOO EARLY", "XL"))
    del second["segments"][0]["begin_time"]
    tree["audios"][4]["segments"][0]["text_tn"] = "<MUSIC>"
    path.write_text(json.dumps(tree))
    out = tmp_path / "out"
    gigaspeech.prepare(giga, out, jobs=1)
    assert [cut.id for part in ("trainval", "valid", "test") for cut in load(out, part)] == [
        "YOU0000000001_S0000000",
        "POD1000000001_S0000000",
    ]
    expected = {
        "YOU0000000001_S0000002": "a segment ends at 9.00 s, but",
        "S0000003": "expected sid, begin_time, end_time and text_tn (ValueError('-0.5 to 1.0 s') is wrong)",
        "POD0000000001_S0000000": "expected sid, begin_time, end_time and text_tn (KeyError('begin_time') is wrong)",
        "YOU1000000001": "expected segments of speech, found none",
    }
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == list(expected)
    for line in lines:
        assert expected[line["item"]] in line["reason"]
    with pytest.raises(UserError, match=r"S0000002.*--strict stops here"):
        gigaspeech.prepare(giga, tmp_path / "strict", jobs=1, strict=True)


@pytest.fixture(scope="module")
def bbc(tmp_path_factory) -> Path:
    """LRS2's layout: two clips to train on, one to validate on, one to test on; one long clip of pretrain."""
    folder = tmp_path_factory.mktemp("lrs2") / "lrs2"
    lists = {"train": ["6330/00001", "6330/00002"], "val": ["6331/00001"], "test": ["6332/00007"]}
    for name, keys in lists.items():
        for key in keys:
            path = folder / "mvlrs_v1/main" / f"{key}.mp4"
            write_clip(path, numbered_frames(10), beep(0.4, 0.1))
            path.with_suffix(".txt").write_text(f"Text:  HELLO {name.upper()}\nConf:  6\n")
        mark = " NF" if name == "test" else ""
        (folder / f"{name}.txt").write_text("".join(f"{key}{mark}\n" for key in keys))
    path = folder / "mvlrs_v1/pretrain/6330/00009.mp4"
    write_clip(path, numbered_frames(100), beep(4.0, 1.0))
    words = "SO 0.1 0.5 9.0\nMANY 0.6 1.6 9.0\nWORDS 2.4 3.0 9.0\nHERE 3.1 3.7 9.0\n"
    path.with_suffix(".txt").write_text(f"Text:  SO MANY WORDS HERE\nConf:  3\n\nWORD START END ASDSCORE\n{words}")
    (folder / "pretrain.txt").write_text("6330/00009\n6330/00010\n")
    return folder


def test_lrs2_becomes_what_its_lists_say(bbc, tmp_path):
    """The clips of main by list, marks behind names left out; pretrain cut at its pause; what is missing is named."""
    assert command("prepare", "lrs2", bbc, tmp_path / "out", "--max-s", 3, "--jobs", 1) == 0
    found = {split: load(tmp_path / "out", split) for split in ("pretrain", "trainval", "valid", "test")}
    assert {split: [cut.id for cut in cuts] for split, cuts in found.items()} == {
        "pretrain": ["pretrain-6330-00009-0", "pretrain-6330-00009-1"],
        "trainval": ["trainval-6330-00001", "trainval-6330-00002"],
        "valid": ["valid-6331-00001"],
        "test": ["test-6332-00007"],
    }
    assert [cut.supervisions[0].text for cut in found["pretrain"]] == ["so many", "words here"]
    (cut,) = found["test"]
    assert cut.supervisions[0].text == "hello test" and cut.supervisions[0].speaker == "6332" and cut.corpus == "lrs2"
    assert cut.source["num_frames"] == 10 and cut.num_samples == 6400
    (reason,) = rejected(tmp_path / "out")
    assert "pretrain/6330/00010.mp4: no such clip, but" in reason and "pretrain.txt names it" in reason


def test_lrs2_alignments_are_named_with_their_folder(bbc, tmp_path):
    """A clip of pretrain and one of main may have one name: without the folder an alignment is nobody's."""
    ctm = tmp_path / "phones.ctm"
    ctm.write_text("6330/00001 1 0.0 0.1 AH\n")
    with pytest.raises(
        UserError, match=r"phones\.ctm: no alignment has the name of a clip; expected (main|pretrain)-6330"
    ):
        lrs2.prepare(bbc, tmp_path / "out", alignments=ctm, jobs=1)
    ctm.write_text("main/6330/00001 1 0.0 0.1 AH\npretrain/6330/00001 1 0.0 0.1 B\n")
    clips, _ = lrs2.find_clips(bbc)
    folders = {split: folder for folder, split in lrs2.LISTS.values()}
    twin = dataclasses.replace(clips[0], split="pretrain", speaker="6330", name="00001")
    found = {clip.id: clip.alignment for clip in splits.with_alignments([*clips, twin], ctm, folders) if clip.alignment}
    assert {name: alignments.read(places)["phone"][0].symbol for name, places in found.items()} == {
        "trainval-6330-00001": "AH",
        "pretrain-6330-00001": "B",
    }


def test_lrs2_lists_may_lie_beside_the_folders(bbc, tmp_path):
    """The folder mvlrs_v1 itself, with the lists in it; a list that is missing is said."""
    inner = tmp_path / "mvlrs_v1"
    inner.mkdir()
    (inner / "main").symlink_to(bbc / "mvlrs_v1/main")
    (inner / "val.txt").write_text((bbc / "val.txt").read_text())
    clips, left_out = lrs2.find_clips(inner)
    assert [clip.id for clip in clips] == ["valid-6331-00001"] and left_out == []


def test_lrs2_that_is_not_there_is_explained(bbc, tmp_path):
    """One level off in either direction, no lists, a clip in two lists, lines that name no clip."""
    for wrong in (bbc / "mvlrs_v1", bbc.parent):
        with pytest.raises(UserError, match=rf"{wrong}: expected LRS2, but .*; {bbc} holds it: give that"):
            lrs2.prepare(wrong, tmp_path / "out")
    with pytest.raises(UserError, match=r"no such folder\. LRS2 \(faces on BBC.*\{pretrain,train,val,test\}\.txt"):
        lrs2.prepare(tmp_path / "nowhere", tmp_path / "out")
    bad = tmp_path / "bad"
    (bad / "main").mkdir(parents=True)
    with pytest.raises(UserError, match="none of its lists of clips is there"):
        lrs2.prepare(bad, tmp_path / "out")
    for text, message in [
        ("6330/00001\n", r"val\.txt:1: 6330/00001 is in train\.txt, too"),
        ("00001\n", r"val\.txt:1: expected BROADCAST/CLIP, found 00001"),
        ("6339/00001\n", "none of the clips of its lists is there"),
    ]:
        (bad / "train.txt").write_text("6330/00001\n")
        (bad / "val.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            lrs2.prepare(bad, tmp_path / "out")
