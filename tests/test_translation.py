"""English speech to Spanish text: the target of fine-tuning, its references and scores, and what LRS3's clips get."""

import json
import shutil
from pathlib import Path

import pytest
import sacrebleu
from cuts import FINETUNE, PRETRAIN, command, write_cuts, write_run
from lhotse import CutSet
from test_run_sh import recipe, write_splits  # noqa: F401

from mmspeech import config as configs
from mmspeech.cli import score
from mmspeech.cli.finetune import Seq2SeqRun
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.data.reading import Reading, read_item
from mmspeech.data.text import Tokenizer, check_target, text_of, texts_of
from mmspeech.errors import BadItem, UserError
from mmspeech.finetuning import recognizer
from mmspeech.plan import texts
from mmspeech.scoring import bleu, floor, table

CONF = Path(__file__).parents[1] / "recipes/lrs3/conf/uhubert"
SPANISH = ["ahora tira azul en la a dos", "pronto pon rojo con la b uno", "", "ahora pon verde en la c tres"]
ES = "translation.es"


def write_translated(folder: Path, name: str = "cuts_test.jsonl.gz") -> Path:
    """Four cuts with sound and lips, `word 0` ... `word 3`; the third has no translation."""
    plain = write_cuts(folder / "plain", [0.6, 0.7, 0.8, 1.0], lips=range(4))
    with writing_cuts(folder / name) as writer:
        for cut, text in zip(CutSet.from_jsonl_lazy(plain), SPANISH, strict=True):
            if text:
                cut.supervisions[0].custom = {"translation": {"es": text, "de": text.upper()}}
            writer.write(cut)
    return folder / name


def test_a_cut_has_a_transcript_and_translations(tmp_path):
    """Each is found by its name, after a journey to disk; a cut without it has the empty text."""
    cuts = list(open_cuts(write_translated(tmp_path)))
    assert [text_of(cut, ES) for cut in cuts] == SPANISH
    assert text_of(cuts[0]) == "word 0" and text_of(cuts[1], "translation.de") == SPANISH[1].upper()
    assert list(texts_of(cuts, ES)) == [text for text in SPANISH if text]
    assert list(texts_of(cuts, "translation.fr")) == []
    # What cuts go through between preparation and fine-tuning.
    assert text_of(cuts[1].truncate(duration=0.4, preserve_id=True), ES) == SPANISH[1]
    for wrong in ("translation", "translation.", "translatio.es", "es"):
        with pytest.raises(UserError, match=f"text: '{wrong}'; expected transcript, or translation"):
            check_target(wrong)


def test_an_item_is_read_with_the_text_that_is_learnt(tmp_path):
    """Targets and reference are the translation; a cut without one is set aside by name."""
    cuts = list(open_cuts(write_translated(tmp_path)))
    streams = {"audio": {"reader": "logmel"}}
    reading = Reading(streams=streams, encode_text=lambda text: [len(text), 2], text=ES)
    item = read_item(cuts[0], reading)
    assert (item.text, item.tokens) == (SPANISH[0], [len(SPANISH[0]), 2])
    with pytest.raises(BadItem, match=r"clip002: expected a translation\.es, found none"):
        read_item(cuts[2], reading)
    assert read_item(cuts[2], Reading(streams=streams, text=ES)).text == ""
    assert read_item(cuts[2], Reading(streams=streams)).text == "word 2"


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> tuple[Path, Path, list[object]]:
    """Cuts, an experiment with a tiny translator and recognizer, and the command that tuned the first."""
    folder = tmp_path_factory.mktemp("translator")
    cuts = write_translated(folder)
    data = {"data.cuts": [cuts], "data.valid_cuts": [cuts]}
    assert command("pretrain", write_run(folder / "pretrain.yaml", PRETRAIN, data), folder / "pretrain") == 0
    exp, line = folder / "exp", []
    for name, text in (("asr", "transcript"), ("es", ES)):
        conf = write_run(folder / f"{name}.yaml", FINETUNE, data | {"text": text, "objective.ctc_weight": 0.0})
        line = ["finetune", conf, exp / name, "--encoder", folder / "pretrain/encoder"]
        assert command(*line) == 0
        decode = ["decode", exp / name / "model", cuts, exp / name / "decode", "--modality", "av,a,v", "--workers", 0]
        assert command(*decode, "--set", "beam=2", "--set", "max_length_ratio=0.5") == 0
    return cuts, exp, line


def test_a_translator_knows_what_it_writes(translator):
    """Its tokens are Spanish; its folder says so; its references are the translations that there are."""
    _, exp, _ = translator
    tokenizer = Tokenizer.load(exp / "es/model")
    assert set(tokenizer.symbols[4:]) == {f"▁{word}" for text in SPANISH for word in text.split()}
    assert (recognizer.load(exp / "es/model").text, recognizer.load(exp / "asr/model").text) == (ES, "transcript")
    for name in ("av", "a", "v"):
        folder = exp / "es/decode" / f"test-{name}-clean"
        found = {one["id"]: one["text"] for one in map(json.loads, (folder / "ref.jsonl").read_text().splitlines())}
        assert found == {f"clip00{i}": text for i, text in enumerate(SPANISH) if text}
        assert len((folder / "hyp.jsonl").read_text().splitlines()) == 4
        assert json.loads((folder / "decode.json").read_text())["text"] == ES


def test_bleu_stands_beside_word_error_rates(translator, capsys):
    """The report scores each kind by its own measure: two tables, each with its floor; BLEU is sacrebleu's."""
    cuts, exp, _ = translator
    assert command("score", "floor", cuts, cuts, exp / "floor") == 0
    assert command("score", "floor", cuts, cuts, exp / f"floor-{ES}", "--text", ES) == 0
    said = capsys.readouterr().err
    assert "has a WER of" in said and " BLEU on test" in said
    assert command("score", "report", exp) == 0
    out, said = capsys.readouterr()
    assert "WER in % on test" in out and "BLEU on test" in out and out.count("floor (no input)") == 2
    assert "1 of 4 hypotheses have no reference (clip002, ...); left out" in said
    tables = {one.metric: one for one in table.tables(table.collect([exp]))}
    assert tables["wer"].rows == ["asr", "floor (no input)"] and tables["bleu"].rows == ["es", "floor (no input)"]
    folder = exp / "es/decode/test-a-clean"
    texts = [{one["id"]: one["text"] for one in map(json.loads, (folder / name).read_text().splitlines())}
             for name in ("hyp.jsonl", "ref.jsonl")]  # fmt: skip
    hypotheses, references = [texts[0][key] for key in texts[1]], list(texts[1].values())
    assert tables["bleu"].scores["es", ("a", "clean")].value == pytest.approx(
        sacrebleu.corpus_bleu(hypotheses, [references]).score
    )


def test_another_metric_does_not_replace_a_score(translator, tmp_path, capsys):
    """A folder scored by WER and then by BLEU would change its table without a word."""
    folder = tmp_path / "decoded"
    shutil.copytree(translator[1] / "asr/decode/test-a-clean", folder, ignore=shutil.ignore_patterns("*score*"))
    assert command("score", "wer", folder) == 0
    before = (folder / "score.json").read_text()
    capsys.readouterr()
    assert command("score", "bleu", folder) == 2
    assert "is WER, which bleu would replace; remove it to do so" in capsys.readouterr().err
    assert (folder / "score.json").read_text() == before


def test_bleus_floor_is_the_best_translation_seen():
    """Where most translations are one, that one; its BLEU on itself is 100."""
    said = "ahora pon azul en la a dos"
    assert floor.best_constant([*[said] * 5, "otra vez tira rojo con la b uno"], metric="bleu") == said
    assert bleu.summary([said], [said])["bleu"] == pytest.approx(100)
    assert score.metric_of(ES) == "bleu" and score.metric_of("transcript") == "wer"


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("text=translatio.es", "text: 'translatio.es'; expected transcript, or translation.LANGUAGE"),
        ("text=translation.fr", "no cut has a translation.fr; give cuts that have one"),
    ],
)
def test_a_target_that_is_not_there_is_one_line(translator, tmp_path, capsys, setting, text):
    _, _, line = translator
    assert command(*line[:2], tmp_path / "exp", *line[3:], "--set", setting) == 2
    errors = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert len(errors) == 1 and text in errors[0]


def test_floor_of_missing_translations_is_one_line(translator, tmp_path, capsys):
    cuts, _, _ = translator
    assert command("score", "floor", cuts, cuts, tmp_path / "floor", "--text", "translation.fr") == 2
    assert f"error: {cuts}: no cut has a translation.fr" in capsys.readouterr().err


def test_recipe_gives_translations_to_preparation_and_floor(recipe, tmp_path):  # noqa: F811
    """Of the embedded corpus from its grammar, of LRS3 from a file, without which the plan is refused at once."""
    synth = ["--conf", CONF / "synth-translation.yaml"]
    done = recipe(*synth, "--stop-stage", 1)
    made, prepared = done.stdout.splitlines()[:2]
    exp = tmp_path / "exp"
    assert "--vocabulary commands" in made
    assert f"--translations {exp}/corpus/translations/es.tsv --translation-language es" in prepared
    large = ["--corpus", "lrs3", "--data", "d", "--musan", "m", "--vox", "v", "--conf", CONF / "uhubert-large-es.yaml"]
    done = recipe(*large)
    assert (done.returncode, done.stdout) == (2, "") and "--translations: missing, but" in done.stderr
    done = recipe(*large, "--translations", "es.tsv", "--stop-stage", 1)
    assert "--translations es.tsv --translation-language es" in done.stdout.splitlines()[0]
    done = recipe("--corpus", "grid", "--data", "d", "--translations", "es.tsv")
    assert done.returncode == 2 and "are for --corpus lrs3" in done.stderr
    write_splits(exp / "mouth", trainval=["yes"], test=["no"])
    done = recipe(*synth, "--stage", 8)
    assert done.stdout.splitlines()[0].endswith(f"{exp}/floor-{ES} --text {ES}"), done.stderr


def test_files_of_table_5_say_what_the_paper_says():
    """1,000 units, 9 layers, 30 h of audio and lips with modality dropout, of audio, of lips; with and without PT."""
    for name, streams in (("av", ["audio", "video"]), ("a", ["audio"]), ("v", ["video"])):
        for ending, pretrained in (("", True), ("-scratch", False)):
            file = CONF / f"finetune/uhubert-large-30h-es-{name}{ending}.yaml"
            run = configs.load(file, Seq2SeqRun)
            assert (run.text, run.streams, run.pretrained) == (ES, streams, pretrained)
            assert (run.tokenizer.kind, run.tokenizer.size) == ("unigram", 1000)
            decoder = run.objective.decoder
            assert (decoder.num_layers, decoder.dim, decoder.ffn_dim, decoder.heads) == (9, 1024, 4096, 8)
            assert bool(run.objective.encoder.modality_dropout) == (name == "av")
            assert texts([file]) == [ES]
