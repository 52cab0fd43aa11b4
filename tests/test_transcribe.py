"""A file in, words out: `mmspeech transcribe`, and `extract features` of one file, on drawn faces, noise and GRID."""

import copy
import json
import re
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from clips import write_clip
from cuts import FINETUNE, PRETRAIN, command
from safetensors import safe_open
from test_mouth import moving_face

from mmspeech import config as configs
from mmspeech.cli import extract_file, transcribe
from mmspeech.data import one_file, units
from mmspeech.data.cutfiles import open_cuts
from mmspeech.data.one_file import open_file, read_file
from mmspeech.data.reading import Reading, read_item
from mmspeech.data.text import END, PAD, START, UNKNOWN, TokenizerConfig, train_tokenizer
from mmspeech.errors import BadItem
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.ctc import CTC, CTCConfig
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_encoder, save_encoder

WORDS = "bin lay place set blue green red white at by in with now soon please again"
INPUTS = PRETRAIN["data"]["streams"]


def save_model(folder: Path, streams: str = "audio video", task: str = "ctc") -> Path:
    """A recognizer with random weights, which says another word in almost every frame."""
    torch.manual_seed(0)
    tree = copy.deepcopy(PRETRAIN["model"])
    tree["streams"] = {name: tree["streams"][name] for name in streams.split()}
    inputs = {name: INPUTS[name] for name in streams.split()}
    encoder = AVEncoder(configs.build(tree, AVEncoderConfig, folder), inputs).eval()
    tokenizer = train_tokenizer([WORDS], TokenizerConfig(kind="words"))
    if task == "ctc":
        objective = CTC(encoder, CTCConfig(), tokenizer.size)
        frames = encoder.encode({"audio": torch.randn(1, 200, 104)}, {"audio": torch.tensor([200])}).frames[0]
        with torch.no_grad():  # else one word would win everywhere
            weight, bias = objective.project.weight.normal_(), objective.project.bias
            bias.copy_(-(weight @ frames.mean(0)))
            bias[[START, PAD, END, UNKNOWN]] -= torch.tensor([-1.0, 99.0, 99.0, 99.0])
    else:
        objective = Seq2Seq(encoder, configs.build(FINETUNE["objective"], Seq2SeqConfig, folder), tokenizer.size)
    recognizer.save(objective, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("av") / "model")


@pytest.fixture(scope="module")
def talk(tmp_path_factory) -> Path:
    """Two seconds of a picture and noise, with landmarks in ../landmarks: FOLDER/own/speaker/talk.mp4."""
    folder = tmp_path_factory.mktemp("talk")
    rng = np.random.default_rng(0)
    frames = [np.full((224, 224), 60 + 3 * t, np.uint8) for t in range(50)]
    for t, frame in enumerate(frames):
        frame[140 : 150 + t % 7, 80:140] = 230
    path = write_clip(folder / "own" / "speaker" / "talk.mp4", frames, 0.3 * rng.standard_normal(32_000))
    path.with_suffix(".txt").write_text("bin blue\n")
    points = moving_face(50)
    points[7] = np.nan
    (folder / "landmarks").mkdir()
    np.save(folder / "landmarks" / "talk.npy", points)
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """Three minutes of noise that comes and goes."""
    rng = np.random.default_rng(1)
    loud = np.repeat(rng.random(360) < 0.7, 8000)
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, np.where(loud, 0.2, 1e-4) * rng.standard_normal(len(loud)), 16_000)
    return path


def landmarks_of(talk: Path) -> Path:
    return talk.parents[2] / "landmarks"


@pytest.fixture
def say(capsys):
    """Run the command: words -> (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        code = command("transcribe", *words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def test_one_file_is_read_and_decoded_as_if_it_had_been_prepared(talk, model, say, tmp_path):
    """Streams, words and the frames of a layer are those of prepare, extract mouth, decode and extract features."""
    lines = [
        ["prepare", "clips", talk.parents[1], tmp_path / "data", "--jobs", 1],
        ["extract", "mouth", tmp_path / "data/cuts_trainval.jsonl.gz", tmp_path / "mouth", "--jobs", 1],
        ["decode", model, tmp_path / "mouth/cuts_trainval.jsonl.gz", tmp_path / "decode", "--workers", 0],
        ["extract", "features", tmp_path / "mouth/cuts_trainval.jsonl.gz", tmp_path / "frames", "--layer", 1],
    ]
    lines[1] += ["--landmarks", landmarks_of(talk)]
    lines[3] += ["--model", model]
    for line in lines:
        assert command(*line) == 0, line
    (cut,) = open_cuts(tmp_path / "frames/cuts_trainval.jsonl.gz")

    batch, item = read_file(talk, INPUTS, landmarks_of(talk)), read_item(cut, Reading(streams=INPUTS))
    for name in ("audio", "video"):
        assert batch.streams[name].shape[:2] == (1, 50)
        np.testing.assert_array_equal(batch.streams[name][0], item.streams[name])

    hypothesis = json.loads((tmp_path / "decode/trainval-av-clean/hyp.jsonl").read_text())
    code, out, _ = say(talk, "--model", model, "--landmarks", landmarks_of(talk))
    assert code == 0 and out == hypothesis["text"] + "\n" and len(out.split()) > 5

    encoder = load_encoder(model).eval()
    frames = encoder.encode(batch.streams, batch.lengths, layers=[1]).layers[0][0]
    np.testing.assert_allclose(frames.detach(), units.read_features(cut), atol=2e-3)


@pytest.mark.parametrize("kind", ["model", "encoder"])
def test_features_of_a_file_are_those_of_three_lines_of_python(kind, model, speech, tmp_path, capsys):
    """Those of the README, run; a recognizer's folder or an encoder's, several layers, and what was read."""
    folder, file = model, tmp_path / "short.flac"
    soundfile.write(file, *soundfile.read(speech, frames=50_200))
    if kind == "encoder":
        folder = tmp_path / "encoder"
        save_encoder(load_encoder(model), folder)
    out = tmp_path / "x.safetensors"
    assert command("extract", "features", file, out, "--model", folder, "--layer", "0,2", "--device", "cpu") == 0
    assert "has no picture; read from audio alone" in capsys.readouterr().err

    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "read_file" in block)
    for readme, here in (('"exp/synth-av/model"', repr(str(folder))), ('"talk.mp4"', repr(str(file))), ("[3]", "[2]")):
        assert readme in lines
        lines = lines.replace(readme, here)
    names: dict[str, torch.Tensor] = {}
    exec(lines, names)
    frames = names["frames"]

    with safe_open(out, "pt") as tensors:
        assert sorted(tensors.keys()) == ["layer_0", "layer_2"]
        assert tensors.metadata() == {"source": str(file), "streams": "audio", "frames_per_second": "25"}
        torch.testing.assert_close(tensors.get_tensor("layer_2"), frames.detach(), atol=1e-5, rtol=0)
    assert frames.shape == (79, 16)


def test_features_of_a_long_file_come_from_windows_without_a_seam(model, speech, tmp_path, monkeypatch):
    """Every frame once, from the window in which it lies further from the edge."""
    file, out = tmp_path / "short.flac", tmp_path / "x.safetensors"
    soundfile.write(file, *soundfile.read(speech, frames=640 * 121))
    monkeypatch.setattr(extract_file, "WINDOW", 50)
    monkeypatch.setattr(extract_file, "OVERLAP", 10)
    assert command("extract", "features", file, out, "--model", model, "--layer", "1") == 0
    with safe_open(out, "pt") as tensors:
        found = tensors.get_tensor("layer_1")
    encoder = load_encoder(model).eval()
    with open_file(file, {"audio": INPUTS["audio"]}) as one, torch.inference_mode():
        parts = []
        for (start, stop), kept in zip([(0, 47), (37, 84), (74, 121)], [(0, 42), (5, 42), (5, 47)], strict=True):
            stream = torch.from_numpy(one.read(start, stop).streams["audio"])[None]
            encoded = encoder.encode({"audio": stream}, {"audio": torch.tensor([stop - start])}, layers=[1])
            parts.append(encoded.layers[0][0, slice(*kept)])
    torch.testing.assert_close(found, torch.cat(parts))
    assert len(found) == 121


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["x.wav", "x.safetensors", "--model", "{model}"], "holds the frames of one file"),
        (["x.wav", "y.wav", "x.safetensors", "--model", "{model}", "--layer", 1], "holds the frames of one file"),
        (["x.wav", "x.safetensors", "--model", "{model}", "--layer", "one"], "--layer one: expected a number"),
        (["x.wav", "x.safetensors", "--model", "{model}", "--layer", "1,3"], "--layer 3: the encoder has 0"),
        (["x.wav", "x.safetensors", "--model", "{model}", "--layer", 1], "x.wav: no such file"),
        (["x.wav", "x.safetensors", "--model", "nowhere", "--layer", 1], "nowhere: expected config.yaml and encoder"),
        (["x.wav", "out", "--model", "{model}", "--layer", 1], "x.wav: a media file: its OUT must end in .safetensors"),
        (["x.wav", "out", "--feature", "mfcc"], "--feature mfcc: is for cuts"),
        (["x.wav", "x.safetensors", "--feature", "mfcc"], "--feature mfcc: is for cuts"),
        (
            ["x.wav", "x.safetensors", "--model", "{model}", "--layer", "1,2", "--modalities", "av,a"],
            "--modalities av,a: of one file, one subset",
        ),
        (["x.jsonl.gz", "out", "--model", "{model}", "--layer", "1,2"], "--layer 1,2: cuts carry"),
    ],
)
def test_mistakes_in_features_of_a_file(model, words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("extract", "features", *(str(word).format(model=model) for word in words)) == 2
    assert f"error: {text}" in capsys.readouterr().err.replace("x.safetensors: holds", "holds")
    assert list(tmp_path.iterdir()) == []


def test_a_long_file_is_decoded_in_windows_of_bounded_length(speech, model, say, monkeypatch):
    """Three minutes: no more than a window is read at a time, no batch exceeds its seconds; subtitles are valid."""
    read, generate, sizes, batches = one_file.read_item, CTC.generate, [], []
    monkeypatch.setattr(one_file, "read_item", lambda cut, how: sizes.append(cut.duration) or read(cut, how))
    monkeypatch.setattr(CTC, "generate", lambda self, some, how: batches.append(len(some)) or generate(self, some, how))
    code, out, _ = say(speech, "--model", model, "--srt")
    assert code == 0 and max(sizes) <= 15.0 and sum(batches) == len(sizes) == 16
    assert max(batches) * 15 <= transcribe.BATCH_S
    blocks = out.strip().split("\n\n")
    clocks = [re.fullmatch(r"(\d+)\n(00:0\d:\d\d,\d{3}) --> (00:0\d:\d\d,\d{3})\n.+", block) for block in blocks]
    assert all(clocks) and [int(clock[1]) for clock in clocks] == list(range(1, len(blocks) + 1))
    times = [time for clock in clocks for time in clock.groups()[1:]]
    assert times == sorted(times) and "00:02:55,000" < times[-1] <= "00:03:00,000"


def test_opening_a_file_takes_less_memory_than_its_sound(speech):
    """11.5 MB as floats; blocks of it pass through."""
    with open_file(speech, {"audio": INPUTS["audio"]}):
        pass
    tracemalloc.start()
    try:
        with open_file(speech, {"audio": INPUTS["audio"]}) as file:
            assert file.num_frames == 4500 and 0.6 < file.speaking.mean() < 0.8
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


def test_attention_decoder_is_searched_with_the_settings_given(talk, tmp_path, say):
    words = talk, "--model", save_model(tmp_path / "model", task="seq2seq"), "--modality", "a"
    code, out, _ = say(*words, "--set", "beam=2", "--set", "max_length_ratio=0.1")
    assert code == 0 and len(out.split()) <= 5 and out.endswith("\n")
    code, _, err = say(*words, "--set", "beems=2")
    assert code == 2 and "did you mean `beam`?" in err


def test_without_mediapipe_sound_alone_is_read_and_the_notice_says_what_to_install(talk, model, say, monkeypatch):
    """Notices go to stderr, and only the text to stdout; what was asked for by name is not replaced."""
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    code, out, err = say(talk, "--model", model)
    assert code == 0 and len(out.splitlines()) == 1 and "mmspeech" not in out
    notices = [line for line in err.splitlines() if line.startswith(f"{talk}: ")]
    assert len(notices) == 1 and "`bin/setup synth video`" in err and "read from audio alone" in err
    assert say(talk, "--model", model, "--modality", "a") == (0, out, "")
    code, out, err = say(talk, "--model", model, "--modality", "av")
    assert code == 2 and out == "" and err.startswith(f"error: {talk}: mediapipe") and "--modality auto" in err


def test_a_picture_without_a_face_leaves_the_sound(talk, model, say, tmp_path):
    """No face at all, or in too few frames of a window."""
    faceless = tmp_path / "landmarks"
    for found, notice in ((20, "hardly a face in 1 of 1 windows"), (0, "no face was found in its picture; read from")):
        points = moving_face(50)
        points[found:] = np.nan
        faceless.mkdir(exist_ok=True)
        np.save(faceless / "talk.npy", points)
        code, out, err = say(talk, "--model", model, "--landmarks", faceless)
        assert code == 0 and out.strip() and err.count("\n") == 1 and notice in err
    assert out == say(talk, "--model", model, "--modality", "a")[1]


def test_a_picture_without_sound_is_read_from_the_lips(talk, model, say, tmp_path):
    frames = [np.full((224, 224), 40 + t, np.uint8) for t in range(50)]
    silent = write_clip(tmp_path / "talk.mkv", frames, None)
    words = silent, "--model", model, "--landmarks", landmarks_of(talk)
    code, out, err = say(*words)
    assert code == 0 and out.strip() and "has no sound; read from video alone" in err
    assert say(*words, "--modality", "v") == (0, out, "")
    code, _, err = say(silent, "--model", save_model(tmp_path / "a", "audio"))
    assert code == 2 and "has no sound; nothing there to read as audio" in err
    np.save(tmp_path / "talk.npy", np.full((50, 68, 2), np.nan))
    code, _, err = say(silent, "--model", model, "--landmarks", tmp_path)
    assert code == 2 and "has no sound, and no face was found" in err


def test_a_model_that_only_hears_does_not_look_for_a_face(talk, tmp_path, say, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    code, out, err = say(talk, "--model", save_model(tmp_path / "model", "audio"))
    assert code == 0 and out.strip() and err == ""


def test_broken_files_are_set_aside_and_the_others_go_on(speech, model, say, tmp_path):
    """Several files: the name and a tab before each text; one line per file that cannot be read; exit code 2."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    (tmp_path / "folder").mkdir()
    soundfile.write(tmp_path / "blink.wav", np.ones(1000) / 2, 16_000)
    soundfile.write(tmp_path / "good.wav", *soundfile.read(speech, frames=24_000))
    names = ["lost.mp4", "empty.wav", "text.mp4", "folder", "blink.wav", "good.wav"]
    code, out, err = say(*(tmp_path / name for name in names), "--model", model, "--modality", "a")
    assert code == 2 and re.fullmatch(re.escape(str(tmp_path / "good.wav")) + r"\t[a-z ]+\n", out)
    reasons = ["no such file", "not a media file", "not a media file", "is a folder", "expected at least 0.2 s"]
    for name, reason in zip(names, reasons, strict=False):
        assert re.search(f"set aside: {re.escape(str(tmp_path / name))}: .*{reason}", err), err
    assert err.splitlines()[-1].startswith("error: 5 of 6 files could not be transcribed")


def test_a_file_in_which_nothing_is_heard_is_told(speech, model, say, monkeypatch):
    """An empty text may be silence, or a file that was cut off."""
    monkeypatch.setattr(transcribe, "transcribe", lambda *arguments: [])
    code, out, err = say(speech, "--model", model, "--modality", "a")
    assert code == 0 and out == "\n"
    assert re.search(rf"{re.escape(str(speech))}: no word in \d+\.\d s; is the file whole\?", err)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "nowhere"], "nowhere: expected config.yaml"),
        (["--model", "{model}", "--set", "ctc_weight=0.3"], "this is a CTC model, which has beam, nbest; those with"),
        (["--model", "{model}", "--set", "beem=3"], "did you mean `beam`?"),
        (["--model", "{file}"], "speech.wav: a file, expected the folder of a model"),
        (["--model", "{model}", "--modality", "x"], "--modality x: the model knows audio, video"),
        (["--model", "{model}", "--modality", "v"], "has no picture; nothing there to read as video"),
        (["--model", "{model}", "--modality", "av"], "has no picture; --modality auto takes what there is"),
        (["--model", "{model}", "--landmarks", "nowhere"], "nowhere: no such folder of landmarks"),
        (["{file}", "--model", "{model}", "--srt"], "--srt: 2 files make as many"),
        (["{file}", "--model", "{model}", "--out", "out"], "two of the files would be written to one place"),
    ],
)
def test_mistakes_are_one_line(speech, model, say, options, text):
    code, out, err = say(speech, *(option.format(model=model, file=speech) for option in options))
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and text in err


def test_results_go_to_files_if_a_folder_is_given(speech, model, say, tmp_path):
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", *soundfile.read(speech, frames=24_000))
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    assert say(*files, "--model", model, "--modality", "a", "--out", tmp_path / "out") == (0, "", "")
    assert say(*files, "--model", model, "--modality", "a", "--out", tmp_path / "out", "--srt") == (0, "", "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.srt", "a.txt", "b.srt", "b.txt"]
    text = (tmp_path / "out/a.txt").read_text()
    assert text == say(files[0], "--model", model, "--modality", "a")[1]
    assert (tmp_path / "out/a.srt").read_text().startswith("1\n00:00:0")


def test_landmarks_of_another_length_are_named_with_the_file(talk, tmp_path):
    np.save(tmp_path / "talk.npy", moving_face(20))
    with pytest.raises(BadItem, match=r"talk.mp4: expected landmarks of 50 frames"):
        read_file(talk, INPUTS, tmp_path)


def test_real_clips_of_grid_are_transcribed_from_sound_and_lips(shared, model, say, tmp_path):
    """Straight from MPEG files and from one in Matroska: a face is found, so nothing needs to be said."""
    pytest.importorskip("mediapipe", reason="needs pip install mmspeech[video]")
    grid = shared / "data" / "grid"
    files = [grid / "s1" / "bbaf2n.mpg", grid / "s4" / "lwbsza.mpg"]
    code, out, err = say(*files, "--model", model)
    lines = dict(line.split("\t") for line in out.splitlines())
    assert code == 0 and list(lines) == list(map(str, files)) and all(text.strip() for text in lines.values())
    assert err == ""
    batch = read_file(files[0], INPUTS)
    assert {name: tuple(stream.shape) for name, stream in batch.streams.items()} == {
        "audio": (1, 75, 104),
        "video": (1, 75, 20, 20),
    }
    assert batch.streams["video"][0].float().std(dim=(1, 2)).min() > 5
    shutil.copy(files[0], tmp_path / "clip")  # the ending does not matter
    code, out, _ = say(tmp_path / "clip", "--model", model)
    assert code == 0 and out == lines[str(files[0])] + "\n"


def test_real_clips_of_grid_are_transcribed_from_sound_alone(shared, model, say):
    """Without looking at the picture; so this runs where there is no MediaPipe."""
    file = shared / "data" / "grid" / "s1" / "bbaf2n.mpg"
    code, out, err = say(file, "--model", model, "--modality", "a", "--srt")
    assert code == 0 and out.startswith("1\n00:00:0") and err == ""
