"""`mmspeech decode` on tiny cuts: all conditions in one call, several widths of the search, n-best lists."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import PRETRAIN, command, write_cuts
from training_toys import on_ranks

from mmspeech import config as configs
from mmspeech.cli import beams, decode_parts
from mmspeech.data.frozen_noise import FrozenNoise
from mmspeech.data.loader import DataConfig, make_reading, validation_batches
from mmspeech.data.noise import CATEGORIES, find_kinds, parse_kinds
from mmspeech.data.text import TokenizerConfig, train_tokenizer
from mmspeech.errors import UserError
from mmspeech.finetuning import recognizer
from mmspeech.finetuning.seq2seq import Seq2Seq, Seq2SeqConfig
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig
from mmspeech.models.decoder import DecoderConfig
from mmspeech.scoring import table, wer

CURRENT = "current, nothing to do"


@dataclass(frozen=True)
class World:
    """What a decoding needs."""

    cuts: Path  # four cuts with sound and lips
    sound: Path  # the same without lips
    noise: Path
    noisy: Path  # babble at 0 dB and music at -5
    model: Path  # attention decoder with a CTC head, random weights
    plain: Path  # without


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("decode")
    durations = [0.6, 0.7, 0.8, 1.0]
    cuts = write_cuts(folder / "cuts", durations, name="cuts_test.jsonl.gz", units=None, lips=range(4))
    sound = write_cuts(folder / "cuts", durations, name="cuts_sound.jsonl.gz", units=None)
    for category in CATEGORIES:
        write_cuts(folder / "noise", [1.5, 0.5], name=f"noise_{category}_test.jsonl.gz", units=None)
    words = ["--noise", "music:-5,babble:0"]
    assert command("prepare", "noisy", cuts, folder / "noise", folder / "noisy", *words) == 0
    save_model(folder / "both/model", ctc_weight=0.3)
    save_model(folder / "plain/model", ctc_weight=0.0)
    return World(cuts, sound, folder / "noise", folder / "noisy", folder / "both/model", folder / "plain/model")


def save_model(folder: Path, ctc_weight: float) -> None:
    torch.manual_seed(0)
    encoder = AVEncoder(
        configs.build(PRETRAIN["model"], AVEncoderConfig, Path("model")), inputs=PRETRAIN["data"]["streams"]
    )
    tokenizer = train_tokenizer(["word 0 1 2 3"], TokenizerConfig(kind="words"))
    decoder = DecoderConfig(num_layers=1, dim=16, ffn_dim=32, heads=2)
    objective = Seq2Seq(encoder, Seq2SeqConfig(decoder=decoder, ctc_weight=ctc_weight), tokenizer.size)
    with torch.no_grad():
        objective.decoder.embedding.weight.mul_(8)
    recognizer.save(objective, tokenizer, folder)


@pytest.fixture
def decoded(world, tmp_path) -> Callable[..., Path]:
    """Decode into a folder of this test, which it returns."""

    def run(*options: object, cuts: Path = world.cuts, model: Path = world.model) -> Path:
        out = tmp_path / "exp/decode"
        assert command("decode", model, cuts, out, "--workers", 0, "--set", "max_length_ratio=0.3", *options) == 0
        return out

    return run


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "hyp.jsonl").read_text().splitlines()]


def names(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_all_is_every_stream_and_every_frozen_noise(world, decoded, capsys):
    """Sound in all noises, lips once; again, nothing to do. Five of the seven make the paper's Avg-WER."""
    out = decoded("--all", "--noise-sets", world.noisy)
    heard = {f"test-{modality}-{noise}" for modality in ("av", "a") for noise in ("clean", "babble_0dB", "music_-5dB")}
    assert names(out) == heard | {"test-v-clean"}
    facts = json.loads((out / "test-a-music_-5dB/decode.json").read_text())
    assert facts["noise_hash"] == FrozenNoise(world.noisy / "music_-5dB.jsonl").sha256
    capsys.readouterr()
    decoded("--all", "--noise-sets", world.noisy)
    assert capsys.readouterr().err.count(CURRENT) == 7
    for folder in out.iterdir():
        wer.score_folder(folder, resamples=1000)
    (made,) = table.tables(table.collect([out]))
    five = [made.scores["both", column].value for column in table.AVERAGED]
    assert made.summaries == {"Avg": {"both": f"{sum(five) / 5:.1f}"}}


def test_all_of_sound_alone_or_without_noise_is_what_there_is(world, decoded, capsys):
    """Cuts without lips: `a` alone; without --noise-sets clean alone, with a line."""
    assert names(decoded("--all", cuts=world.sound)) == {"sound-a-clean"}
    said = capsys.readouterr().err
    assert "--all: clean only" in said and "sound-av-clean: skipped, no cut in" in said


def test_a_width_is_chosen_on_validation_cuts_alone(world, decoded, tmp_path, capsys):
    """All widths on those, in a folder beside; the test cuts with the one whose mean over the streams is best."""
    valid = tmp_path / "cuts_valid.jsonl.gz"
    valid.write_bytes(world.cuts.read_bytes())
    words = ["--beam", "1,2,8", "--choose-on", valid, "--modality", "av,a"]
    out = decoded(*words, "--noise", "clean,babble:0", "--noise-sets", world.noisy)
    assert names(out) == {f"test-{streams}-{noise}" for streams in ("av", "a") for noise in ("clean", "babble_0dB")}
    tried = out.with_name("decode-beams")
    assert names(tried) == {f"valid-{streams}-clean-beam{width}" for streams in ("av", "a") for width in (1, 2, 8)}
    rates = {path.name: json.loads((path / "score.json").read_text())["wer"] for path in tried.iterdir()}
    means = {width: rates[f"valid-av-clean-beam{width}"] + rates[f"valid-a-clean-beam{width}"] for width in (1, 2, 8)}
    best = min(means, key=means.__getitem__)
    assert {json.loads((out / name / "decode.json").read_text())["search"]["beam"] for name in names(out)} == {best}
    assert f"beam {best} is the best of 1: " in capsys.readouterr().err
    decoded(*words, "--noise", "clean,babble:0", "--noise-sets", world.noisy)
    assert capsys.readouterr().err.count(CURRENT) == 4 + 6 + 6  # hypotheses, those of validation, their scores


def test_of_equal_widths_the_narrowest_is_taken_and_of_translations_the_highest(tmp_path, monkeypatch):
    folders = []
    for streams, figures in (("av", (4.0, 3.0, 2.0)), ("a", (4.0, 3.0, 4.0))):
        for width, value in zip((1, 5, 10), figures, strict=True):
            folder = tmp_path / f"{value}-{streams}-{width}"
            folder.mkdir()
            (folder / "decode.json").write_text(json.dumps({"search": {"beam": width}}))
            folders.append(folder)
    for metric, wanted in (("wer", 5), ("bleu", 1)):
        monkeypatch.setattr(beams, "figure", lambda folder, kind=metric: (kind, float(folder.name.split("-")[0])))
        assert beams.best(folders) == wanted


def test_several_widths_in_one_run_are_those_of_as_many_runs(world, decoded, tmp_path, monkeypatch):
    """The same hypotheses as one by one; every batch is encoded once; a folder and a row each, in order of width."""
    passes = []
    encode = AVEncoder.encode
    monkeypatch.setattr(AVEncoder, "encode", lambda *args, **more: passes.append(1) or encode(*args, **more))
    out = decoded("--beam", "10,1,3", "--modality", "a")
    batches = len(passes)
    assert names(out) == {f"test-a-clean-beam{width}" for width in (1, 3, 10)}
    for width in (1, 3, 10):
        alone = tmp_path / str(width)
        words = ["--modality", "a", "--workers", 0, "--set", "max_length_ratio=0.3", "--beam", width]
        assert command("decode", world.model, world.cuts, alone, *words) == 0
        assert names(alone) == {"test-a-clean"}
        for ours, theirs in zip(
            lines_of(out / f"test-a-clean-beam{width}"), lines_of(alone / "test-a-clean"), strict=True
        ):
            assert (ours["id"], ours["text"]) == (theirs["id"], theirs["text"])
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert len(passes) == (1 + 3) * batches
    for folder in out.iterdir():
        wer.score_folder(folder, resamples=1000)
    (made,) = table.write(table.collect([out]), tmp_path / "report")
    assert made.rows == ["both, beam 1", "both, beam 3", "both, beam 10"]
    facts = json.loads((out / "test-a-clean-beam3/decode.json").read_text())
    assert 0 < facts["encoding_seconds"] <= facts["seconds"]
    assert made.summaries["real-time factor"]["both, beam 3"] == f"{facts['seconds'] / facts['audio_seconds']:.3f}"
    assert "| real-time factor |" in (tmp_path / "report/table.md").read_text().splitlines()[0]


def test_nbest_holds_readings_with_their_tokens(decoded):
    """The first is the line's own; scores fall; token scores add up to the score times a power of the length."""
    for line in lines_of(decoded("--set", "nbest=3", "--beam", 4, "--modality", "a") / "test-a-clean"):
        assert len(line["nbest"]) == 3
        assert (line["nbest"][0]["text"], line["nbest"][0]["score"]) == (line["text"], line["score"])
        assert [one["score"] for one in line["nbest"]] == sorted((one["score"] for one in line["nbest"]), reverse=True)
        for one in line["nbest"]:
            assert len(one["token_scores"]) == len(one["tokens"]) + 1  # and the end symbol
            assert sum(one["token_scores"]) / len(one["token_scores"]) == pytest.approx(one["score"], abs=1e-4)
            pieces = [piece.removeprefix("▁") for piece in one["tokens"] if piece != "<s>"]
            assert " ".join(pieces) == one["text"]


def test_one_best_is_a_line_without_lists(decoded):
    assert all(
        line.keys() == {"id", "text", "score", "confidence"}
        for line in lines_of(decoded("--modality", "a") / "test-a-clean")
    )


def test_joint_search_is_a_setting(world, decoded, tmp_path):
    """Another score for the same cuts."""
    plain = lines_of(decoded("--modality", "a") / "test-a-clean")
    words = ["--modality", "a", "--workers", 0, "--set", "max_length_ratio=0.3", "--set", "ctc_weight=0.5"]
    assert command("decode", world.model, world.cuts, tmp_path / "joint", *words) == 0
    joint = lines_of(tmp_path / "joint/test-a-clean")
    assert [line["id"] for line in plain] == [line["id"] for line in joint]
    assert [line["score"] for line in plain] != [line["score"] for line in joint]


SLOWLY = ["--modality", "a", "--workers", 0, "--batch-seconds", 1, "--set", "max_length_ratio=0.3", "--beam", "1,3"]


def stop_in_batch(number: int, monkeypatch) -> list[int]:
    """A decoding breaks off in its `number`-th batch, and each batch is a part; returns a list that counts them."""
    begun: list[int] = []
    encode = AVEncoder.encode

    def breaking(*args, **more):
        begun.append(len(begun) + 1)
        if begun[-1] == number:
            raise RuntimeError("killed")
        return encode(*args, **more)

    monkeypatch.setattr(decode_parts, "PART_S", 0.0)
    monkeypatch.setattr(AVEncoder, "encode", breaking)
    return begun


@pytest.fixture
def many(tmp_path) -> Path:
    """Eight cuts, the sound of one of which is gone."""
    cuts = write_cuts(tmp_path / "many", [0.5 + 0.05 * i for i in range(8)], name="cuts_many.jsonl.gz", units=None)
    (tmp_path / "many/cuts_many.jsonl.gz-7.wav").unlink()
    return cuts


def texts_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.jsonl")}


def test_a_stopped_decoding_goes_on_where_it_was(world, many, tmp_path, monkeypatch, capsys):
    """The files of an uninterrupted one, to the byte; no batch is decoded twice, and no part is left behind."""
    assert command("decode", world.model, many, tmp_path / "whole", *SLOWLY) == 0
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        stop_in_batch(4, patch)
        command("decode", world.model, many, out, *SLOWLY)
    assert [path.name for path in out.iterdir()] == [".parts-many-a-clean"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        rest = stop_in_batch(-1, patch)
        assert command("decode", world.model, many, out, *SLOWLY) == 0
    assert "many-a-clean: 3 batches are decoded already; going on" in capsys.readouterr().err
    assert texts_of(out) == texts_of(tmp_path / "whole") and len(texts_of(out)) == 6
    assert names(out) == {"many-a-clean-beam1", "many-a-clean-beam3"} and len(rest) + 3 == batches_of(many)
    facts = [json.loads((one / "many-a-clean-beam3/decode.json").read_text()) for one in (out, tmp_path / "whole")]
    assert facts[0]["audio_seconds"] == facts[1]["audio_seconds"] and facts[0]["set_aside"] == 1


def batches_of(cuts: Path) -> int:
    config = DataConfig(valid_cuts=[cuts], streams={"audio": {"reader": "logmel"}}, batch_s=1, max_batch_s=1, workers=0)
    return sum(1 for _ in validation_batches(config, make_reading(config, seed=0, train=False)))


def test_parts_of_another_decoding_are_not_taken_for_ones_own(world, many, tmp_path, monkeypatch, capsys):
    """Another search, other batches: begun anew. --strict tells what is not readable, and leaves nothing."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        stop_in_batch(batches_of(many), patch)
        command("decode", world.model, many, out, *SLOWLY)
    for change in (["--set", "length_penalty=0.5"], ["--batch-seconds", 2]):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            stop_in_batch(2, patch)
            command("decode", world.model, many, out, *SLOWLY, *change)
        assert "going on" not in capsys.readouterr().err
    assert command("decode", world.model, many, out, *SLOWLY, "--strict") == 2
    assert "clip007" in capsys.readouterr().err.splitlines()[-1] and not out.exists()


def decode_on(folder: str, model: str, cuts: str) -> None:
    """On each of two ranks: what one rank had begun."""
    command("decode", model, cuts, folder, *SLOWLY)


def test_two_ranks_end_what_one_began(world, many, tmp_path, monkeypatch):
    """Each decodes its share of what is left; the first writes all of it."""
    assert command("decode", world.model, many, tmp_path / "whole", *SLOWLY) == 0
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        stop_in_batch(3, patch)
        command("decode", world.model, many, tmp_path / "out", *SLOWLY)
    for done in on_ranks(2, "test_decode:decode_on", tmp_path / "out", world.model, many, timeout=300):
        assert done.returncode == 0, done.stderr
    assert texts_of(tmp_path / "out") == texts_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--set", "ctc_weight=0.3"], "ctc_weight: 0.3, but this model has no CTC head"),
        (["--set", "beam=0"], "--set: beam: 0; expected a width of 1 or more"),
        (["--beam", "1,x"], "--beam 1,x: expected widths from 1 on"),
        (
            ["--choose-on", "valid.jsonl.gz"],
            "--choose-on valid.jsonl.gz: chooses among widths of the search",
        ),
        (["--beam", "0"], "--beam 0: expected widths from 1 on"),
        (
            ["--beam", "2,4", "--set", "beam=3"],
            "--beam 2,4: expected widths from 1 on, as in 1,5,20, and no --set beam=",
        ),
        (["--beam", "2,8", "--set", "nbest=4"], "nbest: 4 of a beam of 2"),
        (["--all", "--noise", "clean"], "--all: stands for all streams and noises"),
        (["--all", "--noise-sets", "{noise}"], "{noise}: no frozen noise in there"),
    ],
)
def test_what_cannot_be_is_one_line(world, tmp_path, capsys, options, text):
    options = [option.format(noise=world.noise) for option in options]
    assert command("decode", world.plain, world.cuts, tmp_path / "out", "--workers", 0, *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and text.format(noise=world.noise) in last
    assert not (tmp_path / "out").exists()


def test_all_noises_of_the_noisy_test_sets_come_from_one_call(world, tmp_path, capsys):
    """Four categories at five levels, each with its hash; the same files as one by one."""
    assert command("prepare", "noisy", world.cuts, world.noise, tmp_path / "noisy", "--noise", "all") == 0
    said = capsys.readouterr().err
    kinds = find_kinds(tmp_path / "noisy")
    assert len(kinds) == 20 and set(kinds) == set(parse_kinds(["all"]))
    assert [str(kind) for kind in kinds[:5]] == ["babble:10", "babble:5", "babble:0", "babble:-5", "babble:-10"]
    for kind in kinds:
        assert f"{kind.file_name}: sha256 {FrozenNoise(tmp_path / 'noisy' / kind.file_name).sha256}" in said
    name = "music_-5dB.jsonl"
    assert FrozenNoise(tmp_path / "noisy" / name).sha256 == FrozenNoise(world.noisy / name).sha256


def test_the_noise_grid_is_decoded_in_one_call(world, decoded, tmp_path, capsys):
    """AVSR and ASR, clean and in the fifteen frozen noises; noisy validation sets too."""
    for split, folder in (("test", "noisy"), ("valid", "noisy-valid")):
        for category in CATEGORIES:
            write_cuts(tmp_path / "noise", [1.5, 0.5], name=f"noise_{category}_{split}.jsonl.gz", units=None)
        words = ["--noise", "grid", "--split", split]
        assert command("prepare", "noisy", world.cuts, tmp_path / "noise", tmp_path / folder, *words) == 0
        assert len(find_kinds(tmp_path / folder)) == 15
    header = json.loads((tmp_path / "noisy-valid/babble_0dB.jsonl").read_text().splitlines()[0])
    assert header["split"] == "valid"
    out = decoded("--noise-grid", "--noise-sets", tmp_path / "noisy")
    names_of = {
        f"test-{modality}-{kind}" for modality in ("a", "av") for kind in ("clean", "babble_-10dB", "music_5dB")
    }
    assert len(names(out)) == 32 and names_of < names(out)
    decoded("--noise", "grid,clean,babble:0", "--modality", "a", "--noise-sets", tmp_path / "noisy")
    assert capsys.readouterr().err.count(CURRENT) == 16
    words = ["--workers", 0, "--noise-grid", "--noise", "clean"]
    assert command("decode", world.model, world.cuts, tmp_path / "x", *words) == 2
    assert "--noise-grid: names the noises; leave out --noise and --all" in capsys.readouterr().err
    assert command("decode", world.model, world.cuts, tmp_path / "x", "--workers", 0, "--noise-grid") == 2
    assert "no frozen noise babble_10dB.jsonl in --noise-sets; make it with" in capsys.readouterr().err


def test_noises_may_be_joined_by_commas_and_count_once():
    assert [str(kind) for kind in parse_kinds(["music:-5,babble:0", "music:-5"])] == ["music:-5", "babble:0"]
    with pytest.raises(UserError, match="--noise rain:0"):
        parse_kinds(["babble:0,rain:0"])
