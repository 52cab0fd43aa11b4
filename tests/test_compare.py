"""Paired comparisons: intervals that hold, differences that add up, and sets that do not belong together."""

import json

import numpy as np
import pytest
import sacrebleu
from test_scoring import DIGITS, decoded

from mmspeech.errors import UserError
from mmspeech.scoring import bootstrap, compare, wer


def noisy_pairs(number, error_rate, seed=0):
    """References that are the same whatever the error rate, and hypotheses with so many of their words exchanged."""
    said = np.random.default_rng(seed)
    heard = np.random.default_rng([seed, round(1000 * error_rate)])
    pairs = []
    for _ in range(number):
        words = said.choice(DIGITS, said.integers(3, 8)).tolist()
        wrong = heard.random(len(words)) < error_rate
        pairs.append((" ".join(words), " ".join("x" if bad else word for word, bad in zip(words, wrong, strict=True))))
    return pairs


def two_systems(folder, pairs_a, pairs_b, **about):
    """Two decode folders."""
    return decoded(folder / "a/decode/test", pairs_a, **about), decoded(folder / "b/decode/test", pairs_b, **about)


def test_difference_is_that_of_the_rates_and_turns_its_sign_with_the_order(tmp_path):
    a, b = two_systems(tmp_path, noisy_pairs(80, 0.1), noisy_pairs(80, 0.5))
    forth, back = compare.compare(a, b), compare.compare(b, a)
    rates = [wer.score_folder(folder)["wer"] for folder in (a, b)]
    assert (forth.score_a, forth.score_b) == pytest.approx(tuple(rates))
    assert forth.difference == pytest.approx(rates[1] - rates[0]) == pytest.approx(-back.difference)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert (forth.better, back.better) == ("a", "b") and forth.p == back.p < 0.01
    assert forth.low < forth.difference < forth.high


def test_a_system_does_not_differ_from_itself(tmp_path):
    a, b = two_systems(tmp_path, noisy_pairs(40, 0.3), noisy_pairs(40, 0.3))
    found = compare.compare(a, b)
    assert (found.difference, found.low, found.high, found.p, found.better) == (0, 0, 0, 1, None)
    assert "no difference is shown" in found.line


def test_pairing_narrows_the_interval():
    """Two systems with nearly the same errors: the difference is surer than either rate."""
    rng = np.random.default_rng(0)
    words = rng.integers(3, 9, 200)
    errors = rng.binomial(words, rng.beta(1, 3, 200))  # hard and easy utterances
    rows_a = np.stack([errors, words], axis=1)
    rows_b = np.stack([np.minimum(errors + (rng.random(200) < 0.1), words), words], axis=1)
    found = bootstrap.contrast([rows_a, rows_b], [-1, 1], wer.rates)
    alone = bootstrap.interval(rows_a, wer.rates)
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    assert found.sign == 1 and found.p < 0.01


def test_interval_of_a_difference_covers_it_as_often_as_it_says_and_p_is_small_as_seldom():
    """150 pairs of test sets: 90 to 99 % of the intervals hold the true difference; of none, few p are small."""
    rng = np.random.default_rng(1)
    held = alarms = 0
    for i in range(150):
        words = rng.integers(3, 9, 120)
        rows = [np.stack([rng.binomial(words, rate), words], axis=1) for rate in (0.2, 0.3, 0.2)]
        found = bootstrap.contrast(rows[:2], [-1, 1], wer.rates, seed=i, resamples=1000)
        held += found.low <= 10 <= found.high
        alarms += bootstrap.contrast([rows[0], rows[2]], [-1, 1], wer.rates, seed=i, resamples=1000).p < 0.05
    assert 135 <= held <= 149 and 1 <= alarms <= 15


def test_a_gap_that_grows_is_a_contrast_of_four(tmp_path):
    """(a0 - av0) - (a10 - av10) by hand; conditions may differ, utterances may not."""
    rates = {"a10": 0.2, "av10": 0.15, "a0": 0.6, "av0": 0.3}
    folders = [
        decoded(tmp_path / name, noisy_pairs(150, rate), noise=f"babble:{name[-1]}", noise_hash=name)
        for name, rate in rates.items()
    ]
    found = compare.contrast(folders, [-1, 1, 1, -1])
    a10, av10, a0, av0 = (wer.score_folder(folder)["wer"] for folder in folders)
    assert found.value == pytest.approx((a0 - av0) - (a10 - av10)) and found.sign == 1


def test_bleu_is_compared_by_the_librarys_scores(tmp_path):
    a, b = two_systems(tmp_path, noisy_pairs(60, 0.5), noisy_pairs(60, 0.1))
    found = compare.compare(a, b, "bleu")
    said, heard_a = zip(*noisy_pairs(60, 0.5), strict=True)
    heard_b = [heard for _, heard in noisy_pairs(60, 0.1)]
    scores = [sacrebleu.corpus_bleu(list(heard), [list(said)]).score for heard in (heard_a, heard_b)]
    assert (found.score_a, found.score_b) == pytest.approx(tuple(scores))
    assert found.better == "b" and found.low > 0  # more is better


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "ref.jsonl").write_text('{"id": "u0", "text": "one"}\n'), "1 utterance.*first is u1"),
        (lambda folder: (folder / "ref.jsonl").write_text(text_of("one", "six")), "1 reference.*first is that of u1"),
        (lambda folder: about(folder, noise="babble:0", noise_hash="cd" * 9), r"noise \(clean, babble:0 #cdcdcdcd\)"),
        (lambda folder: (folder / "hyp.jsonl").unlink(), "no hyp.jsonl in there"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(tmp_path, change, message):
    a, b = two_systems(tmp_path, [("one", "one"), ("two", "two")], [("one", "one"), ("two", "six")])
    change(b)
    with pytest.raises(UserError, match=message) as caught:
        compare.compare(a, b)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_told_from_its_neighbours(tmp_path):
    a, b = two_systems(tmp_path, [("one", "one")], [("one", "one")])
    with pytest.raises(UserError, match=f"no such folder; did you mean {a}\\?"):
        compare.compare(a.with_name(f"{a.name}_0"), b)


def text_of(*texts):
    return "".join(json.dumps({"id": f"u{i}", "text": text}) + "\n" for i, text in enumerate(texts))


def about(folder, **facts):
    told = json.loads((folder / "decode.json").read_text())
    (folder / "decode.json").write_text(json.dumps(told | facts))


def test_lips_go_with_any_noise_and_the_same_noise_must_have_the_same_hash(tmp_path):
    a, b = two_systems(tmp_path, [("one two", "one"), ("two", "two")], [("one two", "one"), ("two", "two")])
    about(a, modality="v")
    about(b, noise="babble:0", noise_hash="ab" * 9)
    assert compare.compare(a, b).condition.startswith("V clean and AV babble 0 dB")
    about(a, modality="av", noise="babble:0", noise_hash="cd" * 9)
    with pytest.raises(UserError, match="babble:0 #cdcdcdcd, babble:0 #abababab"):
        compare.compare(a, b)


def test_compare_command_prints_both_scores_the_difference_and_json(tmp_path, mmspeech):
    a, b = two_systems(tmp_path, noisy_pairs(50, 0.1), noisy_pairs(50, 0.6))
    done = mmspeech("score", "compare", a, b, "--out", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert f"B - A: {found['difference']:+.2f} [" in done.stderr and "a is better" in done.stderr
    done = mmspeech("score", "compare", a, b, "--metric", "per")
    assert done.returncode == 2 and done.stderr == "error: --metric per: expected one of wer, bleu\n"
