"""`mmspeech extract units`: units of speech in one pass, and of text by a phoneme-to-unit model, in shards."""

import dataclasses
import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import command, write_cuts
from test_phone2unit import TINY
from test_units import tiny_encoder

from mmspeech import dist, files
from mmspeech.cli import extract_text
from mmspeech.data import units
from mmspeech.data.cutfiles import open_cuts
from mmspeech.data.phones import ID
from mmspeech.data.reading import Reading, read_item
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import save_encoder
from mmspeech.models.phone2unit import Phone2Unit, save_phone2unit
from mmspeech.pretraining import kmeans

LEXICON = {"a": "AH", "cat": "K AE T", "sat": "S AE T", "ten": "T EH N", "mat": "M AE T", "on": "AA N"}


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(sorted(LEXICON), rng.integers(1, 9))) for _ in range(count)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A lexicon, a small model with random weights, shards of five lines; returns a function that runs the command."""
    monkeypatch.setattr(extract_text, "LINES", 5)
    (tmp_path / "lexicon.txt").write_text("".join(f"{word} {phones}\n" for word, phones in LEXICON.items()))
    torch.manual_seed(0)
    model = Phone2Unit(dataclasses.replace(TINY, num_phones=46))
    torch.nn.init.constant_(model.predictor.project.bias, 1.1)
    save_phone2unit(model, tmp_path / "model")

    def run(out: Path, *texts: Path, **options: object) -> int:
        given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        words = ["--name", "km", "--phone2unit", tmp_path / "model", "--lexicon", tmp_path / "lexicon.txt", *given]
        return command("extract", "units", "--from", "text", *texts, out, *words)

    return run


def write(path: Path, lines) -> Path:
    path.parent.mkdir(exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def made(out: Path) -> dict[str, tuple]:
    """Everything about every text cut but where its arrays lie."""
    cuts = open_cuts(sorted(out.glob("cuts_*.jsonl.gz")))
    return {
        cut.id: (
            cut.duration,
            cut.supervisions[0].text,
            cut.load_custom("phones").tolist(),
            units.read_units(cut, "km").tolist(),
        )
        for cut in cuts
    }


def test_text_becomes_cuts_with_four_phone_ids_on_each_unit(world, tmp_path):
    """Ids at 100 Hz, units at 25 Hz, and both as long as the cut says; phones in the order of the words."""
    text = write(tmp_path / "text.txt", sentences(12))
    assert world(tmp_path / "out", text, silence=1.0) == 0
    names = [path.name for path in sorted((tmp_path / "out").glob("cuts_*"))]
    assert names == [f"cuts_text-0000{i}.jsonl.gz" for i in range(3)]
    cuts = list(open_cuts(sorted((tmp_path / "out").glob("cuts_*"))))
    assert [cut.id for cut in cuts] == [f"text-{i:09d}" for i in range(1, 13)]
    noted = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert noted.keys() == set(names) and sum(sum(one["durations"].values()) for one in noted.values()) == 12
    assert {float(s) for name in names for s in noted[name]["durations"]} == {cut.duration for cut in cuts}
    for cut, line in zip(cuts, sentences(12), strict=True):
        phones, found = cut.load_custom("phones"), units.read_units(cut, "km")
        assert phones.shape == (len(found), 4) and phones.dtype == np.uint8 and found.dtype == np.int32
        assert cut.duration == len(found) / 25 and not cut.has_recording and cut.channel == 0 and cut.start == 0
        assert (phones == phones[:, :1]).all() and found.max() < 7
        (supervision,) = cut.supervisions
        assert (supervision.text, supervision.language, supervision.duration) == (line, "en", cut.duration)
        said = " SIL ".join(LEXICON[word] for word in line.split()).split()
        order = [int(one) for i, one in enumerate(phones[:, 0]) if i == 0 or one != phones[i - 1, 0]]
        places = iter([ID[phone] for phone in said])
        assert all(one in places for one in order)  # phones of no frame are left out
    item = read_item(cuts[0], Reading(streams={"text": {"reader": "phones"}}, units="km"))
    assert item.streams["text"].shape == (len(item.units), 4)


def test_marks_of_a_text_corpus_are_not_spoken(world, tmp_path):
    """Cantab-TEDLIUM's lines end in `</s>`: no spoken noise comes of it, nor of marks of punctuation."""
    plain = write(tmp_path / "plain/text.txt", ["a cat sat on ten"] * 3)
    marked = write(
        tmp_path / "marked/text.txt", ["<s> A CAT SAT, on ten </s>", "a cat sat on ten </s> ", "a cat sat - on ten."]
    )
    assert world(tmp_path / "a", plain) == 0 and world(tmp_path / "b", marked) == 0
    assert made(tmp_path / "a") == made(tmp_path / "b")


def said(tmp_path, lines, seed=0, silence=0.25):
    """The phones of sentences before any model gives them units: one list of ids per line that can be said."""
    model = Phone2Unit(dataclasses.replace(TINY, num_phones=46))
    lexicon = extract_text.Lexicon.load(tmp_path / "lexicon.txt")
    settings = extract_text.Settings(name="km", language="en", silence=silence, max_s=20.0, seed=seed, precision="fp32")
    voice = extract_text.Voice(lexicon, model, settings, torch.device("cpu"))
    shard = extract_text.Shard(1, lines, "text", *[tmp_path] * 3)
    return [one.phones.tolist() for one in extract_text.pronounce(shard, voice, lambda *reject: None)]


def test_pauses_stand_between_words_as_often_as_asked(world, tmp_path):
    """A quarter of the gaps, which ones decided by the line; none with 0; other ones with another seed."""

    def pauses(seed, silence=0.25):
        rows = said(tmp_path, [b"cat ten cat ten cat ten cat ten cat"] * 500, seed, silence)
        return ["".join("." if phone == ID["SIL"] else "x" for phone in row) for row in rows]

    found = pauses(0)
    assert sum(row.count(".") for row in found) / 4000 == pytest.approx(0.25, abs=0.03)
    assert len(set(found)) > 50 and found == pauses(0) and found != pauses(1)
    assert not any("." in row for row in pauses(0, 0.0))
    assert all(row[0] == row[-1] == "x" for row in found)


def test_equal_neighbours_are_one_phone(world, tmp_path):
    """`mat ten` is M AE T EH N: aligned speech does not tell T T from a long T; a pause between them does."""
    together, apart = (said(tmp_path, [b"mat ten"], silence=silence) for silence in (0.0, 1.0))
    assert together == [[ID[phone] for phone in ("M", "AE", "T", "EH", "N")]]
    assert apart == [[ID[phone] for phone in ("M", "AE", "T", "SIL", "T", "EH", "N")]]


def test_finished_shards_are_not_made_again(world, tmp_path, monkeypatch, capsys):
    """Stopped between shards, the command goes on with the first that is missing; the bytes are the same."""
    text = write(tmp_path / "text.txt.gz", sentences(14))
    assert world(tmp_path / "whole", text) == 0
    make, done = extract_text.make, []

    def stopping(shard, voice, strict):
        if len(done) == 2:
            raise RuntimeError
        done.append(shard.first)
        make(shard, voice, strict)

    monkeypatch.setattr(extract_text, "make", stopping)
    with pytest.raises(RuntimeError):
        world(tmp_path / "parts", text)
    assert not (tmp_path / "parts" / "stage.json").exists() and len(list((tmp_path / "parts").glob("cuts_*"))) == 2
    monkeypatch.setattr(extract_text, "make", lambda shard, *rest: (done.append(shard.first), make(shard, *rest)))
    assert world(tmp_path / "parts", text) == 0
    assert done == [1, 6, 11]
    for path in sorted((tmp_path / "whole" / "text").glob("*.bin")):
        assert path.read_bytes() == (tmp_path / "parts" / "text" / path.name).read_bytes()
    assert made(tmp_path / "parts") == made(tmp_path / "whole")
    capsys.readouterr()
    assert world(tmp_path / "parts", text) == 0
    assert "current, nothing to do" in capsys.readouterr().err and done == [1, 6, 11]


def test_jobs_share_the_shards_and_batches_do_not_matter(world, tmp_path, monkeypatch, capsys):
    """Two jobs into one folder, and batches of one sentence: what one job with large ones makes."""
    texts = [write(tmp_path / "one.txt", sentences(12)), write(tmp_path / "two.gz", sentences(8, seed=1))]
    assert world(tmp_path / "whole", *texts) == 0
    assert world(tmp_path / "shared", *texts, shard="1/2") == 0
    said = capsys.readouterr().err
    assert "3 of 5 shards are left to other jobs" in said
    assert not (tmp_path / "shared" / "stage.json").exists()
    monkeypatch.setattr(extract_text, "BATCH_PHONES", 1)
    assert world(tmp_path / "shared", *texts, shard="0/2") == 0
    assert made(tmp_path / "shared") == made(tmp_path / "whole")
    for name in ("units.json", "rejected.jsonl"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert (tmp_path / "shared" / "stage.json").exists()


def test_processes_of_torchrun_share_the_shards_of_a_job(world, tmp_path, monkeypatch):
    """Job 1 of 2 with two processes: the fourth of four makes shards 3 and 7 of ten, and none waits for the others."""
    text = write(tmp_path / "text.txt", sentences(50))
    assert world(tmp_path / "whole", text) == 0
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for job, rank in ((1, 1), (0, 0), (1, 0), (0, 1)):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        before = {path.name for path in (tmp_path / "shared/text").glob("*.json")}
        assert world(tmp_path / "shared", text, shard=f"{job}/2") == 0
        new = {path.name for path in (tmp_path / "shared/text").glob("*.json")} - before
        assert new == {f"text-{i:05d}.json" for i in range(2 * job + rank, 10, 4)}
    assert made(tmp_path / "shared") == made(tmp_path / "whole") and (tmp_path / "shared/stage.json").exists()


def test_real_processes_share_a_folder_that_holds_something_old(world, tmp_path):
    """torchrun's processes enter it at one moment: what was made of other sentences is removed once, by one of them."""
    texts = [write(tmp_path / f"{name}.txt", sentences(3, seed=number)) for number, name in enumerate("abc")]
    assert world(tmp_path / "shared", *texts[:2]) == 0
    for number, text in enumerate(texts):
        write(text, sentences(5, seed=9 + number))
    given = ["--name", "km", "--phone2unit", tmp_path / "model", "--lexicon", tmp_path / "lexicon.txt"]
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 3, "-m", "mmspeech", "extract", "units"]
    line = [sys.executable, *words, "--from", "text", *texts, tmp_path / "shared", *given]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, line)), env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("15 texts with units") >= 1 and "Traceback" not in done.stderr
    assert world(tmp_path / "whole", *texts) == 0
    assert made(tmp_path / "shared") == made(tmp_path / "whole") and (tmp_path / "shared/stage.json").exists()


def _enter(folder, start, ended):
    start.wait()
    with files.Stage(folder, [], {"of": "new"}, anew=True).resuming(is_whole=lambda: False) as inside:
        (inside / f"{os.getpid()}.txt").write_text("kept")
    ended.put(os.getpid())


def test_jobs_that_start_together_clear_an_old_folder_once(tmp_path):
    """None removes what another has begun to write, and none meets a folder that vanishes under it."""
    spawn = multiprocessing.get_context("fork")
    for _ in range(5):
        with files.Stage(tmp_path / "out", [], {"of": "old"}, anew=True).resuming() as old:
            for number in range(300):
                (old / f"{number}.bin").write_bytes(b"")
        start, ended = spawn.Event(), spawn.Queue()
        jobs = [spawn.Process(target=_enter, args=(tmp_path / "out", start, ended)) for _ in range(4)]
        for job in jobs:
            job.start()
        start.set()
        for job in jobs:
            job.join(60)
        assert [job.exitcode for job in jobs] == [0] * 4
        assert {path.name for path in (tmp_path / "out").glob("*.*")} == {
            "begun.json", *(f"{job.pid}.txt" for job in jobs)
        }  # fmt: skip
        shutil.rmtree(tmp_path / "out")


def test_lines_that_cannot_be_used_are_counted_with_the_first_reasons(world, tmp_path, capsys):
    """Empty, without phones, not UTF-8, too many phones, too long when said."""
    text = tmp_path / "text.txt"
    text.write_bytes(b"a cat\n\n \n10 cats\nten \xff\n...\n" + b"cat " * 20 + b"\na a a cat sat\na\n")
    assert world(tmp_path / "out", text, max_s=0.4) == 0
    facts = json.loads((tmp_path / "out" / "units.json").read_text())
    assert facts["lines"] == 9 and facts["texts"] + sum(facts["set_aside"].values()) == 9
    assert facts["set_aside"] == {"empty": 3, "unpronounced": 1, "unreadable": 1, "too long": 9 - facts["texts"] - 5}
    assert sorted(made(tmp_path / "out"))[-1] == "text-000000009"
    assert facts["frames"] == sum(len(found) for *_, found in made(tmp_path / "out").values()) <= 10 * facts["texts"]
    reasons = {
        one["item"]: one["reason"]
        for one in map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    }
    assert reasons["text-000000002"] == "empty: no words in the line"
    assert "10" in reasons["text-000000004"] and reasons["text-000000004"].startswith("unpronounced: ")
    assert reasons["text-000000007"] == "too long: 60 phones, and 0.4 s hold 10"
    assert "set aside: 3 empty" in capsys.readouterr().err
    assert world(tmp_path / "strict", text, shard="0/1") == 0
    words = ["--name", "km", "--phone2unit", tmp_path / "model", "--lexicon", tmp_path / "lexicon.txt", "--strict"]
    assert command("extract", "units", "--from", "text", text, tmp_path / "none", *words) == 2
    assert "text-000000002: empty: no words in the line (--strict stops here)" in capsys.readouterr().err


def test_reasons_are_kept_for_the_first_only(world, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_text, "FIRST_REASONS", 2)
    monkeypatch.setattr(extract_text, "MOST_REASONS", 3)
    assert world(tmp_path / "out", write(tmp_path / "text.txt", ["", "", "", "a", ""] * 4)) == 0
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "out" / "units.json").read_text())["set_aside"] == {"empty": 16}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{text}"], "--from text needs --phone2unit"),
        (["{text}", "--phone2unit", "{model}", "--layer", "3"], "--layer is not for --from text; leave it out"),
        (["{text}", "--phone2unit", "{model}", "--shard", "2/2"], "--shard 2/2: expected i/n with i from 0 to n - 1"),
        (["{text}", "--phone2unit", "{nowhere}"], "{nowhere}: expected a phone-to-unit model"),
        (["{nowhere}.txt", "--phone2unit", "{model}"], "{nowhere}.txt: no such file"),
        (["{model}/config.yaml", "--phone2unit", "{model}"], "config.yaml: expected sentences, one per line"),
        (["{cuts}", "--phone2unit", "{model}"], "{cuts}: expected sentences, one per line, in a file .txt, .txt.gz or"),
        (["{windows}", "--phone2unit", "{model}", "--lexicon", "{lexicon}"], "{windows}: no line gave units"),
        (["{text}", "{text}.gz", "--phone2unit", "{model}"], "two files of one name"),
        (["{broken}", "--phone2unit", "{model}", "--lexicon", "{lexicon}"], "{broken}: not a whole gzip file"),
        (["{empty}", "--phone2unit", "{model}", "--lexicon", "{lexicon}"], "{empty}: no line gave units"),
    ],
)
def test_mistakes_with_text_are_one_line(world, tmp_path, capsys, words, message):
    text = write(tmp_path / "text.txt", ["a cat"])
    write(tmp_path / "text.txt.gz", ["a cat"])
    (tmp_path / "broken.txt.gz").write_bytes(gzip.compress(b"a cat\n" * 1000)[:-20])
    write(tmp_path / "empty.txt", ["", ""])
    names = {"text": text, "model": tmp_path / "model", "nowhere": tmp_path / "nowhere"}
    names |= {"broken": tmp_path / "broken.txt.gz", "empty": tmp_path / "empty.txt"}
    names |= {"lexicon": tmp_path / "lexicon.txt"}
    names |= {"cuts": write(tmp_path / "cuts.jsonl.gz", ["{}"]), "windows": tmp_path / "windows.txt"}
    names["windows"].write_bytes("a cat\n".encode("utf-16"))
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    given = [word.format(**names) for word in words]
    line = ["extract", "units", *given[:first], tmp_path / "out", "--from", "text", "--name", "km", *given[first:]]
    assert command(*line) == 2
    said = capsys.readouterr().err
    assert message.format(**names) in said and "Traceback" not in said and said.count("error: ") == 1


def test_units_of_speech_are_those_of_frames_and_labels(tmp_path):
    """One pass gives what `extract features` and `cluster label` give, and stores no frames."""
    path = write_cuts(tmp_path / "data", [1.0, 2.3, 0.7], units=None, emg=True)
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    book = tmp_path / "book"
    kmeans.Codebook(np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)).save(book)
    given = ["--encoder", tmp_path / "encoder", "--layer", 1]
    assert command("extract", "features", path, tmp_path / "frames", *given, "--modalities", "audio") == 0
    frames = tmp_path / "frames" / "audio" / path.name
    assert command("cluster", "label", frames, book, tmp_path / "two", "--name", "km") == 0
    line = ["extract", "units", path, tmp_path / "one", "--name", "km", *given, "--codebook", book]
    assert command(*line, "--modalities", "audio") == 0
    one, two = (list(open_cuts(tmp_path / folder / path.name)) for folder in ("one", "two"))
    assert [cut.id for cut in one] == [cut.id for cut in two] and len(one) == 3
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(units.read_units(ours, "km"), units.read_units(theirs, "km"))
        assert units.read_units(ours, "km").dtype == np.int32
        assert units.made_from(ours, "km") == ["audio"] and not ours.has_custom("features")
    before = (tmp_path / "one" / path.name).stat().st_mtime_ns
    assert command(*line, "--modalities", "audio") == 0
    assert (tmp_path / "one" / path.name).stat().st_mtime_ns == before
    both = ["extract", "units", path, tmp_path / "both", "--name", "km", *given, "--codebook", book]
    assert command(*both) == 0
    assert units.made_from(next(iter(open_cuts(tmp_path / "both" / path.name))), "km") == ["audio", "emg"]


def test_frames_that_are_not_finite_have_no_units(tmp_path, capsys):
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.fusion.project.bias.fill_(1e6)  # beyond half precision
    save_encoder(encoder, tmp_path / "encoder")
    kmeans.Codebook(np.zeros((3, 16), np.float32)).save(tmp_path / "book")
    path = write_cuts(tmp_path / "data", [1.0], units=None, emg=True)
    given = ["--encoder", tmp_path / "encoder", "--layer", 0, "--codebook", tmp_path / "book", "--name", "km"]
    assert command("extract", "units", path, tmp_path / "out", *given) == 2
    assert "no cut gave units_km; reasons in" in capsys.readouterr().err
    assert "not finite in half precision" in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "{encoder}"], "--from speech needs --layer and --codebook"),
        (["--encoder", "{encoder}", "--layer", 1, "--codebook", "{book}", "--phone2unit", "x"], "--phone2unit is not"),
        (["--encoder", "{encoder}", "--layer", 1, "--codebook", "{book}"], "learnt from frames of 3 values, but the"),
        (["--encoder", "{encoder}", "--layer", 1, "--codebook", "{encoder}"], "expected a codebook"),
        (["--encoder", "{encoder}", "--layer", 3, "--codebook", "{good}"], "--layer 3: the encoder has 0 (fused"),
        (["--encoder", "{good}", "--layer", 1, "--codebook", "{good}"], "expected config.yaml and encoder.safetensors"),
        (
            ["--encoder", "{encoder}", "--layer", 1, "--codebook", "{good}", "--modalities", "v"],
            "the model knows audio",
        ),
    ],
)
def test_mistakes_with_speech_are_one_line(tmp_path, capsys, words, message):
    path = write_cuts(tmp_path / "data", [1.0], units=None, emg=True)
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    kmeans.Codebook(np.zeros((3, 3), np.float32)).save(tmp_path / "book")
    kmeans.Codebook(np.zeros((3, 16), np.float32)).save(tmp_path / "good")
    names = {name: tmp_path / name for name in ("encoder", "book", "good")}
    given = [str(word).format(**names) for word in words]
    assert command("extract", "units", path, tmp_path / "out", "--name", "km", *given) == 2
    assert message in capsys.readouterr().err


def test_missing_and_empty_cuts_are_named(tmp_path, capsys):
    save_encoder(tiny_encoder(), tmp_path / "encoder")
    kmeans.Codebook(np.zeros((3, 16), np.float32)).save(tmp_path / "book")
    given = ["--encoder", tmp_path / "encoder", "--layer", 1, "--codebook", tmp_path / "book", "--name", "km"]
    for path, message in (
        (tmp_path / "none.jsonl.gz", "no such file"),
        (write_cuts(tmp_path / "data", [], units=None), "no cut gave units_km"),
    ):
        assert command("extract", "units", path, tmp_path / "out", *given) == 2
        assert f"error: {path}: {message}" in capsys.readouterr().err


def test_jobs_that_start_together_do_not_clear_the_folder(tmp_path):
    """The folder appears with its note in it; another job of the same stage goes on in it."""
    from mmspeech.files import Stage

    first, second = Stage(tmp_path / "out", [], {"a": 1}), Stage(tmp_path / "out", [], {"a": 1})
    with first.resuming(is_whole=lambda: False) as folder:
        (folder / "made").touch()
        with second.resuming(is_whole=lambda: True):
            assert (folder / "made").exists()
    assert first.is_current()
    with pytest.raises(UserError, match="was made with another `a`"):
        Stage(tmp_path / "out", [], {"a": 2}).is_current()
