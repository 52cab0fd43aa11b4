"""Sources of a plan: from which iteration on they can be used, and what run.sh is told of them."""

import pytest

from mmspeech.errors import UserError
from mmspeech.plan import Plan, folders
from mmspeech.plan_sources import PlanSource, check_hops, extra_lines, first_possible, source_lines


def source(cuts, streams=(), first=1, weight=None):
    return PlanSource(cuts=cuts, streams=list(streams), first_iteration=first, weight=weight)


def plan(sources, iterations=2, **changes):
    files = {
        "pretrain": ["a.yaml"] * iterations,
        "units": ["mfcc", "3", "3"][:iterations],
        "clusters": [5] * iterations,
    }
    return Plan(**files, finetune=[], sources=sources, **changes)


def test_speech_without_the_anchor_joins_in_iteration_2():
    """Lips alone have no MFCC; a model that has learnt sound with lips can label them (Sec. 3.2)."""
    both, lips = source("trainval"), source("pretrain", ["video"])
    with pytest.raises(
        UserError, match=r"`pretrain` gives video and is used in iteration 1, .* before iteration 2.*Set"
    ):
        plan([both, lips])
    plan([both, source("pretrain", ["video"], first=2)])
    plan([both, source("pretrain", ["audio"])])  # the anchor itself
    with pytest.raises(UserError, match="no source ties to the anchor audio"):
        plan([source("trainval", ["audio"]), source("pretrain", ["video"], first=2)])
    with pytest.raises(UserError, match="used from iteration 3 on, but there are 2"):
        plan([both, source("pretrain", ["video"], first=3)])


def test_a_modality_n_hops_from_the_anchor_is_used_in_iteration_n_plus_1():
    """Sound - lips - muscles - ultrasound, a chain of pairs: alone in iterations 1, 2, 3, 4 (Sec. 5)."""
    pairs = [
        source("pretrain", ["audio", "video"]),
        source("trainval", ["video", "emg"], 2),
        source("vox", ["emg", "us"], 3),
    ]
    for hops, name in enumerate(["audio", "video", "emg", "us"]):
        assert first_possible(source("tedlium", [name]), [*pairs, source("tedlium", [name])], "audio") == hops + 1
    # A pair is used as soon as one of its two can be labelled; used later, it ties later.
    assert [first_possible(pair, pairs, "audio") for pair in pairs] == [1, 2, 3]
    late = [source("pretrain", ["audio", "video"], first=3), source("trainval", ["video"], first=4)]
    assert first_possible(late[1], late, "audio") == 4
    with pytest.raises(UserError, match="before iteration 4"):
        check_hops([late[0], source("trainval", ["video"], first=3)], 5, "audio")


def test_run_sh_is_told_what_each_iteration_takes_of_each_source():
    """Complete input by default; TED-LIUM has no lips to learn the codebook of C^av from, and joins at the end."""
    sources = [source("pretrain+trainval"), source("vox", ["audio"], weight=None), source("tedlium", first=2)]
    assert source_lines(sources, 1, "complete", ["audio+video"]) == [
        "pretrain+trainval\t-\tsame\t",
        "vox\t-\tsame\t, streams: [audio]",
    ]
    assert source_lines(sources, 2, "complete", ["audio+video"]) == [
        "pretrain+trainval\t-\tsame\t",
        "vox\taudio\tnone\t, streams: [audio]",
        "tedlium\t-\tnone\t",
    ]
    assert source_lines(sources[:2], 2, "video", ["audio", "video", "audio+video"]) == [
        "pretrain+trainval\tvideo\taudio,video,audio+video\t",
        "vox\taudio\tsame\t, streams: [audio]",
    ]
    assert extra_lines(sources) == ["vox voxceleb2 --audio-only", "tedlium tedlium3"]
    assert source_lines([source("trainval", weight=2)], 1, "complete", []) == ["trainval\t-\tsame\t, weight: 2"]


def vatlm(*weights):
    """Clips, sound with transcripts, text, sound: the last three from iteration 2 on."""
    given = [("trainval", []), ("tedlium", ["audio", "text"]), ("text", ["text"]), ("gigaspeech", ["audio"])]
    return [
        source(*one, first=min(place, 1) + 1, weight=weight)
        for place, (one, weight) in enumerate(zip(given, weights or [None] * 4, strict=True))
    ]


def test_text_alone_comes_with_the_source_that_ties_it_to_sound():
    """Its units are made from phones by a model that has learnt from such pairs (VATLM Sec. III-C)."""
    sources = vatlm()
    plan(sources, phone2unit="p.yaml")
    with pytest.raises(UserError, match=r"`text` has neither sound nor lips to make units from.*phone2unit: pretrain/"):
        plan(sources)
    with pytest.raises(UserError, match="`text` gives text, which no source ties to the anchor audio"):
        plan([sources[0], sources[2]], phone2unit="p.yaml")
    with pytest.raises(UserError, match=r"`text` gives text and is used in iteration 1, .*Set first_iteration: 2"):
        plan([sources[0], sources[1], source("text")], phone2unit="p.yaml")
    assert plan([sources[0], sources[1], sources[3]]).phone2unit == "", "nobody needs one without text alone"


def test_units_of_sound_with_text_are_those_of_its_sound():
    """Sec. III-C: paired data regardless of the text; text by phone2unit; the codebook from clips with lips alone."""
    assert source_lines(vatlm(0.08, 0.1, 0.15, 0.2), 2, "complete", ["audio+video"]) == [
        "trainval\t-\tsame\t, weight: 0.08",
        "tedlium\taudio\tnone\t, streams: [audio, text], weight: 0.1",
        "text\tphone2unit\tnone\t, streams: [text], weight: 0.15",
        "gigaspeech\taudio\tnone\t, streams: [audio], weight: 0.2",
    ]
    assert source_lines(vatlm(), 2, "complete", [])[2] == "text\tphone2unit\tnone\t, streams: [text]"
    assert source_lines(vatlm(), 1, "complete", ["audio+video"]) == ["trainval\t-\tsame\t"]
    assert extra_lines(vatlm()) == [
        "tedlium tedlium3",
        "text -",
        "gigaspeech gigaspeech --subset XL --source youtube",
    ]


def test_another_model_of_units_from_phones_is_another_iteration(tmp_path):
    """From the one on that has text; iterations before it are shared."""
    for name in ("a", "p", "q"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n")
    one, other = (folders(plan(vatlm(), phone2unit=f"{name}.yaml"), tmp_path) for name in "pq")
    assert one[0] == other[0] and one[1] != other[1]
    without = [folders(plan(vatlm()[:2], phone2unit=name), tmp_path) for name in ("p.yaml", "")]
    assert without[0] == without[1]


def test_labels_that_a_recognizer_makes_name_it():
    """Self-training: VoxCeleb2 has no transcripts of its own."""
    tuned = {"pretrain": [], "finetune": ["a.yaml"]}
    assert Plan(**tuned, labelled=["trainval+vox"], teacher="t.yaml").teacher == "t.yaml"
    for labelled, teacher in (("trainval+vox", ""), ("trainval+tedlium", "t.yaml")):
        with pytest.raises(UserError, match="teacher: is the recognizer that transcribes the `vox`"):
            Plan(**tuned, labelled=[labelled], teacher=teacher)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([source("pretrain", weight=1), source("trainval")], "some have a weight"),
        ([source("pretrain"), source("pretrain+trainval")], "`pretrain` is in two of them"),
    ],
)
def test_sources_that_contradict_each_other_are_refused(sources, message):
    with pytest.raises(UserError, match=message):
        plan(sources)


def test_anchor_other_than_sound_is_refused():
    """The first units are clusters of MFCC."""
    with pytest.raises(UserError, match="anchor: video, but the first units are clusters of MFCC"):
        plan([source("pretrain")], anchor="video")
