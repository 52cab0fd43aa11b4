"""Claims: what an inequality says, what an interval shows, and which commands stand behind a figure."""

from pathlib import Path

import pytest

from mmspeech import claim_runs, claims, plan
from mmspeech import config as configs
from mmspeech.errors import UserError

FILE = claims.CONF / "claims/uhubert.yaml"
PLACE = claims.CONF / "uhubert"


def test_an_expectation_is_an_inequality_between_sums():
    smaller, larger = claims.parse("a@a/babble:-10 - av@av/babble:-10 > a@a/clean - av@av/clean")
    assert [(term.sign, term.name, term.first, term.second) for term in smaller] == [
        (1.0, "a", "a", "clean"),
        (-1.0, "av", "av", "clean"),
    ]
    assert [(term.sign, term.second) for term in larger] == [(1.0, "babble:-10"), (-1.0, "babble:-10")]
    (one,), (other,) = claims.parse("plain#audio+video:video < dropout#audio+video:video")
    assert (one.kind, one.name, one.first, one.second) == ("#", "plain", "audio+video", "video")
    assert other.name == "dropout"
    for words in ("a@v/clean <= b@v/clean", "b@v/clean >= a@v/clean"):
        (smaller_one,), (larger_one,) = claims.parse(words)
        assert (smaller_one.name, larger_one.name, claims.margin(words)) == ("a", "b", 2.0)
    assert claims.margin("a@v/clean < b@v/clean") == 0.0
    (one,), _ = claims.parse("all~av,a,v < av~av,a,v")
    assert (one.kind, one.name, one.first) == ("~", "all", "av,a,v")


@pytest.mark.parametrize(
    "wrong",
    [
        "a < b",
        "a@v/clean",
        "a@v/clean =< b@v/clean",
        "a@v/clean + < b@v/clean",
        "a@v < b@v",
        "a@v/c < b#v:a + c@v/c",
        "a@v/c < b~v,a",
        "a~v,a - b~v,a < c~v,a",
        "a~v < b~v",
    ],
)
def test_what_is_no_inequality_is_refused(wrong):
    with pytest.raises(UserError, match="expect"):
        claims.parse(wrong)


def test_claims_of_nobody_are_told_from_those_there_are(tmp_path):
    with pytest.raises(UserError, match="recipes/lrs3/conf/claims has av-data2vec, uhubert, vatlm: give one"):
        claims.run("uhuber", exp=tmp_path / "exp")


def test_a_verdict_follows_from_the_interval_alone():
    assert [claims.judge(*bounds) for bounds in ((0.1, 2.0), (-0.1, 2.0), (-3.0, -0.1), (0.0, 1.0))] == [
        "shown",
        "not shown",
        "opposite",
        "not shown",
    ]

    # At least as good: at most two points worse, but not worse for certain.
    for bounds, wanted in (
        ((0.1, 2.0), "shown"), ((-1.9, 0.5), "shown"), ((-2.1, 0.5), "not shown"), ((-2.0, 3.0), "not shown"),
        ((-1.0, -0.1), "opposite"),
    ):  # fmt: skip
        assert claims.judge(*bounds, claims.MARGIN) == wanted

    def outcome(verdict: str, expectation: str = "") -> claims.Outcome:
        return claims.Outcome("a", 1, expectation, 0.0, 0.0, 0.0, 0.0, verdict)  # type: ignore[arg-type]

    assert claims.together([outcome("shown"), outcome("shown")]) == "shown"
    assert claims.together([outcome("shown"), outcome("not shown")]) == "not shown"
    assert claims.together([outcome("opposite"), outcome("not shown")]) == "opposite"


@pytest.mark.parametrize(
    ("system", "names"),
    [
        ("uhubert", ["a", "b", "b-free", "b-fused", "c", "d", "d-fused", "e", "f", "g"]),
        ("av-data2vec", ["a", "b", "b-all", "c", "d", "e", "f"]),
        ("vatlm", ["a", "a-parts", "b", "c", "d", "e"]),
    ],
)
def test_every_figure_of_the_file_has_its_training(system, names):
    """Names, configurations and plans that claims.yaml speaks of are there; nothing is trained for nothing."""
    found, place = configs.load(claims.CONF / f"claims/{system}.yaml", claims.Claims), claims.CONF / system
    assert list(found.claims) == names
    used = set()
    for claim in found.claims.values():
        sides = [side for expectation in claim.expect for side in claims.parse(expectation)]
        sides += [claims.terms(point) for line in (claim.plot.lines.values() if claim.plot else ()) for point in line]
        for term in (term for side in sides for term in side):
            assert term.name in (found.recognizers if term.kind == "@" else found.encoders)
            used.add((term.kind, term.name))
    tested = {name for kind, name in used if kind == "@"}
    teachers = {one.teacher for one in found.recognizers.values() if one.teacher}
    assert tested | teachers == found.recognizers.keys()
    for recognizer in found.recognizers.values():
        assert recognizer.encoder in found.encoders and (place / recognizer.conf).exists()
    for encoder in found.encoders.values():
        assert set(encoder.sources) <= {one.cuts for one in plan.load(place / (encoder.plan or found.plan)).sources}
        assert (place / encoder.conf).exists() and (place / (encoder.plan or found.plan)).exists()


def test_a_system_without_units_trains_on_the_mouth_tracks(tmp_path, monkeypatch):
    """No units are asked for; a system it is compared with has its own, on the same corpus."""
    said: list[list[str]] = []
    monkeypatch.setattr(claim_runs.subprocess, "run", lambda words, cwd: said.append(words) or _Done())
    file = claims.CONF / "claims/av-data2vec.yaml"
    runs = claims.Runs(configs.load(file, claims.Claims), claims.CONF / "av-data2vec", tmp_path, nproc=1)
    assert runs.encoder("joint", 1) == tmp_path / "data2vec-claims/iter1/encoder"
    runs.encoder("both", 1)
    sets = [said[-1][i + 1] for i, word in enumerate(said[-1]) if word == "--set"]
    mouth = tmp_path / "data2vec-claims/mouth"
    assert f"data.sources=[{{cuts: ['{mouth}/cuts_pretrain.jsonl.gz', '{mouth}/cuts_trainval.jsonl.gz']}}]" in sets
    assert not any(one.startswith(("data.units", "objective.num_units")) for one in sets)
    assert runs.encoder("sound", 1) == tmp_path / "claims-a-data2vec-claims-audio-1/encoder"
    assert any(one.startswith("data.sources=") and one.endswith("], streams: [audio]}]") for one in said[-1])
    assert runs.encoder("uhubert", 1) == tmp_path / "uhubert-claims/iter2/encoder"
    assert (tmp_path / "uhubert-claims/corpus").resolve() == tmp_path / "data2vec-claims/corpus"


def test_a_claim_of_many_trainings_waits_until_it_is_named(tmp_path, monkeypatch, capsys):
    """b-all, the other schedules of Table 4; what `<=` means stands below the table."""
    examined: list[str] = []

    def examine(name: str, claim: claims.Claim, runs: claims.Runs) -> list[claims.Outcome]:
        examined.append(name)
        return [claims.Outcome(name, 1, claim.expect[0], 40.0, 41.0, -0.5, 2.5, "shown")]

    monkeypatch.setattr(claims, "examine", examine)
    claims.run("av-data2vec", exp=tmp_path)
    assert examined == list("abcdef")
    meaning = "`<=`: shown if the interval lies above -2 points"
    assert " ".join(capsys.readouterr().err.split()).count(meaning) == 1
    assert (tmp_path / "claims.md").read_text().count(meaning) == 1
    claims.run("av-data2vec", only="b-all", exp=tmp_path)
    assert examined[-1] == "b-all" and "**b-all. " in (tmp_path / "claims.md").read_text()
    assert "`<=`" not in capsys.readouterr().err


def test_trainings_are_shared_and_seeds_have_their_own(tmp_path, monkeypatch):
    """The commands behind two figures: the plan's own encoder is run.sh's, others are trained beside it."""
    said: list[list[str]] = []
    monkeypatch.setattr(claim_runs.subprocess, "run", lambda words, cwd: said.append(words) or _Done())
    runs = claims.Runs(configs.load(FILE, claims.Claims), PLACE, tmp_path, nproc=1)
    assert runs.encoder("dropout", 1) == tmp_path / "claims-plan/iter2/encoder"
    assert [Path(words[1]).name for words in said] == ["run.sh"]
    assert runs.encoder("plain", 2) == tmp_path / "claims-plain-claims-plan-2/encoder"
    assert said[-1][3] == "pretrain" and "seed=2" in said[-1]
    before = len(said)
    runs.decoded(claims.terms("plain-a@v/clean")[0], 2)
    assert [words[3] for words in said[before:]] == ["finetune", "decode"]
    folder = runs.decoded(claims.terms("plain-a@av/babble:-10")[0], 2)
    assert folder == tmp_path / "plain-a-2/decode/test-av-babble_-10dB"
    assert [words[3] for words in said[before + 2 :]] == ["prepare", "decode"]
    assert runs.encoder("mixed-2000", 1) == tmp_path / "claims-mixed/iter2/encoder-2000"
    assert (tmp_path / "claims-mixed/corpus").is_symlink() and said[-1][3] == "export"


def test_types_of_data_labels_and_teachers_are_given_as_the_file_says(tmp_path, monkeypatch):
    """A part of the plan's sources, with their units; sound with transcripts as labels; what a teacher hears."""
    said: list[list[str]] = []
    monkeypatch.setattr(claim_runs.subprocess, "run", lambda words, cwd: said.append(words) or _Done())
    file = claims.CONF / "claims/vatlm.yaml"
    runs = claims.Runs(configs.load(file, claims.Claims), claims.CONF / "vatlm", tmp_path, nproc=1)
    units = tmp_path / "claims-plan/iter2/units"
    one = runs.encoder("no-audio", 1)
    assert one == tmp_path / "claims-no-audio-claims-plan-pretrain+trainval-tedlium-text-1/encoder"
    sources = next(word for word in said[-1] if word.startswith("data.sources="))
    assert sources.count("cuts:") == 3 and "gigaspeech" not in sources
    assert f"['{units}/text'], streams: [text]" in sources
    assert f"['{units}/tedlium/cuts_trainval.jsonl.gz'], streams: [audio, text], weight: 0.2" in sources
    assert "objective.num_units=200" in said[-1] and "data.units=km" in said[-1]

    runs.recognizer("av-tuned-av", 1)
    mouth = tmp_path / "claims-plan/mouth"
    talks = tmp_path / "claims-plan/tedlium/mouth/cuts_trainval.jsonl.gz"
    assert f"data.cuts=['{mouth}/cuts_trainval.jsonl.gz', '{talks}']" in said[-1]
    before = len(said)
    runs.recognizer("self-v", 1)
    assert [words[3] for words in said[before:]] == ["finetune", "decode", "extract", "finetune"]
    labels = tmp_path / "labels-all-av-1/cuts_pretrain.jsonl.gz"
    assert f"data.cuts=['{mouth}/cuts_trainval.jsonl.gz', '{labels}']" in said[-1]
    folder = runs.modalities(claims.terms("all~av,a,v")[0], 1)
    assert folder == tmp_path / "claims-plan/iter2/modalities-of-encoder-av-a-v" and said[-1][3:5] == [
        "score",
        "modalities",
    ]


class _Done:
    returncode = 0
