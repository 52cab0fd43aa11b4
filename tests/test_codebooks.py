"""PNMI of every input's features under every codebook: one reading, the same figures as by hand, t-SNE, the report."""

import json

import numpy as np
import pytest
import torch
from cuts import command, write_cuts
from lhotse.supervision import AlignmentItem
from test_scoring import decoded

from mmspeech import plan
from mmspeech.cli import score_codebooks
from mmspeech.data.cutfiles import open_cuts, writing_cuts
from mmspeech.errors import UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, save_encoder
from mmspeech.scoring import bootstrap, codebooks, pnmi

STREAMS = {
    "audio": {"frontend": "linear", "size": 104},
    "video": {"frontend": "lips", "crop": 20, "stem": 4, "widths": [4, 4, 8, 8], "blocks": 1},
    "emg": {"frontend": "linear", "size": 8},
}
INPUTS = {
    "audio": {"reader": "logmel"},
    "video": {"reader": "mouth", "size": 24, "crop": 20},
    "emg": {"reader": "array", "field": "emg"},
}
DURATIONS = [1.6, 1.52, 1.4, 1.28, 1.2, 1.12, 1.0, 0.92]  # whole frames; falling, so batches keep the file's order
ALL = "audio+video+emg"


def save_tiny(folder, names=tuple(STREAMS)):
    torch.manual_seed(0)
    config = AVEncoderConfig(
        streams={name: STREAMS[name] for name in names},
        num_layers=2, dim=16, ffn_dim=32, heads=2, position_groups=4, position_kernel=7,
    )  # fmt: skip
    save_encoder(AVEncoder(config, {name: INPUTS[name] for name in names}), folder)
    return folder


def align(path, out):
    """The cuts with a phone alignment, and a corpus."""
    rng = np.random.default_rng(0)
    with writing_cuts(out) as writer:
        for cut in open_cuts(path):
            times = np.linspace(0, cut.duration - 0.1, 5)  # the end is in no phone
            symbols = rng.choice(list("abc"), 4)
            items = [AlignmentItem(str(s), t, times[1] - times[0]) for s, t in zip(symbols, times[:-1], strict=True)]
            cut.supervisions[0].alignment = {"phone": items}
            cut.custom["corpus"] = "synth digits"
            writer.write(cut)
    return out


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A three-stream encoder, and aligned cuts that have all its streams."""
    place = tmp_path_factory.mktemp("codebooks")
    cuts = write_cuts(place / "data", DURATIONS, units=None, emg=True, lips=range(len(DURATIONS)))
    return save_tiny(place / "run/encoder"), align(cuts, place / "cuts_valid.jsonl.gz"), place


@pytest.fixture(scope="module")
def measured(material):
    """What the command writes."""
    encoder, cuts, place = material
    words = ["--clusters", 6, "--starts", 2, "--points", 20, "--resamples", 200, "--device", "cpu"]
    assert command("score", "codebooks", encoder, cuts, place / "out", *words) == 0
    return place / "out"


def test_every_input_is_quantised_by_every_codebook(measured):
    """Names come from the encoder: all streams together, each alone, and the union of them all."""
    found = codebooks.load(measured / "codebooks.json")
    assert found.features == [ALL, "audio", "video", "emg"]
    assert found.codebooks == ["union", *found.features]
    values, low, high = (np.array(part) for part in (found.pnmi, found.low, found.high))
    assert values.shape == low.shape == high.shape == (5, 4)
    assert ((values >= 0) & (values < 100) & (low <= values + 1e-9) & (values <= high + 1e-9)).all()
    assert values.max() > 0
    assert (found.label, found.utterances, found.phones, found.corpus) == ("run", len(DURATIONS), 3, "synth digits")
    assert "AVE [" not in (measured / "codebooks.md").read_text()
    head, _, *rows = (measured / "codebooks.md").read_text().splitlines()
    assert head == "| PNMI in %: codebook of | AVE | A | V | E |"
    assert [row.split(" | ")[0] for row in rows[:5]] == ["| union", "| AVE", "| A", "| V", "| E"]
    assert len((measured / "codebooks.tsv").read_text().splitlines()) == 1 + 20
    assert {path.name for path in measured.iterdir()} == {
        "codebooks.json", "codebooks.safetensors", "codebooks.md", "codebooks.tsv", "codebooks.png",
        "tsne.json", "tsne.png", "rejected.jsonl", "stage.json",
    }  # fmt: skip


def test_figures_are_those_of_the_single_commands(material, measured, tmp_path):
    """extract features of sound alone, cluster fit, label, purity: the same PNMI as the cell (audio, audio)."""
    encoder, cuts, _ = material
    frames, book, labelled = tmp_path / "frames", tmp_path / "book", tmp_path / "units"
    with writing_cuts(tmp_path / "cuts.jsonl.gz") as writer:
        for cut in open_cuts(cuts):
            cut.custom = {}  # no stream but sound is left
            writer.write(cut)
    given = [tmp_path / "cuts.jsonl.gz", frames, "--encoder", encoder, "--layer", 2, "--device", "cpu"]
    assert command("extract", "features", *given) == 0
    path = frames / "cuts.jsonl.gz"
    assert command("cluster", "fit", path, book, "--clusters", 6, "--starts", 2) == 0
    assert command("cluster", "label", path, book, labelled, "--name", "km", "--device", "cpu") == 0
    assert command("cluster", "purity", labelled / path.name, "--name", "km", "--out", tmp_path / "purity.json") == 0
    found = codebooks.load(measured / "codebooks.json")
    ours = found.pnmi[found.codebooks.index("audio")][found.features.index("audio")]
    measures = json.loads((tmp_path / "purity.json").read_text())
    assert ours == pytest.approx(100 * measures["pnmi"], abs=1e-6)
    assert found.frames == measures["frames"]


def test_each_cut_is_read_once_for_all_inputs(material, measured, tmp_path, monkeypatch, capsys):
    """And again with the same settings nothing is read at all."""
    encoder, cuts, _ = material
    read = []
    original = score_codebooks.read_item
    monkeypatch.setattr(score_codebooks, "read_item", lambda cut, how: read.append(cut.id) or original(cut, how))
    words = ["score", "codebooks", encoder, cuts, tmp_path / "out", "--clusters", 3, "--points", 5, "--resamples", 200]
    assert command(*words, "--device", "cpu") == 0
    assert sorted(read) == [f"clip{i:03d}" for i in range(len(DURATIONS))]
    assert command(*words, "--device", "cpu") == 0
    assert len(read) == len(DURATIONS) and "current, nothing to do" in capsys.readouterr().err


def test_codebooks_may_be_learnt_from_other_cuts(material, measured, tmp_path):
    """Then PNMI is of frames that no codebook has seen; those cuts need no phones."""
    encoder, cuts, place = material
    words = ["--learn-from", place / "data/cuts.jsonl.gz", "--clusters", 6, "--starts", 2, "--points", 5]
    settings = [*words, "--resamples", 200, "--device", "cpu"]
    assert command("score", "codebooks", encoder, cuts, tmp_path / "out", *settings) == 0
    same = codebooks.load(tmp_path / "out/codebooks.json")
    # They are the same frames here, so the figures are, too.
    assert np.array(same.pnmi) == pytest.approx(np.array(codebooks.load(measured / "codebooks.json").pnmi))


def test_points_are_the_same_frames_under_each_input(measured):
    """Drawn by a seed, each with a phone, placed by t-SNE."""
    points = json.loads((measured / "tsne.json").read_text())
    assert len(points["x"]) == len(points["y"]) == 4 * 20
    assert points["features"] == [name for name in (ALL, "audio", "video", "emg") for _ in range(20)]
    assert points["phones"][:20] * 4 == points["phones"] and set(points["phones"]) <= set("abc")
    assert (measured / "tsne.png").read_bytes().startswith(b"\x89PNG")


def test_resampled_pnmi_is_pnmi_of_the_counts_that_were_drawn(monkeypatch):
    """With every utterance drawn once it is the plain one; units that are phones have all of it in every draw."""
    rng = np.random.default_rng(0)
    phones = [rng.integers(0, 4, n) for n in (5, 30, 17)]
    units = [np.where(rng.random(len(one)) < 0.6, one + 7, rng.integers(0, 30, len(one))) for one in phones]
    assert pnmi.resampled(phones, phones, resamples=300) == pytest.approx(1)
    drawn = pnmi.resampled(phones, units, seed=1, resamples=300)
    assert np.array_equal(drawn, pnmi.resampled(phones, units, seed=1, resamples=300)) and drawn.std() > 0
    counts = np.array([[1, 1, 1], [2, 0, 1]])
    monkeypatch.setattr(bootstrap, "draws", lambda *size, **how: iter([counts]))
    found = pnmi.resampled(phones, units)
    for row, value in zip(counts, found, strict=True):
        table = pnmi.JointCounts()
        for times, own_phones, own_units in zip(row, phones, units, strict=True):
            for _ in range(times):
                table.add(own_units, [f"p{phone}" for phone in own_phones])
        assert value == pytest.approx(table.agreement().pnmi)


def test_cells_of_one_table_or_two_are_compared_draw_by_draw(measured, tmp_path):
    nothing = codebooks.difference(measured, ("audio", "emg"), measured, ("audio", "emg"))
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    found = codebooks.load(measured / "codebooks.json")
    one = codebooks.difference(measured, ("union", ALL), measured, ("emg", "video"))
    assert one.value == pytest.approx(found.pnmi[4][2] - found.pnmi[0][0]) and one.low <= one.value <= one.high
    other = tmp_path / "other"
    other.mkdir()
    (other / "codebooks.json").write_text((measured / "codebooks.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match="other utterances or with another seed"):
        codebooks.difference(measured, ("union", ALL), other, ("union", ALL))
    with pytest.raises(UserError, match="no codebook lips with features audio; there are union"):
        codebooks.difference(measured, ("lips", "audio"), measured, ("union", ALL))


def test_report_shows_pnmi_and_t_sne_where_they_lie_in_the_experiment(measured, mmspeech):
    decoded(measured.parent / "run/decode/test-av-clean", [("one two", "one two")])
    done = mmspeech("score", "report", measured.parent)
    assert done.returncode == 0, done.stderr
    page = (measured.parent / "report/index.html").read_text()
    assert "Codebooks and features" in page and "t-SNE of the features of run" in page
    assert "layer 2, 6 clusters" in page and page.count('src="data:image/png;base64,') == 1


def test_a_papers_table_stands_beside_and_is_subtracted_only_on_its_corpus(measured):
    row = plan.Row(
        pretrain=[], units=[], clusters=[], finetune=[], table="Table 1", row="with", metric="wer",
        pnmi={"union": {"a": 40.0, "v": 30.0}, "a": {"a": 41.0, "v": 31.0}},
    )  # fmt: skip
    ours = codebooks.load(measured / "codebooks.json")
    other = codebooks.against(ours, row)
    assert [one.label for one in other] == ["run", "paper"]
    assert "measured on synth digits: not compared" in codebooks.markdown(other)
    apart = codebooks.against(codebooks.replace(ours, corpus="lrs3"), row)[2]
    assert (apart.codebooks, apart.features) == (["union", "audio"], ["audio", "video"])
    assert apart.pnmi[1][0] == pytest.approx(ours.pnmi[2][1] - 41.0)


def test_cuts_without_all_streams_are_set_aside_with_the_reason(material, tmp_path, capsys):
    encoder, _, _ = material
    cuts = write_cuts(tmp_path / "data", [1.0] * 6, units=None, emg=True, lips=range(5))
    cuts = align(cuts, tmp_path / "cuts.jsonl.gz")
    words = ["score", "codebooks", encoder, cuts, tmp_path / "out", "--clusters", 3, "--points", 5, "--resamples", 200]
    assert command(*words, "--strict") == 2
    assert "clip005: has no video; the same speech is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert command(*words) == 0
    assert "clip005" in (tmp_path / "out/rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (("audio",), [], "this encoder reads audio alone"),
        (("audio", "emg"), ["--layer", 3], "--layer 3: the encoder has 0"),
        (("audio", "emg"), ["--clusters", 5000], "frames for 5000 clusters"),
        (("audio", "emg"), [], "no cut has a phone alignment"),
        (("audio", "video"), [], "no cut has all of audio, video"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, capsys, names, words, message):
    cuts = write_cuts(tmp_path / "data", [1.0, 0.9], units=None, emg=True)
    encoder = save_tiny(tmp_path / "encoder", names)
    given = ["--clusters", 3, "--device", "cpu", *words]
    assert command("score", "codebooks", encoder, cuts, tmp_path / "out", *given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert message in line and not (tmp_path / "out").exists()
