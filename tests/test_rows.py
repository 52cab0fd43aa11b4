"""Row files: the paper's figures as printed, files that exist and can be run, ours beside theirs, run.sh --row."""

import functools
import gzip
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from cuts import FINETUNE, PRETRAIN, command, write_run
from test_run_sh import recipe, write_splits  # noqa: F401  (a fixture)
from test_scoring import decoded

from mmspeech import config as configs
from mmspeech import plan, plan_sources
from mmspeech.cli import finetune, pretrain, score
from mmspeech.errors import UserError
from mmspeech.scoring import against, table, wer

ROOT = Path(__file__).parents[1]
LRS3 = ROOT / "recipes/lrs3/conf"
CONF, DATA2VEC, VATLM = LRS3 / "uhubert", LRS3 / "av-data2vec", LRS3 / "vatlm"
ROWS = sorted(LRS3.glob("*/rows/*.yaml"))
FIVE = (("av", "clean"), ("av", "babble:0"), ("a", "clean"), ("a", "babble:0"), ("v", "clean"))


TASKS = {"VSR": "v", "ASR": "a", "AVSR": "av"}
STREAMS = {"v": ["video"], "a": ["audio"], "av": ["audio", "video"]}
# Hours of speech, as the papers say; those of VoxCeleb2 are the English ones.
HOURS = {"trainval": 30, "pretrain": 403, "vox": 1326, "tedlium": 452, "gigaspeech": 3846, "text": 0}
SNRS_DB = (-10, -5, 0, 5, 10)

load_row = functools.cache(plan.load_row)


@functools.cache
def load_run(file):
    """A pre-training or a fine-tuning."""
    tree = configs.read(file)
    return configs.build(
        tree, (pretrain.RUNS if "system" in tree else finetune.RUNS)[tree.get("system", tree.get("task"))][0], file
    )


def rows_of(system):
    return [file for file in ROWS if file.parts[-3] == system]


def title(file):
    return f"{file.parts[-3]}-{file.stem}"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        # Tables 2-6 as far as they are ours or AV-HuBERT's, the points of Figure 4, both models of Table 1.
        ("uhubert", {
            "Figure 4": 8, "Table 1": 2, "Table 2": 12, "Table 3": 2, "Table 4": 7, "Table 5": 9, "Table 6": 12,
        }),
        # Lines of Tables 1-6 times VSR, ASR and AVSR (Table 6: twice), A-data2vec of Figure 2, seven K of Figure 3.
        ("av-data2vec", {
            "Figure 2": 24, "Figure 3": 21, "Table 1": 12, "Table 2": 12, "Table 3": 18, "Table 4": 24, "Table 5": 18,
            "Table 6": 66,
        }),
        # Own lines of Tables I-IV, and AV-HuBERT's of II and IV, times VSR and AVSR (Table III, line 6: AVSR; IV: ASR).
        ("vatlm", {"Table I": 14, "Table II": 8, "Table III": 11, "Table IV": 4}),
    ],
)  # fmt: skip
def test_every_row_of_the_paper_has_a_file(system, expected):
    rows = [load_row(file) for file in rows_of(system)]
    tables = [row.table for row in rows]
    assert {name: tables.count(name) for name in dict.fromkeys(tables)} == expected
    assert len({row.title for row in rows}) == len(rows)


@pytest.mark.parametrize("file", ROWS, ids=title)
def test_a_row_names_files_that_load_and_fit_each_other(file):
    """The encoder's streams hold those that are tuned on; codebooks have the size that the pre-training predicts."""
    row = load_row(file)
    if row.clusters_units:
        for name, clusters in zip(row.pretrain, row.clusters, strict=True):
            assert load_run(file.parent / name).objective.num_units == clusters, name
    encoder = load_run(file.parent / (row.encoder or row.pretrain[-1]))
    for name in row.finetune:
        run = load_run(file.parent / name)
        assert {*run.streams, *run.remove} <= set(encoder.model.streams) and not set(run.streams) & set(run.remove)
        assert run.pretrained == bool(row.pretrain)
        assert (row.metric == "bleu") == (run.text != "transcript")
        hours = row.hours
        if row.labelled_corpus.startswith("LRS3"):
            (parts,) = (labelled.split("+") for labelled in row.labelled)
            assert sum(HOURS[part] for part in parts) == row.hours
            hours = sum(HOURS[part] for part in parts if part in ("pretrain", "trainval"))
        assert f"{hours:g}h" in Path(name).stem, name
    parts = [part for source in row.sources for part in source.cuts.split("+") if row.pretrain]
    assert sum(HOURS[part] for part in parts) == row.unlabelled_hours


@pytest.mark.parametrize("file", ROWS, ids=title)
def test_printed_means_are_those_of_the_printed_figures(file):
    """A slip in a figure would show; the paper's own rounding leaves a tenth or so. Where one is a cross: no mean."""
    row = load_row(file)
    figures = [row.paper[streams][noise] for streams, noise in FIVE if noise in row.paper.get(streams, {})]
    if row.average is not None:
        assert len(figures) == 5 and sum(figures) / 5 == pytest.approx(row.average, abs=0.13)
    elif row.table in ("Table 2", "Table 5", "Table 6"):
        assert 1 <= len(figures) < 5
    assert set(row.paper) <= set(row.modality.split(",")), "the figures' streams are decoded"
    noises = {noise for per_noise in row.paper.values() for noise in per_noise}
    assert noises <= set(row.noise.split(",")), "and under the figures' noise"


@pytest.mark.parametrize(
    ("name", "columns"), [("Table 2", 6), ("Table 3", 5), ("Table 4", 3), ("Table 5", 6), ("Table 6", 6)]
)
def test_figures_are_exactly_the_papers(shared, name, columns):
    """Read from the text of the paper, row by row, crosses left out; nothing is added and nothing is missing.

    Of Table 4 the rows of u-HuBERT and of AV-HuBERT.
    """
    text = (shared / "papers/u-hubert.txt").read_text(encoding="utf-8")
    printed = []
    for line in text[text.index(f"{name}:") :].splitlines()[1:]:
        cells = line.split("\t")
        ours_or_avhubert = name != "Table 4" or line.startswith(("u-HuBERT", "[Shi"))
        if len(cells) >= columns + 3 and re.fullmatch(r"[\d.]+|✗", cells[-1].strip()) and ours_or_avhubert:
            printed.append([float(cell) for cell in cells[-columns:] if cell.strip() != "✗"])
        elif printed and not line.strip():
            break
    ours = []
    for row in map(load_row, rows_of("uhubert")):
        if row.table == name:
            figures = [row.paper[streams][noise] for streams, noise in FIVE if noise in row.paper.get(streams, {})]
            ours.append(figures + ([row.average] if row.average is not None else []))
    assert len(printed) == len(ours) and sorted(printed) == sorted(ours)


@pytest.mark.parametrize(
    ("name", "start", "words", "more"),
    [
        ("Table 1", "Table 1. Low", "{0}, {1}, {2}, {3}", [""]),
        ("Table 2", "Table 2. High", "{0}, {1}, {2}, {4}", [""]),
        ("Table 3", "Teacher modality scheduler", "p_AV {0}, p_V {1}, p_A {2}", [""]),
        ("Table 4", "Student modality scheduler", "p_AV {0}, p_V {1}, p_A {2}", [""]),
        ("Table 5", "EMA Scheduler\t", "tau_s {0}, tau_e {1}, tau_anneal {2}", [""]),
        ("Table 6", "unlabeled\tConfiguration", "{0}, {1}, {2}, {3}", [", 30h", ", 433h"]),
    ],
)
def test_settings_and_figures_are_exactly_those_of_av_data2vec(shared, name, start, words, more):
    """Read from the text of the paper, line by line; of Tables 1 and 2 its own. A line printed twice is told apart."""
    text = (shared / "papers/av-data2vec.txt").read_text(encoding="utf-8")
    printed = []
    for line in text[text.index(start) :].splitlines()[1:]:
        cells = line.replace("→", " to ").split("\t")
        own = name not in ("Table 1", "Table 2") or line.startswith("AV-data2vec")
        if own and len(cells) > 3 and all(re.fullmatch(r"[\d.]+", cell) for cell in cells[-3:]):
            columns = [f"{task}{hours}" for hours in more for task in TASKS]
            figures = map(float, cells[-len(columns) :])
            line_words = words.format(*cells)
            printed += [(f"{line_words}; {task}", figure) for task, figure in zip(columns, figures, strict=True)]
        elif printed and not line.strip():
            break
    ours = []
    for row in map(load_row, rows_of("av-data2vec")):
        if row.table == name:
            ((figure,),) = (noises.values() for noises in row.paper.values())
            ours.append((row.row.replace(" (again)", ""), figure))
    assert printed and sorted(printed) == sorted(ours)


def words_of(row, run):
    """What a row of AV-data2vec with this pre-training is called in its table."""
    objective, training = run.objective, run.training
    size, parameters = {12: ("BASE", "103M"), 24: ("LARGE", "325M")}[run.model.num_layers]
    labels, unlabelled = f"{row.hours:g}h", f"{row.unlabelled_hours:g}h"
    if row.table in ("Table 1", "Table 2"):
        return f"AV-data2vec, {unlabelled}, {labels}, {parameters}"
    if row.table in ("Table 3", "Table 4"):
        schedule = objective.teacher if row.table == "Table 3" else objective.student
        begin, end = ({"video": 0.0} | schedule.shares(update, "audio+video") for update in (0, 150_000))
        names = {"p_AV": "audio+video", "p_V": "video", "p_A": "audio"}
        if row.table == "Table 3":
            assert begin == end
            return ", ".join(f"{name} {begin[subset]:g}" for name, subset in names.items())
        return ", ".join(f"{name} {begin[subset]:g} to {end[subset]:g}" for name, subset in names.items())
    if row.table == "Table 5":
        ema = objective.ema
        return f"tau_s {ema.start}, tau_e {ema.end:g}, tau_anneal {ema.anneal_updates // 1000}k"
    if row.table == "Table 6":
        return f"{unlabelled}, {run.data.batch_s:g}s, {training.lr:.0e}, {size}".replace("e-0", "e-")
    if row.table == "Figure 2":
        for schedule in (objective.student, objective.teacher):
            assert schedule.shares(0, "all")["audio"] == schedule.shares(150_000, "all")["audio"] == 1
        assert training.updates == 600_000  # Sec. 5.4
        return f"A-data2vec, {size}, {unlabelled} unlabeled, {labels} labeled"
    return f"K {objective.top_k or run.model.num_layers}"


@pytest.mark.parametrize("file", rows_of("av-data2vec"), ids=title)
def test_a_row_of_av_data2vec_runs_what_its_words_say(file):
    """Corpora, schedules at both ends, EMA, batch, rate, size; tuned and tested on its task alone (Sec. 4.2)."""
    row = load_row(file)
    run, tuned = load_run(file.parent / row.pretrain[0]), load_run(file.parent / row.finetune[0])
    words, _, task = row.row.partition("; ")
    if "(again)" in words:  # printed as BASE; as LARGE it says what is run
        words = words.replace("BASE (again)", "LARGE")
    assert words == words_of(row, run)
    task, _, hours = task.partition(", ")
    assert hours == (f"{row.hours:g}h" if row.table == "Table 6" else "")
    assert row.modality == TASKS[task] and set(row.paper) <= {row.modality}
    assert tuned.streams == {"v": ["video"], "a": ["audio"], "av": ["audio", "video"]}[row.modality]
    assert tuned.objective.decoder.dim == run.model.dim
    assert [source.cuts for source in row.sources[1:]] == ["vox"] * (row.unlabelled_hours == 1759)
    # What A-data2vec never uses is not read (Sec. 5.4), but its cuts are those of the rows beside it.
    assert all(source.streams == (["audio"] if row.table == "Figure 2" else []) for source in row.sources)
    assert plan_sources.extra_lines(row.sources) == ["vox voxceleb2"] * (row.unlabelled_hours == 1759)
    if row.table in ("Table 3", "Table 4", "Table 5", "Figure 3"):  # Sec. 5.5: the same but for the objective
        common = load_run(DATA2VEC / "pretrain/ablation.yaml")
        assert (run.model, run.data, run.training) == (common.model, common.data, common.training)


def printed_lines(text, table):
    """The cells of one of VATLM's tables, line by line."""
    lines = iter(text[re.search(rf"^TABLE {table}\s*$", text, re.MULTILINE).end() :].splitlines())
    inside = itertools.takewhile(lambda line: "\t" in line, itertools.dropwhile(lambda line: "\t" not in line, lines))
    return [[cell.strip() for cell in line.split("\t")] for line in inside]


def printed_in_vatlm(text):
    """(table, what its row file says) -> figures by noise; of Table I the bold ones, which are VATLM's."""
    found = {}

    def add(table, words, tasks, figures):
        for task, figure in zip(tasks, figures, strict=True):
            if figure != "-":
                found[table, f"{words}; {task}"] = {"clean": float(re.sub("</?b>", "", figure))}

    who, size = "VATLM (ours)", ""
    for method, backbone, _, _, labelled, unlabelled, *figures in printed_lines(text, "I"):
        size = backbone or size
        if figures[-1].startswith("<b>"):
            who = method or who
            add("Table I", f"{who}, {size}, {labelled}, {unlabelled}", ("AVSR", "VSR"), figures)
    for method, _, *figures in printed_lines(text, "II"):
        if method.startswith(("AV-HuBERT", "VATLM")):
            add("Table II", method.removesuffix(" [30]"), ("VSR", "AVSR"), figures)
    for _, labelled, loss, *figures in printed_lines(text, "III")[1:]:
        loss = re.sub(r"\\mathcal|[${}]", "", loss)
        add("Table III", f"{labelled}, {loss}", ("VSR", "AVSR"), figures)
    for model, mode, *figures in printed_lines(text, "IV")[2:]:
        who = model or who
        values = list(map(float, figures))
        noises = [f"{kind}:{snr_db}" for kind in ("babble", "speech", "music") for snr_db in SNRS_DB]
        means = [values.pop(place) for place in (17, 11, 5)][::-1]
        for k, mean in enumerate(means):  # which no row file repeats
            assert sum(values[5 * k : 5 * k + 5]) / 5 == pytest.approx(mean, abs=0.06)
        found["Table IV", f"{who}; {mode}"] = dict(zip([*noises, "clean"], values, strict=True))
    return found


def test_words_and_figures_are_exactly_those_of_vatlm(shared):
    """Read from the text of the paper: VATLM's, and of Tables II and IV AV-HuBERT's, which its authors tuned."""
    printed = printed_in_vatlm((shared / "papers/vatlm.txt").read_text(encoding="utf-8"))
    ours = {}
    for row in map(load_row, rows_of("vatlm")):
        ((streams, ours[row.table, row.row]),) = row.paper.items()
        assert streams == row.modality == TASKS[row.row.rpartition("; ")[2]]
    assert ours == printed


@pytest.mark.parametrize("file", rows_of("vatlm"), ids=title)
def test_a_row_of_vatlm_runs_what_its_words_say(file):
    """Size, hours, data in pre-training, noise; what is tuned on the task's streams alone (Sec. IV-C)."""
    row = load_row(file)
    run, tuned = load_run(file.parent / row.pretrain[-1]), load_run(file.parent / row.finetune[0])
    words, _, task = row.row.partition("; ")
    assert tuned.streams == STREAMS[TASKS[task]] and tuned.valid_streams == ["+".join(tuned.streams)]
    assert row.search[0] == "beam=50"
    ours = "AV-HuBERT" not in words
    assert isinstance(run, pretrain.VatlmRun if ours else pretrain.UHubertRun)
    assert tuned.remove == ([name for name in ("audio", "video", "text") if name not in tuned.streams] if ours else [])
    assert run.model.num_layers == (24 if "Large" in words else 12)
    assert tuned.objective.decoder.num_layers == (9 if "Large" in words else 6)
    given = [(source.cuts, source.streams, source.first_iteration) for source in row.sources]
    clips = [part for cuts, streams, _ in given if not streams for part in cuts.split("+")]
    types = {
        "L^ap": ("tedlium", ["audio", "text"], 5),
        "L^p": ("text", ["text"], 5),
        "L^a": ("gigaspeech", ["audio"], 5),
    }
    left_out = set(words.partition(", ")[2].replace("-", "").split()) if row.table == "Table III" else set()
    expected = [what for name, what in types.items() if name not in left_out and ours]
    assert [one for one in given if one[1]] == expected
    assert row.codebook == ["audio+video"] and bool(row.phone2unit)
    assert clips == ["pretrain", "trainval", *(["vox"] if row.table == "Table II" or "1759" in words else [])]
    if row.table == "Table I":
        labelled, unlabelled = words.split(", ")[2:]
        assert float(unlabelled) == sum(HOURS[part] for part in clips)
        assert row.labelled[0].removesuffix("+vox") == {"30": "trainval", "433": "pretrain+trainval"}[labelled]
    assert bool(row.teacher) == row.labelled[0].endswith("+vox") == ("self-training" in words)
    assert (row.labelled == ["trainval+tedlium"]) == ("TED-LIUM3" in words)
    noise = tuned.data.noise
    assert run.data.noise.probability == 0, "Sec. V-E: none in pre-training"
    assert (noise.probability > 0, noise.snr_db) == ((True, (0, 25)) if row.table == "Table IV" else (False, (0, 0)))
    assert row.noisy_validation == (row.table == "Table IV")


def test_shares_of_vatlm_are_the_published_ratios():
    """Audio-visual, paired, text, sound; the first shared by hours where there are two corpora of it."""
    published = {"base-lrs3": (0.08, 0.1, 0.15, 0.15), "base-vox": (0.13, 0.15, 0.32, 0.3)}
    for name, ratios in published.items():
        for row in (plan.load(VATLM / f"{name}.yaml"), load_row(VATLM / f"rows/table1-{name}-30h-v.yaml")):
            clips = [source for source in row.sources if not source.streams]
            others = [source.weight for source in row.sources if source.streams]
            assert (round(sum(source.weight for source in clips), 3), *others) == ratios
            hours = [sum(HOURS[part] for part in source.cuts.split("+")) for source in clips]
            for source, own in zip(clips, hours, strict=True):
                assert source.weight == pytest.approx(ratios[0] * own / sum(hours), rel=1e-3)


def test_vatlm_sees_as_much_sound_with_lips_in_an_update_as_av_hubert():
    """Sec. IV-B: mini-batches "are kept consistent by controlling the sampling ratio"."""
    for name, peer in (
        ("base-lrs3", "base-lrs3-iter1"),
        ("base-vox", "base-lrs3-iter1"),
        ("large-vox", "large-lrs3-iter5"),
    ):
        row = plan.load(VATLM / f"{name}.yaml")
        share = sum(one.weight for one in row.sources if not one.streams) / sum(one.weight for one in row.sources)
        seconds = load_run(VATLM / row.pretrain[-1]).data.batch_s * share
        assert seconds == pytest.approx(load_run(CONF / f"pretrain/{peer}.yaml").data.batch_s, rel=1e-3)


def test_a_type_of_data_fills_as_many_seconds_of_an_update_in_every_line_of_table_iii():
    """Else a line without a loss would see more of the rest, and the table would compare two things at once."""
    whole = {"pretrain+trainval": 1280, "tedlium": 1600, "text": 2400, "gigaspeech": 2400}
    for file in VATLM.glob("rows/table3-*.yaml"):
        row = load_row(file)
        batch_s, total = (
            load_run(VATLM / "rows" / row.pretrain[-1]).data.batch_s,
            sum(one.weight for one in row.sources),
        )
        seconds = {source.cuts: batch_s * source.weight / total for source in row.sources}
        assert seconds == pytest.approx({name: whole[name] for name in seconds}), row.title


def test_pnmi_is_exactly_the_papers(shared):
    """Table 1: a line per codebook, three figures with modality dropout, three without."""
    text = (shared / "papers/u-hubert.txt").read_text(encoding="utf-8")
    drop, plain = (plan.load_row(CONF / f"rows/table1-{name}.yaml").pnmi for name in ("drop", "plain"))
    for codebook, start in (("union", "$\\cup_m C^m$"), ("av", "C^{av}"), ("a", "C^a"), ("v", "C^v")):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{start}\t")]
        printed = [float(cell) for cell in line.split("\t")[1:7]]
        assert printed == [*drop[codebook].values(), *plain[codebook].values()]


def test_rows_share_the_iterations_that_they_have_in_common():
    """Same folders for all rows of one pre-training; with and without modality dropout all but the last."""
    folders = {file.stem: plan.folders(load_row(file), file.parent) for file in rows_of("uhubert")}
    assert folders["table2-drop-a"] == folders["table2-drop-v"] == folders["table5-drop-av"]
    drop, plain = folders["table2-drop-a"], folders["table2-plain-a"]
    assert drop[:4] == plain[:4] and drop[4] != plain[4] and len(set(drop)) == 5
    assert folders["table2-none-a"] == []
    assert not set(folders["table6-p100-a"]) & set(drop)
    files = [*DATA2VEC.glob("rows/table[34]-*-v.yaml"), *DATA2VEC.glob("rows/table[12]-*.yaml")]
    folders = {file.stem: plan.folders(load_row(file), file.parent) for file in files}
    assert folders["table3-teacher-a-v"] == folders["table4-student-1-v"] != folders["table3-teacher-v-v"]
    assert folders["table1-base-433h-v"] == folders["table2-base-433h-a"] != folders["table1-base-1759h-v"]


def test_rows_of_vatlm_share_four_iterations_with_av_huberts():
    """It goes on from AV-HuBERT's fourth iteration (Sec. III-C), and its losses left out differ in the fifth alone."""
    folders = {file.stem: plan.folders(load_row(file), file.parent) for file in rows_of("vatlm")}
    whole = folders["table1-base-lrs3-30h-av"]
    assert whole == folders["table3-1-total-v"] == folders["table4-av"]
    fifth = set()
    for number, name in ((1, "total"), (2, "no-p"), (3, "no-a"), (4, "no-p-a"), (5, "no-p-a-ap")):
        one = folders[f"table3-{number}-{name}-v"]
        assert one == folders[f"table3-{number}-{name}-av"] and one[:4] == whole[:4]
        fifth.add(one[4])
    assert len(fifth) == 5 and folders["table3-6-tedlium-av"] == folders["table3-5-no-p-a-ap-av"]
    assert folders["table4-avhubert-a"][:4] == whole[:4] and folders["table4-avhubert-a"][4] not in fifth
    large = folders["table1-large-vox-433h-v"]
    for name in ("table1-base-vox-30h-v", "table2-avhubert-base-v", "table2-avhubert-large-av"):
        assert folders[name][:4] == large[:4] and folders[name][4] != large[4]
    assert folders["table2-large-v"] == folders["table1-large-vox-30h-v-self"] == large


def test_what_is_no_row_is_refused_with_the_reason(tmp_path):
    good = {"table": "Table 2", "row": "a", "pretrain": [], "units": [], "clusters": [], "finetune": ["x.yaml"]}
    for change, message in (
        ({}, "encoder: is for rows without pre-training"),
        ({"encoder": "e.yaml", "finetune": ["x.yaml", "y.yaml"]}, "2 files; a row is one recognizer"),
        ({"encoder": "e.yaml", "tolerance": -1}, "tolerance: -1"),
        ({"encoder": "e.yaml", "tolerence": 1}, "`tolerence` is not a setting of Row; did you mean `tolerance`"),
        ({"encoder": "e.yaml", "paper": {"av": 3}}, "`paper.av` is 3"),
    ):
        (tmp_path / "row.yaml").write_text(yaml.safe_dump(good | change))
        with pytest.raises(UserError, match=message):
            plan.load_row(tmp_path / "row.yaml")
    with pytest.raises(UserError, match="`table` of Row has no default"):
        plan.load_row(CONF / "synth.yaml")


def experiment(folder, corpus="lrs3", hours=433.0, name="ours"):
    """A system that was pre-trained on 1759 h, tuned on so many and decoded, as the stages record it."""

    def cuts(path, seconds):
        line = {"id": "a", "duration": seconds, "recording": {"id": "a"}, "custom": {"corpus": corpus}}
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.write(json.dumps(line) + "\n")
        return str(path)

    def record(place, inputs, data, **settings):
        place.mkdir(parents=True, exist_ok=True)
        (place / "stage.json").write_text(json.dumps({"inputs": dict.fromkeys(inputs, ""), "settings": settings}))
        (place / "data.json").write_text(json.dumps({"cuts": [data], "max_items": None}))
        return str(place)

    unlabelled = cuts(folder / "cuts_pretrain.jsonl.gz", 1759 * 3600)
    encoder = record(folder / "iter5/encoder", [unlabelled], unlabelled)
    labelled = cuts(folder / "cuts_trainval.jsonl.gz", hours * 3600)
    model = record(folder / name / "model", [encoder, labelled], labelled, pretrained=True)
    test = cuts(folder / "cuts_test.jsonl.gz", 10)
    pairs = [("a b c d e f g h i j", "a b c d e f g h i x")] * 10 + [
        ("a b c d e f g h i j", "a b c d e f g h i j")
    ] * 90
    for streams, noise in FIVE:
        place = folder / name / f"decode/test-{streams}-{noise.replace(':', '')}"
        decoded(place, pairs, modality=streams, noise=noise, noise_hash=None if noise == "clean" else "ab" * 8)
        (place / "stage.json").write_text(json.dumps({"inputs": {model: "", test: ""}, "settings": {}}))
        wer.score_folder(place)
    return folder


ROW = CONF / "rows/table2-drop-av-drop.yaml"  # 1.3 4.6 1.5 20.5 29.1, mean 11.4


def test_ours_theirs_and_the_difference_stand_below_each_other(tmp_path, mmspeech):
    """1 % each; more apart than the tolerance is marked; the mean is that of the printed columns."""
    exp = experiment(tmp_path / "exp")
    done = mmspeech("score", "table", exp, "--against", ROW)
    assert done.returncode == 0, done.stderr
    text = (exp / "report/against.md").read_text()
    head, _, paper, ours, apart = text.splitlines()[:5]
    assert "Table 2: PT with mod-drop; FT on AV with mod-drop (WER in %) | AV clean | AV babble 0 dB" in head
    assert paper == "| paper | 1.3 | 4.6 | 1.5 | 20.5 | 29.1 | 11.4 |"
    assert ours.startswith("| ours | 1.0 [") and ours.endswith("| 1.0 |")
    assert apart == "| difference | -0.3 | -3.6* | -0.5 | -19.5* | -28.1* | -10.4* |"
    assert "Paper: LRS3, 433 h of labels, 1759 h without. *: more than 1 apart." in text
    assert "ours: lrs3, 433 h of labels, 1759 h without.\n" in text
    assert "difference" in done.stdout
    lines = [line.split("\t") for line in (exp / "report/against.tsv").read_text().splitlines()]
    assert len(lines) == 6 and lines[1][9:11] == ["1.3", "-0.300"]


@pytest.mark.parametrize(
    ("about", "condition"),
    [
        ({"corpus": "synth digits"}, "synth digits, 433 h of labels, 1759 h without"),
        ({"hours": 30.0}, "lrs3, 30 h of labels, 1759 h without"),
    ],
)
def test_other_conditions_are_named_and_nothing_is_subtracted(tmp_path, about, condition):
    exp = experiment(tmp_path / "exp", **about)
    (one,) = [against.beside(plan.load_row(ROW), table.collect([exp]))]
    assert [cells[0] for cells in against.lines(one)] == ["paper", "ours"]
    assert against.notes(one)[1] == f"ours: {condition}; not compared with the paper's."
    assert against.tsv([one]).splitlines()[1].split("\t")[10] == ""


def test_what_cannot_be_known_is_not_compared(tmp_path):
    """A test set that is gone; weights of somebody else compare, and it is said that their hours are not known."""
    exp = experiment(tmp_path / "exp")
    (exp / "iter5/encoder/data.json").unlink()
    (one,) = [against.beside(plan.load_row(ROW), table.collect([exp]))]
    assert one.systems[0].comparable and one.systems[0].condition.endswith("pre-training not known")
    against.material.cache_clear()
    (exp / "cuts_test.jsonl.gz").unlink()
    (one,) = [against.beside(plan.load_row(ROW), table.collect([exp]))]
    assert not one.systems[0].comparable and one.systems[0].condition.startswith("corpus not known")


def test_hours_are_of_speech_and_told_whole(tmp_path):
    """Text that is pre-trained on has a length in units, and none in hours; labels that are made count."""
    lines = [{"id": "a", "duration": 3600, "recording": {"id": "a"}, "custom": {"corpus": "lrs3"}}]
    lines.append({"id": "text-1", "duration": 7200, "custom": {"phones": {}}})
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert against.material((tmp_path / "cuts.jsonl.gz",)) == against.Material(("lrs3",), 1.0)
    sentence = {"id": "text-2", "duration": 7200, "custom": {"phones": {}}}
    (tmp_path / "text").mkdir()
    for number in range(2):
        with gzip.open(tmp_path / f"text/cuts_text-{number}.jsonl.gz", "wt") as file:
            file.write(json.dumps(sentence) + "\n")
    sources = [{"cuts": [str(tmp_path / "cuts.jsonl.gz")]}, {"cuts": [str(tmp_path / "text")]}]  # a folder is a source
    (tmp_path / "data.json").write_text(json.dumps({"sources": sources}))
    assert against._trained_on(tmp_path) == against.Material(("lrs3",), 1.0)
    (tmp_path / "data.json").write_text(json.dumps({"cuts": [str(tmp_path / "gone")]}))
    assert against._trained_on(tmp_path) is None
    row = load_row(VATLM / "rows/table1-large-vox-30h-v-self.yaml")
    assert row.condition == "LRS3, 1356 h of labels of LRS3+VoxCeleb2, 6057 h without"


def test_report_has_the_paper_beside_and_refuses_a_row_that_fits_nothing(tmp_path, capsys):
    exp = experiment(tmp_path / "exp")
    score.score_report([exp], against=[ROW])
    assert "Beside the paper" in (exp / "report/index.html").read_text()
    with pytest.raises(UserError, match=r"Table 5.*no system has its bleu of test"):
        score.score_table([exp], against=[CONF / "rows/table5-drop-a.yaml"])
    other = tmp_path / "other"
    wer.score_folder(decoded(other / "ours/decode/cuts20-av-clean", [("a b", "a b")], set="cuts20"))
    with pytest.raises(UserError, match=r"is of a set named `test`, ours are named cuts20, after their files of cuts"):
        score.score_table([other], against=[ROW])
    assert not (other / "report").exists()
    with pytest.raises(UserError, match=r"Figure 4.*the row file has no figures"):
        score.score_table([exp], against=[CONF / "rows/figure4-av-100k.yaml"])


def test_dry_run_of_a_tiny_model_says_sizes_and_memory_and_writes_nothing(tmp_path, capsys):
    """Without cuts or units in the configuration, for all its streams; also one that is no sound and no lips."""
    changes = {"model.streams.emg": {"frontend": "linear", "size": 8}, "data.units": None}
    changes |= {"data.streams.emg": {"reader": "array", "field": "emg"}}
    changes |= {f"objective.input_masks.{name}": {"probability": 0.5, "length": 4} for name in ("audio", "emg")}
    changes["objective.input_masks.video"] = {"probability": 0.5, "length": 4, "replace": "other_frames"}
    conf = write_run(tmp_path / "pretrain.yaml", PRETRAIN, changes)
    assert command("pretrain", conf, tmp_path / "exp", "--dry-run") == 0
    said = capsys.readouterr().err
    assert re.search(r"0.0\d M parameters: encoder 0.0\d", said) and "front-end video" in said
    assert re.search(r"one update on an invented clip of 2 s: loss \d+\.\d+, .*peak memory \d+\.\d+ GiB on cpu", said)
    for task in ("ctc", "seq2seq"):
        tree = {"task": task, "streams": ["audio", "emg"], "data.noise": {"probability": 0.25}}
        tuning = write_run(tmp_path / f"{task}.yaml", FINETUNE, tree)
        if task == "ctc":
            tuning = write_run(tuning, FINETUNE, tree | {"objective": {"encoder": {"freeze_updates": 1}}})
        assert command("finetune", tuning, tmp_path / "exp", "--encoder", conf, "--dry-run") == 0, task
        assert "one update on an invented clip" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()
    assert command("finetune", tuning, tmp_path / "exp", "--encoder", conf, "--set", f"data.cuts=[{conf}]") == 2
    assert "no folder with a pre-trained encoder; give one, or set `pretrained: false`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "least", "most"),
    [
        ("uhubert/rows/table6-p50-25-25-a.yaml", 100, 106),
        ("av-data2vec/rows/table1-base-433h-av.yaml", 100, 106),
        ("vatlm/rows/table1-base-lrs3-30h-v.yaml", 106, 108),
    ],
)
def test_dry_run_of_the_papers_base_model(tmp_path, capsys, row, least, most):
    """AV-HuBERT BASE has 103 M parameters (Shi et al. 2022a, Sec. 4.1), VATLM's 107 M (Sec. IV-B); then its
    fine-tuning, of the row's files."""
    place, row = (LRS3 / row).parent, plan.load_row(LRS3 / row)
    assert command("pretrain", place / row.pretrain[-1], tmp_path / "exp", "--dry-run") == 0
    said = capsys.readouterr().err
    assert least < float(re.search(r"encoder (\d+\.\d+)", said)[1]) < most
    settings = ["--encoder", place / row.pretrain[-1], "--dry-run"]
    assert command("finetune", place / row.finetune[0], tmp_path / "exp", *settings) == 0
    assert "one update on an invented clip" in capsys.readouterr().err


def test_dry_run_of_av_data2vec_large(tmp_path, capsys):
    """325 M parameters (Table 1), and as many in the teacher."""
    assert command("pretrain", DATA2VEC / "pretrain/large-433h.yaml", tmp_path / "exp", "--dry-run") == 0
    said = capsys.readouterr().err
    sizes = [float(re.search(rf"{part} (\d+\.\d+)", said)[1]) for part in ("encoder", "teacher")]
    assert 315 < sizes[0] == sizes[1] < 330


def tiny(file, folder):
    """A pre-training YAML, the same but for its width; the depth stays, as targets are of so many blocks."""
    sizes = {"dim": 16, "ffn_dim": 32, "heads": 2, "position_kernel": 8, "position_groups": 4}
    lips = {"frontend": "lips", "crop": 88, "stem": 4, "widths": [4, 4], "blocks": 1}
    changes = {"streams": {"audio": {"frontend": "linear", "size": 104}, "video": lips}, **sizes}
    path = folder / file.name
    path.write_text(yaml.safe_dump({"base": str(file), "model": changes, "training": {"precision": "fp32"}}))
    return path


@pytest.mark.parametrize("name", sorted({Path(load_row(file).pretrain[0]).name for file in rows_of("av-data2vec")}))
def test_dry_run_of_each_pretraining_of_av_data2vec(name, tmp_path, capsys):
    """One update each, at a small width."""
    assert command("pretrain", tiny(DATA2VEC / "pretrain" / name, tmp_path), tmp_path / "exp", "--dry-run") == 0
    assert re.search(r"one update on an invented clip of 2 s: loss \d+\.\d+", capsys.readouterr().err)


def test_dry_run_of_each_finetuning_of_av_data2vec(tmp_path, capsys):
    """On each encoder that a row has it with; encoders of the same sizes and streams are one."""
    pairs = {}
    for file in rows_of("av-data2vec"):
        row = load_row(file)
        before, tuned = ((file.parent / one[0]).resolve() for one in (row.pretrain, row.finetune))
        pairs[str(load_run(before).model), str(load_run(before).data.streams), tuned.name] = before, tuned
    assert len(pairs) == 12  # BASE and LARGE; three tasks, two sets of labels
    decoder = [f"objective.decoder.{key}={value}" for key, value in (("dim", 16), ("ffn_dim", 32), ("heads", 2))]
    for before, tuned in pairs.values():
        words = ["--encoder", tiny(before, tmp_path), "--dry-run"]
        for one in [*decoder, "training.precision=fp32"]:
            words += ["--set", one]
        assert command("finetune", tuned, tmp_path / "exp", *words) == 0, (before.name, tuned.name)
        assert "one update on an invented clip" in capsys.readouterr().err


def test_dry_run_of_vatlm_large(tmp_path, capsys):
    """332 M parameters (Sec. IV-B); one item of each type of data."""
    assert command("pretrain", VATLM / "pretrain/large-vox.yaml", tmp_path / "exp", "--dry-run") == 0
    said = capsys.readouterr().err
    assert 331.5 < float(re.search(r"encoder (\d+\.\d+)", said)[1]) < 332.5 and "4 invented items" in said


def test_a_row_is_run_in_folders_that_others_share(recipe, tmp_path):  # noqa: F811
    """Pre-training lies under a name that says what it is; the recognizer under the row's; its figures stand beside."""
    exp = tmp_path / "exp"
    row = CONF / "rows/table2-drop-a.yaml"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    words = ["--corpus", "lrs3", "--data", "d", "--musan", "m", "--row"]
    done = recipe(*words, row, "--stage", 6)
    assert done.returncode == 0, done.stderr
    tune, *_, report = done.stdout.splitlines()
    last = plan.folders(plan.load_row(row), row.parent)[-1]
    assert f"{exp}/table2-drop-a --encoder {exp}/{last}/encoder" in tune
    assert "--label table2-drop-a" in done.stdout and f"--against {row}" in report
    done = recipe(*words, CONF / "rows/table2-none-a.yaml", "--stage", 3)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith(("pretrain", "extract", "cluster"))]
    (tune,) = [line for line in done.stdout.splitlines() if line.startswith("finetune")]
    assert "--encoder" in tune and "noise-large-vox-iter5.yaml" in tune
    done = recipe(*words, row, "--conf", CONF / "lrs3.yaml")
    assert done.returncode == 2 and "a row is a plan of its own" in done.stderr
    done = recipe(*words, CONF / "rows/table3-drop-a.yaml")
    assert done.returncode == 2 and "recipes/librispeech/run.sh" in done.stderr


def test_a_row_of_av_data2vec_is_one_pretraining_without_units(recipe, tmp_path):  # noqa: F811
    """On the cuts of both corpora themselves; tuned on 30 h of lips, tested with them."""
    exp, row = tmp_path / "exp", DATA2VEC / "rows/table1-base-1759h-v.yaml"
    write_splits(exp / "mouth", trainval=["yes"], valid=["yes"], test=["no"])
    done = recipe("--corpus", "lrs3", "--data", "d", "--vox", "v", "--row", row, "--stage", 3)
    assert done.returncode == 0, done.stderr
    train, tune, decode, *_ = done.stdout.splitlines()
    (folder,) = plan.folders(load_row(row), row.parent)
    own = ",".join(f"'{exp}/mouth/cuts_{name}.jsonl.gz'" for name in ("pretrain", "trainval"))
    assert f"{DATA2VEC}/rows/../pretrain/base-1759h.yaml {exp}/{folder} " in train and "data.units" not in train
    assert f"data.sources=[{{cuts: [{own}]}}, {{cuts: ['{exp}/vox/mouth/cuts_pretrain.jsonl.gz']}}, ]" in train
    assert f"--encoder {exp}/{folder}/encoder --set data.cuts=['{exp}/mouth/cuts_trainval.jsonl.gz']" in tune
    assert "--modality v --noise clean" in decode and "beam=" not in decode
    assert f"--beam 5,10,25,50,100 --choose-on {exp}/mouth/cuts_valid.jsonl.gz" in decode


def test_a_dry_run_of_the_recipe_takes_each_file_once_and_needs_no_corpus(recipe):  # noqa: F811
    done = recipe("--row", CONF / "rows/table6-p50-25-25-v.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["pretrain"] * 5 + ["finetune"]
    assert all(line.endswith("--dry-run") for line in lines)
    assert "--encoder" in lines[-1] and lines[-1].split("--encoder ")[1].startswith(str(CONF / "rows"))
