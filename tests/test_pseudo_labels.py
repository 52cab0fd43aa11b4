"""Self-training: unlabelled cuts are decoded, what can be trusted becomes their transcript, and is tuned on."""

import gzip
import json
from pathlib import Path

import pytest
from cuts import FINETUNE, command, write_cuts, write_run
from test_decode import save_model

from mmspeech import files
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.data.text import texts_of
from mmspeech.decoding.hypothesis import Hypothesis
from mmspeech.models.av_encoder import load_encoder, save_encoder

TEXTS = ["seven six five", "zero", "", "o" * 90, "nine eight", "one two", "three four"]
DURATIONS = [2.4, 2.4, 2.4, 2.4, 1.96, 2.4, 2.04]
CONFIDENCES = [-0.1, -0.1, None, -0.1, -0.1, -1.5, -0.2]


@pytest.fixture
def unlabelled(tmp_path) -> Path:
    """Seven cuts without transcripts, and one that was not decoded; the first has a translation and an alignment."""
    path = write_cuts(tmp_path / "data", [*DURATIONS, 3.0], units=None, texts=[""] * 8)
    with writing_cuts(tmp_path / "cuts_pretrain.jsonl.gz") as writer:
        for number, cut in enumerate(open_cuts(path)):
            cut.supervisions[0].custom = {"translation": {"es": "no"}, "rights": "none"} if number == 0 else None
            cut.supervisions = [] if number == 5 else cut.supervisions
            writer.write(cut)
    return tmp_path / "cuts_pretrain.jsonl.gz"


@pytest.fixture
def heard(tmp_path) -> Path:
    """What was decoded of them, as `mmspeech decode` writes it."""
    folder = tmp_path / "decode/pretrain-av-clean"
    folder.mkdir(parents=True)
    lines = [
        {"id": f"clip{i:03d}", "text": text, "score": confidence, "confidence": confidence}
        for i, (text, confidence) in enumerate(zip(TEXTS, CONFIDENCES, strict=True))
    ]
    (folder / "hyp.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files.write_json(folder / "decode.json", {"text": "transcript", "model": "exp/av/model", "modality": "av"})
    files.write_json(folder / "stage.json", {"version": "", "inputs": {"exp/av/model": "abc123"}, "settings": {}})
    return folder


def test_what_can_be_trusted_becomes_a_transcript(unlabelled, heard, tmp_path, capsys):
    """Each rule drops its cut and counts it; the others carry text and origin, and nothing of the truth."""
    out = tmp_path / "labels"
    assert command("extract", "pseudo-labels", unlabelled, heard, out, "--min-confidence", -1) == 0
    cuts = {cut.id: cut for cut in open_cuts(out / unlabelled.name)}
    assert list(cuts) == ["clip000", "clip006"]
    (supervision,) = cuts["clip000"].supervisions
    assert (supervision.text, supervision.speaker, supervision.duration) == ("seven six five", "s0", 2.4)
    origin = {"model": "exp/av/model", "digest": "abc123", "streams": "av", "score": -0.1, "confidence": -0.1}
    assert supervision.custom == {"rights": "none", "pseudo_label": origin}
    assert list(texts_of(open_cuts(out / unlabelled.name))) == ["seven six five", "three four"]
    assert all(cut.load_audio().shape[1] == cut.num_samples for cut in cuts.values())
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] == 2 and report["kept_s"] == pytest.approx(4.44)
    assert report["dropped"] == dict.fromkeys(
        [
            "less than 2 characters per second", "nothing heard", "more than 30 characters per second",
            "shorter than 2 s", "confidence below -1", "not decoded",
        ], 1,
    )  # fmt: skip
    said = capsys.readouterr().err
    assert "2 of 8 cuts have a transcript now" in said and "dropped 1, 0.00 h: nothing heard" in said
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert {one["item"] for one in dropped} == {f"clip{i:03d}" for i in (1, 2, 3, 4, 5, 7)}


def test_without_a_confidence_it_is_not_asked_for_and_rules_may_change(unlabelled, heard, tmp_path, capsys):
    """A cut without any supervision gets one; other rules replace what was made; the same ones do nothing."""
    out = tmp_path / "labels"
    assert command("extract", "pseudo-labels", unlabelled, heard, out) == 0
    cuts = {cut.id: cut for cut in open_cuts(out / unlabelled.name)}
    assert list(cuts) == ["clip000", "clip005", "clip006"] and cuts["clip005"].supervisions[0].text == "one two"
    assert command("extract", "pseudo-labels", unlabelled, heard, out, "--min-s", 2.1) == 0
    assert [cut.id for cut in open_cuts(out / unlabelled.name)] == ["clip000", "clip005"]
    capsys.readouterr()
    assert command("extract", "pseudo-labels", unlabelled, heard, out, "--min-s", 2.1) == 0
    assert "current, nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (["--min-confidence", -0.01], {}, "no hypothesis is good enough (dropped"),
        (
            ["--min-rate", 9, "--max-rate", 3],
            {},
            "--min-rate 9, --max-rate 3: expected 0 or more, the lower bound first",
        ),
        (
            [],
            {"hyp.jsonl": '{"id": "a", "text": "b", "score": 1}\n'},
            "hyp.jsonl:1: expected id, text, score and confid",
        ),
        (
            [],
            {"decode.json": '{"text": "translation.es"}'},
            "holds texts of kind translation.es; give one with transcr",
        ),
        ([], {"decode.json": "{"}, "expected decode.json and hyp.jsonl; give a folder that `mmspeech decode` wrote"),
    ],
)
def test_what_cannot_be_labelled_is_one_line(unlabelled, heard, tmp_path, capsys, words, change, message):
    for name, text in change.items():
        (heard / name).write_text(text)
    assert command("extract", "pseudo-labels", unlabelled, heard, tmp_path / "out", *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last and not (tmp_path / "out").exists()


def test_other_cuts_than_those_that_were_decoded_are_told(heard, tmp_path, capsys):
    other = write_cuts(tmp_path / "other", [3.0], name="others.jsonl.gz", units=None)
    lines = gzip.decompress(other.read_bytes()).replace(b'{"id": "', b'{"id": "other-')
    other.write_bytes(gzip.compress(lines))
    assert command("extract", "pseudo-labels", other, heard, tmp_path / "out") == 2
    message = f"{heard}: has no hypothesis of the cuts in {other}; give those that were decoded"
    assert message in capsys.readouterr().err


def test_the_folder_of_all_conditions_is_no_decoded_set(unlabelled, heard, tmp_path, capsys):
    assert command("extract", "pseudo-labels", unlabelled, heard.parent, tmp_path / "out") == 2
    assert f"give one of its folders, as {heard}" in capsys.readouterr().err


def test_confidence_is_a_mean_over_tokens_whatever_the_search_ranks_by():
    assert Hypothesis([5, 6, 7], -9.0, [-1.0, -2.0, -3.0, 0.0]).confidence == -1.5
    assert Hypothesis([5, 6, 7], -8.0, []).confidence == -2.0


def test_a_round_of_self_training(tmp_path, capsys):
    """Decode cuts without transcripts, label them, tune on labelled and pseudo-labelled cuts: a command each."""
    save_model(tmp_path / "first/model", ctc_weight=0.0)
    untold = write_cuts(tmp_path / "a", [0.6, 0.9, 1.0], name="cuts_pretrain.jsonl.gz", units=None, texts=[""] * 3)
    words = ["--modality", "a", "--workers", 0, "--set", "max_length_ratio=0.3"]
    assert command("decode", tmp_path / "first/model", untold, tmp_path / "heard", *words) == 0
    folder = tmp_path / "heard/pretrain-a-clean"
    assert (folder / "ref.jsonl").read_text() == ""
    lines = [json.loads(line) for line in (folder / "hyp.jsonl").read_text().splitlines()]
    assert all(line["confidence"] == pytest.approx(line["score"], abs=1e-4) for line in lines)  # penalty of 1: a mean
    rules = ["--min-s", 0.8, "--min-rate", 0, "--max-rate", 1000]
    assert command("extract", "pseudo-labels", untold, folder, tmp_path / "labels", *rules) == 0
    labels = tmp_path / "labels/cuts_pretrain.jsonl.gz"
    (first, *_) = cuts = list(open_cuts(labels))
    assert len(cuts) == 2
    origin = first.supervisions[0].custom["pseudo_label"]
    assert origin["digest"] == files.digest(tmp_path / "first/model") and origin["streams"] == "a"

    save_encoder(load_encoder(tmp_path / "first/model"), tmp_path / "encoder")
    told = write_cuts(tmp_path / "b", [0.6, 0.7], units=None, texts=["word 0", "word 1"])
    data = {"data.cuts": [told, labels], "streams": ["audio"], "valid_streams": ["audio"], "data.valid_cuts": [told]}
    data |= {"objective.encoder.modality_dropout": {"audio": 1.0}, "training.updates": 1, "objective.ctc_weight": 0.0}
    conf = write_run(tmp_path / "finetune.yaml", FINETUNE, data)
    assert command("finetune", conf, tmp_path / "second", "--encoder", tmp_path / "encoder") == 0
    vocabulary = json.loads((tmp_path / "second/model/tokenizer.json").read_text())["symbols"]
    assert {f"▁{word}" for word in " ".join(texts_of(cuts)).split()} <= set(vocabulary)
