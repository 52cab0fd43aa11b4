"""LibriSpeech and its stand-in become cuts of sound; the recipe tunes on them and tests on talking faces."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run
from lhotse import CutSet
from test_run_sh import ROOT, run_sh

from mmspeech import config as configs
from mmspeech.cli import finetune
from mmspeech.corpora import librispeech, synth, synth_read, synth_speech, synth_text
from mmspeech.data.cutfiles import is_empty
from mmspeech.errors import UserError
from mmspeech.plan import Plan

CONF = ROOT / "recipes/librispeech/conf/uhubert"


def load(folder: Path, split: str) -> list:
    path = folder / f"cuts_{split}.jsonl.gz"
    return [] if is_empty(path) else list(CutSet.from_jsonl_lazy(path))


def write_chapter(folder: Path, part: str, chapter: str, texts: dict[str, str | None], seconds: float = 0.5) -> Path:
    """FLACs of noise named in `texts`, and the chapter's transcripts of those that have one."""
    place = folder / part / chapter.replace("-", "/")
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in texts:
        soundfile.write(place / f"{name}.flac", 0.1 * rng.standard_normal(round(16_000 * seconds)), 16_000)
    lines = [f"{name} {text}\n" for name, text in texts.items() if text is not None]
    (place / f"{chapter}.trans.txt").write_text("".join(lines))
    return place


def test_all_real_excerpts_become_cuts(shared, tmp_path):
    """134 utterances of 88 readers, each where its part belongs; the sound is the corpus's own."""
    corpus = shared / "data" / "librispeech"
    librispeech.prepare(corpus, tmp_path / "out", jobs=1)
    found = {split: load(tmp_path / "out", split) for split in ("pretrain", "trainval", "valid", "test")}
    assert [len(cuts) for cuts in found.values()] == [0, 80, 3, 51]
    cuts = {cut.id: cut for part in found.values() for cut in part}
    assert len(cuts) == 134 and (tmp_path / "out/rejected.jsonl").read_text() == ""
    assert len({cut.supervisions[0].speaker for cut in cuts.values()}) == 88
    assert sum(cut.duration for cut in cuts.values()) / 60 == pytest.approx(23.5, abs=0.1)
    cut = cuts["1263-138246-0000"]
    assert cut.supervisions[0].text.startswith("and a crane let them down to the conical top of the projectile")
    assert (cut.supervisions[0].speaker, cut.supervisions[0].language) == ("1263", "en")
    assert cut.sampling_rate == 16_000 and cut.load_audio().shape == (1, cut.num_samples)
    assert Path(cut.recording.sources[0].source).is_relative_to(corpus)
    assert not list((tmp_path / "out").rglob("*.flac"))


def test_what_cannot_be_used_is_set_aside_with_its_reason(tmp_path, capsys):
    """Missing, cut off, at another rate, without text, without a transcript, under another's folder; --strict stops."""
    corpus = tmp_path / "LibriSpeech"
    texts = {f"7-1-000{i}": "HELLO THERE" for i in range(4)} | {"7-1-0004": "", "7-1-0005": None, "8-1-0006": "AYE"}
    place = write_chapter(corpus, "train-clean-100", "7-1", texts)
    (place / "7-1-0000.flac").unlink()
    whole = (place / "7-1-0001.flac").read_bytes()
    (place / "7-1-0001.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(place / "7-1-0002.flac", np.zeros((4000, 2)), 8_000)
    (write_chapter(corpus, "dev-clean", "9-1", {"9-1-0000": "NO"}) / "9-1.trans.txt").write_bytes(b"9-1-0000 \xff")

    words = ["prepare", "librispeech", corpus, tmp_path / "out", "--jobs", 1]
    assert command(*words) == 0
    assert [cut.id for cut in load(tmp_path / "out", "trainval")] == ["7-1-0003"]
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {Path(line["item"]).stem: line["reason"] for line in lines}
    assert len(lines) == 8
    for name, reason in {
        "7-1-0000": "no such file",
        "7-1-0001": "copy it again",
        "7-1-0002": "expected 16000 Hz and one channel, found 8000 Hz, 2 channels",
        "7-1-0004": "expected words behind 7-1-0004",
        "7-1-0005": "its chapter has no transcript of it",
        "8-1-0006": "not that of its folders",
        "9-1-0000": "its chapter has no transcript of it",
        "9-1.trans": "expected UTF-8",
    }.items():
        assert reason in reasons[name]
    assert command(*words) == 0 and "current, nothing to do" in capsys.readouterr().err
    assert command("prepare", "librispeech", corpus, tmp_path / "strict", "--strict", "--jobs", 1) == 2
    assert "(--strict stops here)" in capsys.readouterr().err and not (tmp_path / "strict/stage.json").exists()


@pytest.mark.parametrize(("folder", "found"), [("nowhere", "no such folder"), (".", "no part of it is there")])
def test_missing_corpus_says_what_it_is_and_where_it_comes_from(tmp_path, capsys, folder, found):
    assert command("prepare", "librispeech", tmp_path / folder, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"expected LibriSpeech, but {found}" in said
    assert all(text in said for text in ("openslr.org/12", "CC BY 4.0", "SPEAKER/CHAPTER/*.flac", "train-clean-100"))
    (tmp_path / "LibriSpeech/dev-clean").mkdir(parents=True)
    with pytest.raises(UserError, match="no transcript in dev-clean"):
        librispeech.find_utterances(tmp_path)


def test_readers_are_none_of_the_talkers():
    """Other timbres and accents, slower and more evenly; readers of the two parts are different; fixed by the seed."""
    chapters = synth_read.plan_chapters(0, 60, 20)
    assert chapters == synth_read.plan_chapters(0, 60, 20) and sum(chapter.utterances for chapter in chapters) == 60
    assert [chapter.part for chapter in chapters] == ["train-clean-100"] * 18 + ["dev-clean"] * 2
    counts = {split: 60 for split in synth.SPLITS}
    talkers = [synth.voice_of(clip) for clip in synth.plan_clips(0, "digits", 0.3, counts, 60)]
    readers = [synth_read.voice_of(chapter) for chapter in chapters]
    for key in ("timbre", "accent", "words_per_minute", "pitch_range"):
        ours, theirs = ({getattr(voice, key) for voice in group} for group in (readers, talkers))
        assert not ours & theirs, key
    assert max(voice.words_per_minute for voice in readers) < min(voice.words_per_minute for voice in talkers)
    with pytest.raises(UserError, match="readers: 1 of 60 clips"):
        synth_read.plan_chapters(0, 60, 1)


def test_read_digits_lie_in_librispeechs_layout(tmp_path, capsys):
    """Every accent can be heard; `prepare librispeech` takes the folder; a second run has nothing to do."""
    pytest.importorskip("espeakng_loader", reason="pip install mmspeech[synth]")
    for accent in synth_read.ACCENTS:
        voice = synth_speech.Voice(accent, "m3", 1.0, 110, 50, 15)
        synth_speech.speak(synth_text.DIGITS, synth_text.DIGITS, voice)
    words = ["prepare", "synth-read", tmp_path / "read", "--clips", 12, "--readers", 4, "--jobs", 1]
    assert command(*words) == 0
    assert command("prepare", "librispeech", tmp_path / "read", tmp_path / "out", "--jobs", 1) == 0
    train, dev = load(tmp_path / "out", "trainval"), load(tmp_path / "out", "valid")
    assert (len(train), len(dev)) == (9, 3) and (tmp_path / "out/rejected.jsonl").read_text() == ""
    assert {cut.supervisions[0].speaker for cut in train} == {"1000", "1001", "1002"}
    for cut in train + dev:
        said = cut.supervisions[0].text.split()
        assert 4 <= len(said) <= 8 and set(said) <= set(synth_text.DIGITS)
        assert cut.duration / len(said) > 0.4 and np.abs(cut.load_audio()).max() > 0.05
    capsys.readouterr()
    assert command(*words) == 0 and "current, nothing to do" in capsys.readouterr().err


def test_the_recipes_files_load():
    """LARGE as in the paper, on sound alone; plans name files that exist."""
    for file in CONF.glob("*.yaml"):
        plan = configs.load(file, Plan)
        assert plan.modality == "av,a,v" and plan.noise == "clean,babble:0" and not plan.pretrain
        for name in plan.finetune:
            tree = configs.read(file.parent / name)
            run = configs.build(tree, finetune.RUNS[tree["task"]][0], file)
            assert run.streams == run.valid_streams == ["audio"] and not run.objective.encoder.modality_dropout
    large = configs.load(CONF / "finetune/uhubert-large-960h-a.yaml", finetune.Seq2SeqRun)
    decoder = large.objective.decoder
    assert (decoder.num_layers, decoder.dim, decoder.ffn_dim, decoder.heads) == (9, 1024, 4096, 8)
    assert (large.tokenizer.size, large.data.noise.probability) == (1000, 0.25)


@pytest.fixture
def recipe(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Run the recipe with a stand-in for `mmspeech` that only prints how it was called; encoder, test, noise exist."""
    program = tmp_path / "bin" / "mmspeech"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    for name in ("encoder", "noise"):
        (tmp_path / name).mkdir()
    (tmp_path / "test.jsonl.gz").write_bytes(b"")

    def run(*words: object) -> subprocess.CompletedProcess:
        places = ["--encoder", tmp_path / "encoder", "--test", tmp_path / "test.jsonl.gz"]
        places += ["--noise", tmp_path / "noise", "--exp", tmp_path / "exp", "--jobs", 1]
        return run_sh(*places, *words, before=str(program.parent), recipe="librispeech")

    return run


def test_recipe_goes_from_the_stand_in_to_a_table(recipe, tmp_path):
    """Every recognizer is tuned on the given encoder and decoded on the given cuts, in every noise of the plan."""
    done = recipe()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    exp, test = tmp_path / "exp", tmp_path / "test.jsonl.gz"
    assert [" ".join(line.split()[:2]) for line in lines] == [
        "prepare synth-read",
        "prepare librispeech",
        f"finetune {CONF}/finetune/synth-a.yaml",
        f"finetune {CONF}/finetune/synth-a-scratch.yaml",
        "prepare noisy",
        f"decode {exp}/synth-a/model",
        f"decode {exp}/synth-a-scratch/model",
        "score floor",
        "score report",
    ]
    assert lines[1] == f"prepare librispeech {exp}/corpus {exp}/data --jobs 1"
    for line in lines[2:4]:
        assert f"--encoder {tmp_path}/encoder" in line and f"data.noise.cuts='{tmp_path}/noise'" in line
    assert lines[4] == f"prepare noisy {test} {tmp_path}/noise {exp}/noisy --noise babble:0"
    assert all(re.search(rf"{test} .*--modality av,a,v --noise clean,babble:0", line) for line in lines[5:7])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--encoder", "nowhere"], "--encoder: no folder nowhere; run recipes/lrs3/run.sh first"),
        (["--test", "nowhere"], "--test: no file nowhere; run recipes/lrs3/run.sh first"),
        (["--noise", "nowhere"], "--noise: no folder nowhere"),
        (["--corpus", "lrs3"], "--corpus lrs3: expected synth or librispeech"),
        (["--data", "x"], "--data: the embedded corpus is made; add --corpus librispeech"),
        (["--corpus", "librispeech"], "--data: the folder of corpus librispeech is missing"),
        (["--corpus", "librispeech", "--data", "x", "--noise="], "uhubert-large-960h-a.yaml trains with noise"),
    ],
)
def test_what_is_missing_is_said_at_once(recipe, words, text):
    done = recipe(*words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and text in done.stderr


def test_without_noise_tests_are_clean(recipe, tmp_path):
    done = recipe("--noise=", "--stage", 3)
    assert done.returncode == 0 and "no --noise: tests are clean only" in done.stderr
    assert "prepare noisy" not in done.stdout and "--noise clean " in done.stdout and "babble" not in done.stdout


def test_training_is_clean_where_its_file_names_no_noise(recipe, tmp_path):
    """--noise is there for the tests, too: a published configuration without noise must stay without."""
    loud, clean = CONF / "finetune/synth-a.yaml", tmp_path / "clean.yaml"
    clean.write_text(f"base: {loud}\ndata: {{noise: {{probability: 0}}}}\n")
    plan = configs.read(CONF / "synth.yaml") | {"finetune": [str(loud), str(clean)]}
    done = recipe("--conf", write_run(tmp_path / "plan.yaml", plan, {}), "--stage", 2, "--stop-stage", 2)
    assert done.returncode == 0, done.stderr
    assert ["data.noise" in line for line in done.stdout.splitlines()] == [True, False]


def test_real_excerpts_go_to_a_table_of_talks(shared, tmp_path):
    """Nine readers of LibriSpeech, a tiny encoder of sound and lips: figures for AV, A and V from labels of sound."""
    corpus = tmp_path / "LibriSpeech"
    for part, number in (("train-clean-100", 8), ("dev-clean", 1)):
        chapters = sorted((shared / "data/librispeech/LibriSpeech" / part).glob("*/*"))[:number]
        for chapter in chapters:
            (corpus / part / chapter.parent.name).mkdir(parents=True)
            (corpus / part / chapter.parent.name / chapter.name).symlink_to(chapter)
    cuts = write_cuts(tmp_path / "talks", [0.6, 0.7, 0.8, 1.0], lips=range(4))
    pretrain = write_run(tmp_path / "pretrain.yaml", PRETRAIN, {"data.cuts": [cuts]})
    assert command("pretrain", pretrain, tmp_path / "pretrain") == 0
    changes = {"streams": ["audio"], "valid_streams": ["audio"], "objective.encoder": {"freeze_updates": 1}}
    write_run(tmp_path / "conf/a.yaml", FINETUNE, changes | {"data.batch_s": 60.0, "data.max_batch_s": 60.0})
    plan = {"pretrain": [], "units": [], "clusters": [], "finetune": ["a.yaml"], "modality": "av,a,v", "noise": "clean"}
    plan = write_run(tmp_path / "conf/plan.yaml", plan, {"search": ["beam=1", "max_length_ratio=0.2"]})
    places = ["--encoder", tmp_path / "pretrain/encoder", "--test", cuts, "--noise=", "--exp", tmp_path / "exp"]
    words = ["--corpus", "librispeech", "--data", corpus, "--conf", plan, "--jobs", 1]
    done = run_sh(*words, *places, recipe="librispeech")
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in (tmp_path / "exp/report/table.tsv").read_text().splitlines()]
    assert {row[2] for row in rows if row[1] == "a"} == {"av", "a", "v"} and rows[-1][1] == "floor (no input)"
