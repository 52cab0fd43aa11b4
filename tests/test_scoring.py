"""Error rates, BLEU, intervals, the floor and the table: by hand, beside a second library, and as laws."""

import functools
import gzip
import json
import random

import jiwer
import numpy as np
import pytest
import rich.console
import sacrebleu

from mmspeech.cli import score
from mmspeech.errors import UserError
from mmspeech.scoring import bleu, bootstrap, floor, report, table, wer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def decoded(folder, texts, *, set="test", modality="av", noise="clean", **info):
    """A decode folder with (reference, hypothesis) pairs; ids are u0, u1, ..."""
    folder.mkdir(parents=True)
    for name, column in (("ref.jsonl", 0), ("hyp.jsonl", 1)):
        lines = [json.dumps({"id": f"u{i}", "text": pair[column]}) for i, pair in enumerate(texts)]
        (folder / name).write_text("\n".join(lines) + "\n")
    about = {"set": set, "modality": modality, "noise": noise, "noise_hash": None, "beam": 5, **info}
    (folder / "decode.json").write_text(json.dumps(about))
    return folder


def noisy_pairs(number, error_rate=0.3, seed=0):
    rng = random.Random(seed)
    pairs = []
    for _ in range(number):
        words = rng.choices(DIGITS, k=rng.randint(1, 7))
        heard = [rng.choice(DIGITS) if rng.random() < error_rate else word for word in words if rng.random() > 0.1]
        pairs.append((" ".join(words), " ".join(heard)))
    return pairs


@pytest.mark.parametrize(
    ("reference", "hypothesis", "substitutions", "deletions", "insertions"),
    [
        ("a b c", "a b c", 0, 0, 0),
        ("a b c", "a x c", 1, 0, 0),
        ("a b c", "a c", 0, 1, 0),
        ("a b c", "a b b c d", 0, 0, 2),
        ("a b c", "", 0, 3, 0),
        ("", "a b", 0, 0, 2),
        ("", "", 0, 0, 0),
    ],
)
def test_errors_of_cases_done_by_hand(reference, hypothesis, substitutions, deletions, insertions):
    counts = wer.count(reference.split(), hypothesis.split())
    assert counts == (substitutions, deletions, insertions, len(reference.split()))
    operations = [pair.operation for pair in wer.align(reference.split(), hypothesis.split())]
    assert [operations.count(operation) for operation in "SDI"] == [substitutions, deletions, insertions]


def test_rates_equal_those_of_a_second_library(tmp_path):
    """WER and CER agree with jiwer on 200 random pairs."""
    pairs = noisy_pairs(200)
    score = wer.score_folder(decoded(tmp_path / "exp/decode/test", pairs))
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert score["wer"] == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert score["cer"] == pytest.approx(100 * jiwer.cer(references, hypotheses))
    assert score["words"] == sum(len(text.split()) for text in references)
    total = score["substitutions"] + score["deletions"] + score["insertions"]
    assert score["wer"] == pytest.approx(100 * total / score["words"])
    lines = [json.loads(line) for line in (tmp_path / "exp/decode/test/utterances.jsonl").read_text().splitlines()]
    assert sum(line["errors"] for line in lines) == total
    assert score["label"] == "exp"  # from its folder, as decode.json names none


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    counts = [wer.count(r.split(), h.split()) for r, h in noisy_pairs(50)]
    assert wer.rate_interval(counts, seed=1) == wer.rate_interval(counts, seed=1)
    assert wer.rate_interval(counts, seed=1) != wer.rate_interval(counts, seed=2)


def test_interval_covers_the_true_rate_as_often_as_it_says():
    """Of 95 % intervals from 200 test sets drawn with a known error rate, 90 to 99 % hold it."""
    rng = np.random.default_rng(0)
    held = 0
    for i in range(200):
        words = rng.integers(3, 9, size=150)
        counts = [
            wer.Errors(int(errors), 0, 0, int(n)) for errors, n in zip(rng.binomial(words, 0.2), words, strict=True)
        ]
        low, high = wer.rate_interval(counts, seed=i, resamples=1000)
        held += low <= 20 <= high
    assert 180 <= held <= 198


def test_resampling_in_blocks_draws_n_of_n_utterances(monkeypatch):
    """Each resample draws exactly N utterances, also where the counts do not fit into one block."""
    monkeypatch.setattr(bootstrap, "BLOCK", 70)
    sums = bootstrap.resampled_sums(np.stack([np.ones(10), np.arange(10)], axis=1), seed=0, resamples=1001)
    assert sums.shape == (1001, 2)
    assert (sums[:, 0] == 10).all()
    assert sums[:, 1].mean() == pytest.approx(45, abs=1)
    assert len(np.unique(sums[:, 1])) > 30


def test_bleu_equals_the_librarys_and_its_interval_holds_it(tmp_path):
    pairs = noisy_pairs(80, seed=3)
    score = bleu.score_folder(decoded(tmp_path / "decode/test", [*pairs, ("one two", "")]))
    references, hypotheses = map(list, zip(*pairs, ("one two", ""), strict=True))
    assert score["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert score["bleu_low"] < score["bleu"] < score["bleu_high"]
    rows = bleu.sentence_rows(references, hypotheses)
    assert bleu.corpus_scores(rows.sum(axis=0, keepdims=True))[0] == pytest.approx(score["bleu"])


def test_aligned_text_shows_every_operation(tmp_path):
    folder = decoded(tmp_path / "exp/decode/test", [("the cat sat down", "the bat sat"), ("yes", "oh yes"), ("no", "")])
    wer.score_folder(folder)
    text = (folder / "wer.txt").read_text()
    assert (
        "u0 ref  the  cat  sat  down\nu0 hyp  the  bat  sat  ***\nu0 op   C    S    C    D\nu0 csid 2 1 0 1\n" in text
    )
    assert "u1 ref  ***  yes\nu1 hyp  oh   yes\nu1 op   I    C\nu1 csid 1 0 1 0\n" in text
    assert "u2 hyp  ***" in text
    assert "WER 66.67 %" in text.splitlines()[0]


def test_scoring_again_does_nothing_until_the_texts_change(tmp_path, capsys):
    folder = decoded(tmp_path / "exp/decode/test", [("a b", "a b")])
    assert wer.score_folder(folder)["wer"] == 0
    written = (folder / "score.json").stat().st_mtime_ns
    wer.score_folder(folder)
    assert "nothing to do" in capsys.readouterr().err
    assert (folder / "score.json").stat().st_mtime_ns == written
    (folder / "hyp.jsonl").write_text('{"id": "u0", "text": "a"}\n')
    assert wer.score_folder(folder)["wer"] == 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hyp.jsonl", '{"id": "u0", "text": "a"}\n', "1 of 2 utterances of ref.jsonl are missing, the first is u1"),
        ("ref.jsonl", "", "no utterances in ref.jsonl"),
        ("hyp.jsonl", '{"id": "u0", "text": "a"}\n{"id": "u0", "text": "b"}\n', "hyp.jsonl:2: a second line for u0"),
        ("hyp.jsonl", '{"id": "u0", "te', "hyp.jsonl:1: expected"),
        ("hyp.jsonl", '{"id": "u0", "text": null}\n', "the text of u0 is None"),
        ("decode.json", "{", "not valid JSON"),
    ],
)
def test_texts_that_do_not_fit_are_one_clear_line(tmp_path, name, content, message):
    folder = decoded(tmp_path / "decode/test", [("a", "a"), ("b", "b")])
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        wer.score_folder(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "score.json").exists()


def test_empty_texts_are_counted_and_said(tmp_path, capsys):
    folder = decoded(tmp_path / "decode/test", [("a b", ""), ("", "c"), ("d", "d")])
    score = wer.score_folder(folder)
    assert (score["deletions"], score["insertions"], score["words"]) == (2, 1, 3)
    said = capsys.readouterr().err
    assert "1 of 3 references are empty (u1" in said
    assert "1 of 3 hypotheses are empty (u0" in said
    with pytest.raises(UserError, match="without a single word"):
        wer.score_folder(decoded(tmp_path / "decode/silent", [("", "a")]))


def test_hypotheses_without_a_reference_are_left_out_and_said(tmp_path, capsys):
    folder = decoded(tmp_path / "decode/test", [("a b", "a b"), ("c", "x")])
    (folder / "ref.jsonl").write_text('{"id": "u0", "text": "a b"}\n')
    score = wer.score_folder(folder)
    assert (score["wer"], score["sentences"]) == (0, 1)
    assert "1 of 2 hypotheses have no reference (u1, ...); left out" in capsys.readouterr().err


def test_floor_is_the_best_of_all_constant_answers():
    """Where every text is the same words plus a rare one, the best constant has one error in all texts but one."""
    texts = [f"go go {word}" for word in DIGITS]
    answer = floor.best_constant(texts)
    errors = {
        guess: sum(wer.count(t.split(), guess.split()).total for t in texts) for guess in (answer, "", "go", "go go")
    }
    assert errors[answer] == min(errors.values()) == len(texts) - 1
    assert floor.best_constant(["a b c", "a b c", "x"]) == "a b c"
    assert floor.best_constant(texts, seed=1) == floor.best_constant(texts, seed=1)
    with pytest.raises(UserError, match="no training cut has a transcript"):
        floor.best_constant(["", " "])


def score_json(folder, value, **about):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"label": "ours", "set": "test", "modality": "av", "noise": "clean", "noise_hash": None, "metric": "wer"}
    content |= {"wer": value, "wer_low": value - 1, "wer_high": value + 1, "sentences": 9, "words": 99} | about
    (folder / "score.json").write_text(json.dumps(content))


def test_table_has_a_row_per_system_a_column_per_input_and_the_floor_everywhere(tmp_path):
    babble = {"noise": "babble:0", "noise_hash": "abcdef123456"}
    score_json(tmp_path / "floor", 80, label="floor (no input)", modality="any", noise="any")
    score_json(tmp_path / "b/1", 7.5, label="theirs")
    score_json(tmp_path / "c/v", 30, modality="v")
    score_json(tmp_path / "c/a0", 20, modality="a", **babble)
    score_json(tmp_path / "c/a10", 10, modality="a", noise="babble:10", noise_hash="abcdef123456")
    score_json(tmp_path / "c/av", 5)
    score_json(tmp_path / "c/av0", 8, **babble)
    score_json(tmp_path / "c/.123.half-written", 99)
    scores = table.collect([tmp_path])
    (made,) = table.write(scores, tmp_path / "report")
    heads = [table.heading(column) for column in made.columns]
    assert heads[:4] == ["AV clean", "AV babble 0 dB", "A babble 10 dB", "A babble 0 dB"]
    assert heads[4:] == ["V clean", "V babble 10 dB", "V babble 0 dB"]
    assert made.rows == ["theirs", "ours", "floor (no input)"]
    lines = (tmp_path / "report/table.md").read_text().splitlines()
    assert "AV clean | AV babble 0 dB `#abcdef12` |" in lines[0]
    assert lines[3] == (
        "| ours | 5.0 [4.0, 6.0] | 8.0 [7.0, 9.0] | 10.0 [9.0, 11.0] | 20.0 [19.0, 21.0] |" + " 30.0 [29.0, 31.0] |" * 3
    )
    assert lines[4] == "| floor (no input) |" + " 80.0 [79.0, 81.0] |" * 7
    assert len((tmp_path / "report/table.tsv").read_text().splitlines()) == 1 + len(scores) + 2 == 10
    assert not list(table.warnings([made]))


@pytest.mark.parametrize("about", [{}, {"modality": "emg", "hears_noise": False}])
def test_lips_have_their_clean_figure_in_every_noise_and_it_is_said(tmp_path, about):
    """In terminal, Markdown, TSV and page; nothing of it where nobody was given noise, or where sound is decoded."""
    lips = {"modality": "v"} | about
    name = lips["modality"].upper()
    score_json(tmp_path / "v", 30, **lips)
    score_json(tmp_path / "a", 10, modality="a")
    assert table.notes(table.tables(table.collect([tmp_path]))) == []
    score_json(tmp_path / "av0", 8, noise="babble:0", noise_hash="abcdef123456")
    scores = table.collect([tmp_path])
    made = table.write(scores, tmp_path / "report")
    assert [table.heading(column) for column in made[0].columns] == [
        "AV babble 0 dB",
        "A clean",
        f"{name} clean",
        f"{name} babble 0 dB",
    ]
    note = f"= clean: lips hear no noise: {name} is the same in all noises."
    written = (tmp_path / "report/table.md").read_text()
    assert f"| {name} clean | {name} babble 0 dB `= clean` |" in written and note in written
    assert "| ours | 8.0 [7.0, 9.0] | 10.0 [9.0, 11.0] | 30.0 [29.0, 31.0] | 30.0 [29.0, 31.0] |" in written
    lines = [line.split("\t") for line in (tmp_path / "report/table.tsv").read_text().splitlines()]
    found = [line[3:7] for line in lines if line[2] == lips["modality"]]
    assert found == [["clean", "", "wer", "30.000"], ["babble:0", "= clean", "wer", "30.000"]]
    page = report.write([tmp_path], scores, [], tmp_path / "report").read_text()
    assert note in page and page.count("<b>30.0</b>") == 2 and "<code>= clean</code>" in page
    console = rich.console.Console(width=200)
    with console.capture() as capture:
        console.print(table.printed(made[0]))
    assert note in capture.get() and capture.get().count("30.0") == 2
    assert not list(table.warnings(made))


def test_cuts_that_do_not_count_stand_under_the_table(tmp_path):
    """By system and number, with the columns; nothing where all cuts were read."""
    score_json(tmp_path / "a", 10, modality="a", set_aside=2)
    score_json(tmp_path / "av", 8, set_aside=2)
    score_json(tmp_path / "av0", 8, noise="babble:0", noise_hash="abcdef123456", set_aside=0)
    made = table.write(table.collect([tmp_path]), tmp_path / "report")
    note = "ours: 2 cut(s) of test could not be read and do not count (A clean, AV clean)."
    assert table.notes(made) == [note] and note in (tmp_path / "report/table.md").read_text()
    assert "\t9\t99\t2\t" in (tmp_path / "report/table.tsv").read_text()
    assert [table.notes([part]) != [] for part in table.by_modality(made[0])] == [True, True]


def test_rates_say_which_noise_was_added_and_what_is_not_in_them(tmp_path):
    """In the line of `score wer`, at the head of wer.txt, and in score.json; a clean and whole set has neither."""
    noisy = {"noise": "babble:0", "noise_hash": "abcdef" * 10, "set_aside": 3}
    folder = decoded(tmp_path / "exp/decode/noisy", [("a b", "a")], **noisy)
    score = wer.score_folder(folder)
    assert wer.described(score).endswith(", 2 words, noise #abcdefab, 3 cut(s) set aside")
    head = (folder / "wer.txt").read_text().splitlines()[:4]
    assert (
        "noise #abcdefab, 3 cut(s) set aside" in head[0] and head[3] == f"# sha256 of the frozen noise: {'abcdef' * 10}"
    )
    assert score["noise_hash"] == "abcdef" * 10 and score["set_aside"] == 3
    unknown = wer.score_folder(decoded(tmp_path / "exp/decode/unknown", [("a b", "a")], noise="babble:0"))
    assert wer.described(unknown).endswith("noise no hash")
    clean = wer.score_folder(decoded(tmp_path / "exp/decode/clean", [("a b", "a")], set_aside=0))
    assert wer.described(clean).endswith(", 2 words")


def test_rates_under_different_noise_are_warned_of(tmp_path):
    score_json(tmp_path / "a", 5, label="a", noise="babble:0", noise_hash="aaaa")
    score_json(tmp_path / "b", 6, label="b", noise="babble:0", noise_hash="bbbb")
    made = table.tables(table.collect([tmp_path]))
    assert ["different noise" in line for line in table.warnings(made)] == [True]
    assert "`mixed`" in table.markdown(made)


def test_two_systems_of_one_name_stay_two_rows(tmp_path):
    score_json(tmp_path / "x/finetune/decode/test", 5)
    score_json(tmp_path / "y/finetune/decode/test", 6)
    (made,) = table.tables(table.collect([tmp_path / "x", tmp_path / "y", tmp_path / "x"]))
    assert len(made.rows) == 2
    assert len(made.scores) == 2


def test_mean_of_the_papers_five_rates_is_a_column_where_all_are_there(tmp_path):
    """u-HuBERT, Table 2, last row of AV: 1.3, 4.6, 1.5, 20.5, 29.1 -> 11.4; a system that lacks one has none."""
    rates = {("av", "clean"): 1.3, ("av", "babble:0"): 4.6, ("a", "clean"): 1.5, ("a", "babble:0"): 20.5}
    for label in ("whole", "part"):
        for (modality, noise), value in rates.items():
            noise_hash = None if noise == "clean" else "abcd"
            folder = tmp_path / label / f"{modality}-{noise}"
            score_json(folder, value, label=label, modality=modality, noise=noise, noise_hash=noise_hash)
    score_json(tmp_path / "whole/v", 29.1, label="whole", modality="v")
    score_json(tmp_path / "floor", 80, label="floor (no input)", modality="any", noise="any")
    (made,) = table.write(table.collect([tmp_path]), tmp_path / "report")
    assert made.summaries == {"Avg": {"whole": "11.4", "floor (no input)": "80.0"}}
    lines = (tmp_path / "report/table.md").read_text().splitlines()
    assert lines[0].endswith("| Avg |") and lines[1].count("---:") == lines[0].count("|") - 2
    assert [line.split(" | ")[-1] for line in lines[2:5]] == ["– |", "11.4 |", "80.0 |"]
    assert "Avg: plain mean of AV clean, AV babble 0 dB, A clean, A babble 0 dB, V clean." in "\n".join(lines)
    assert [part.summaries for part in table.by_modality(made)] == [{}, {}, made.summaries]
    page = report.write([tmp_path], table.collect([tmp_path]), [], tmp_path / "report").read_text()
    assert '<th scope="col">Avg</th>' in page and "<td><b>11.4</b></td>" in page


def test_many_noises_are_laid_out_by_snr(tmp_path, capsys):
    """Twenty noises: the standard columns; below, a row for each input and kind, SNRs across, and their mean."""
    snrs = (10, 5, 0, -5, -10)
    score_json(tmp_path / "floor", 80, label="floor (no input)", modality="any", noise="any")
    for modality, better in (("av", 10), ("a", 0)):
        score_json(tmp_path / modality / "clean", 20 - better, modality=modality)
        for kind in ("babble", "music", "noise", "speech"):
            for snr_db in snrs:
                folder = tmp_path / modality / f"{kind}{snr_db}"
                about = {"noise": f"{kind}:{snr_db}", "noise_hash": f"{kind}{snr_db}", "modality": modality}
                score_json(folder, 40 - better - snr_db, **about)
    score_json(tmp_path / "v", 30, modality="v")
    made = table.write(table.collect([tmp_path]), tmp_path / "report")
    assert len(made) == 1 and len(made[0].columns) == 3 * 21
    main, by_snr = table.shown(made)
    heads = [table.heading(column) for column in main.columns]
    assert heads == ["AV clean", "AV babble 0 dB", "A clean", "A babble 0 dB", "V clean", "V babble 0 dB"]
    assert main.summaries["Avg"]["ours"] == f"{(10 + 30 + 20 + 40 + 30) / 5:.1f}"
    heads = [table.heading(column) for column in by_snr.columns]
    assert heads == ["no noise", *(f"SNR {snr_db} dB" for snr_db in snrs)]
    kinds = ("babble", "music", "noise", "speech")
    assert by_snr.rows == [f"ours, {modality} {kind}" for modality in ("AV", "A") for kind in kinds]
    text = (tmp_path / "report/table.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| ours, A music |"))
    assert [float(cell.split(" ")[0]) for cell in line.split(" | ")[1:]] == [20, 30, 35, 40, 45, 50, 40]
    assert "| WER in % on test, by noise and SNR | no noise | SNR 10 dB |" in text
    score.score_table([tmp_path])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) < 110 and "mixed" not in printed and "in noise" in printed
    page = report.write([tmp_path], table.collect([tmp_path]), [], tmp_path / "report").read_text()
    assert "by noise and SNR" in page and page.count("<svg") == 1
    assert all(f"{kind}: WER in %" in page for kind in kinds)


def test_floor_and_table_commands_write_and_say_what_they_should(tmp_path, capsys):
    """A floor of 0 % where all say the same; it stands beside the system in the table that is printed and written."""
    wer.score_folder(decoded(tmp_path / "exp/decode/test-av-clean", [("one two", "one"), ("six", "six")], label="ours"))
    for name in ("trainval", "test"):
        with gzip.open(tmp_path / f"cuts_{name}.jsonl.gz", "wt") as file:
            file.write('{"id": "a", "supervisions": [{"text": "one two"}]}\n{"id": "b", "supervisions": []}\n')
    score.score_floor(tmp_path / "cuts_trainval.jsonl.gz", tmp_path / "cuts_test.jsonl.gz", tmp_path / "floor")
    assert "always answering `one two` has a WER of 0.0 % on test" in capsys.readouterr().err
    score.score_table([tmp_path / "exp", tmp_path / "floor"])
    printed = capsys.readouterr().out
    assert "33.3" in printed and "floor (no input)" in printed
    assert "| ours | 33.3 [" in (tmp_path / "exp/report/table.md").read_text()
    with pytest.raises(UserError, match=r"exp: expected gzipped JSON lines"):
        score.score_floor(tmp_path / "exp", tmp_path / "exp", tmp_path / "nothing")


def test_a_narrow_terminal_gets_one_table_per_modality(tmp_path, capsys, monkeypatch):
    """Nothing is cut off where the whole does not fit."""
    for i, (modality, noise) in enumerate((m, n) for m in ("av", "a", "v") for n in ("clean", "babble:10", "babble:0")):
        score_json(tmp_path / str(i), 10 + i, modality=modality, noise=noise, noise_hash="abcdef12")
    narrow = functools.partial(rich.console.Console, width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(score, "Console", narrow)
    score.score_table([tmp_path])
    printed = capsys.readouterr().out
    assert printed.count("WER in % on test") == 3
    assert printed.count("#abcdef12") == 6 and "…" not in printed


def test_wer_command_prints_the_rate_or_one_line_of_what_is_wrong(tmp_path, mmspeech):
    done = mmspeech(
        "score", "wer", decoded(tmp_path / "exp/decode/test", [("one two", "one two"), ("two three", "two")])
    )
    assert done.returncode == 0, done.stderr
    assert "WER 25.00 %" in done.stderr
    done = mmspeech("score", "wer", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}: no ref.jsonl in there; give a folder that `mmspeech decode` wrote\n"
