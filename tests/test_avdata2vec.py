"""AV-data2vec: schedules, masks, targets, loss and teacher against the paper's equations; exact resume; ranks."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuts import PRETRAIN, command, write_cuts, write_run
from training_toys import on_ranks

from mmspeech import config as configs
from mmspeech import dist
from mmspeech.batch import Batch, valid_frames
from mmspeech.blocks.masking import SpanMask
from mmspeech.cli.pretrain import AVData2vecRun
from mmspeech.data.loader import TrainingStream, make_reading
from mmspeech.errors import Diverged, UserError
from mmspeech.models.av_encoder import AVEncoder, AVEncoderConfig, load_encoder
from mmspeech.models.presence import ModalitySchedule
from mmspeech.pretraining.avdata2vec import AVData2vec, AVData2vecConfig, TeacherConfig, spread, spread_before_norm
from mmspeech.scoring import plots
from mmspeech.training import checkpoint, optimizers, parallel, trainer
from mmspeech.training.step import agree, train_step

STREAMS = {
    "audio": {"frontend": "linear", "size": 104},
    "video": {"frontend": "lips", "crop": 16, "stem": 4, "widths": [4, 8], "blocks": 1},
}
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, "layer_drop": 0.0}
NEVER = {"video": (0.5, 0.5), "audio": (0.5, 0.5)}  # what is kept when not all are, where all always are


def objective(**changes) -> AVData2vec:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "dim": 16, "ffn_dim": 32, "heads": 2, "position_kernel": 8, "position_groups": 4}
    encoder = AVEncoder(AVEncoderConfig(streams=STREAMS, fusion="sum", **sizes, **QUIET, frontend_grad_scale=1.0))
    return AVData2vec(encoder, AVData2vecConfig(**changes), seed=1)


def batch(lengths=(40, 37, 34, 31), start=0) -> Batch:
    """Items with sound and lips; each item's frames do not depend on the others."""
    size, count = max(lengths), len(lengths)
    streams = {"audio": torch.zeros(count, size, 104), "video": torch.zeros(count, size, 16, 16, dtype=torch.uint8)}
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(start + row)
        streams["audio"][row, :length] = torch.randn(length, 104, generator=generator)
        streams["video"][row, :length] = torch.randint(0, 256, (length, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(
        ids=[f"cut{start + row}" for row in range(count)],
        streams=streams,
        lengths={name: torch.tensor(lengths) for name in streams},
        passes=[0] * count,
    )


# Table 4 and Appendix A.1: (p_AV, p_V, p_A) at the start and after 150k updates.
TABLE_4 = {
    "constant": [(0.5, 0.25, 0.25), (0.5, 0.25, 0.25)],
    "v": [(0, 1, 0), (0, 1, 0)],
    "av": [(1, 0, 0), (1, 0, 0)],
    "a": [(0, 0, 1), (0, 0, 1)],
    "av-to-v": [(1, 0, 0), (0.25, 0.75, 0)],
    "v-to-av": [(0.25, 0.75, 0), (1, 0, 0)],
    "a-to-v": [(0.5, 0, 0.5), (0.5, 0.25, 0.25)],
    "av-to-v-and-a": [(1, 0, 0), (0.25, 0.5625, 0.1875)],
}


def test_default_schedule_is_the_papers():
    """p_AV 1 to 0.25 over 150k, lips else; the teacher hears sound alone; tau 0.999 to 0.99999 over 100k (Sec. 4.2)."""
    config = AVData2vecConfig()
    start, end = TABLE_4["av-to-v"]
    for update, wanted in ((0, start), (150_000, end), (900_000, end), (75_000, (0.625, 0.375, 0))):
        shares = config.student.shares(update, "audio+video")
        assert [shares[name] for name in ("audio+video", "video", "audio")] == pytest.approx(wanted)
        assert config.teacher.shares(update, "audio+video") == {"audio+video": 0.0, "audio": 1.0}
    assert [config.ema.rate(update) for update in (0, 50_000, 100_000, 10**6)] == pytest.approx(
        [0.999, 0.999495, 0.99999, 0.99999]
    )
    assert (config.masked_weight, config.unmasked_weight, config.top_k) == (1.0, {"video": 1.0}, None)


@pytest.mark.parametrize(("row", "name"), enumerate(TABLE_4, start=1))
def test_schedules_of_table_4_are_the_papers(row, name):
    """Each row's file: the shares of Appendix A.1 at the start, from 150k on, and those of two lines between."""
    file = "ablation.yaml" if row == 5 else f"ablation-student-{row}.yaml"
    place = Path(__file__).parents[1] / "recipes/lrs3/conf/av-data2vec/pretrain"
    student = configs.load(place / file, AVData2vecRun).objective.student
    start, end = (dict(zip(("audio+video", "video", "audio"), ends, strict=True)) for ends in TABLE_4[name])
    for update in (0, 30_000, 75_000, 150_000, 600_000):
        shares = {"video": 0.0, "audio": 0.0} | student.shares(update, "audio+video")
        done = min(update / 150_000, 1.0)
        assert shares["audio+video"] == pytest.approx(start["audio+video"] * (1 - done) + end["audio+video"] * done)
        assert sum(shares.values()) == pytest.approx(1.0)
        if done in (0.0, 1.0):
            assert shares == pytest.approx(end if done else start)
    kept = {stream for ends in (start, end) for subset, share in ends.items() if share for stream in subset.split("+")}
    assert student.ever_kept("audio+video") == kept


def test_single_streams_change_quadratically():
    """p_V = (1 - p_AV) p_{V|not AV}, both linear: the product of two lines (Sec. 3.2, footnote 2)."""
    schedule = ModalitySchedule(
        all=(0.5, 0.2), otherwise={"video": (0.0, 0.5), "audio": (1.0, 0.5)}, anneal_updates=100
    )
    for update in (0, 25, 50, 99, 100, 500):
        done = min(update / 100, 1)
        together, lips = 0.5 - 0.3 * done, 0.5 * done
        wanted = {"av": together, "video": (1 - together) * lips, "audio": (1 - together) * (1 - lips)}
        assert schedule.shares(update, "av") == pytest.approx(wanted)


@pytest.mark.parametrize("update", [0, 40, 80, 200])
def test_items_keep_streams_as_often_as_the_schedule_says(update):
    """Sampled frequencies against the formula; the teacher's draw is another one."""
    schedule = ModalitySchedule(
        all=(0.8, 0.2), otherwise={"video": (0.3, 0.9), "audio": (0.7, 0.1)}, anneal_updates=100
    )
    model = objective(student=schedule, teacher=schedule)
    student, teacher = {"av": 0, "v": 0, "a": 0}, {"av": 0, "v": 0, "a": 0}
    agree = 0
    for start in range(0, 3000, 100):
        drawn = model.draw(batch([4] * 100, start), update)
        for present, counts in ((drawn.present, student), (drawn.teacher_present, teacher)):
            sound, lips = present["audio"], present["video"]
            counts["av"] += int((sound & lips).sum())
            counts["v"] += int((lips & ~sound).sum())
            counts["a"] += int((sound & ~lips).sum())
        agree += int((drawn.present["audio"] == drawn.teacher_present["audio"]).sum())
    shares = schedule.shares(update, "av")
    for name, key in (("av", "av"), ("v", "video"), ("a", "audio")):
        assert student[name] / 3000 == pytest.approx(shares[key], abs=0.035)
        assert teacher[name] / 3000 == pytest.approx(shares[key], abs=0.035)
    heard = shares["av"] + shares["audio"]
    assert agree / 3000 == pytest.approx(heard**2 + (1 - heard) ** 2, abs=0.04)


def test_coverage_of_both_readings_of_the_mask():
    """Half of the frames divided by the length are starts: about 40 % masked. Half of all frames are: nearly all."""
    covered = {}
    for reading in ("shares", "starts"):
        drawn = objective(mask_reading=reading).draw(batch([250] * 60), 0)
        covered[reading] = float(drawn.drawn["mask/fused"].float().mean())
    assert 0.38 <= covered["shares"] <= 0.42 and covered["starts"] > 0.98


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_targets_equal_a_literal_loop(top_k):
    """The sum of the top K blocks' feed-forward outputs before the last residual, normalised over time (Sec. 3.3)."""
    model = objective(top_k=top_k)
    drawn = model.draw(batch(), 0)
    found = model.targets(drawn).frames
    inner: list[torch.Tensor] = []
    for block in model.teacher.transformer.blocks:
        block.contract.register_forward_hook(lambda module, given, out: inner.append(out))
    for row, length in enumerate((40, 37, 34, 31)):
        inner.clear()
        with torch.no_grad():
            model.teacher.encode(
                {"audio": drawn.streams["audio"][row : row + 1, :length]}, {"audio": torch.tensor([length])}
            )
        total = np.sum([one[0].double().numpy() for one in inner[-top_k:]], axis=0)  # (T, D)
        for channel in range(16):
            values = total[:, channel]
            wanted = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
            np.testing.assert_allclose(found[row, :length, channel].numpy(), wanted, atol=1e-3)
        assert not found[row, length:].any()


@pytest.mark.parametrize("head", ["linear", "none"])
def test_loss_equals_equation_2(head):
    """alpha on masked frames; beta on unmasked ones of items that are lips alone, 0 where there is sound."""
    always = {"all": (0.5, 0.5), "otherwise": {"video": (0.6, 0.6), "audio": (0.4, 0.4)}}
    model = objective(
        student=ModalitySchedule(**always), masked_weight=0.7, unmasked_weight={"video": 0.3}, head=head, loss_scale=1.0
    ).eval()
    lengths = [40, 37, 34, 31] * 5
    drawn = model.draw(batch(lengths), 0)
    subsets = [(bool(drawn.present["audio"][i]), bool(drawn.present["video"][i])) for i in range(20)]
    assert set(subsets) == {(True, True), (True, False), (False, True)}
    parts = model(drawn, 0).parts
    with torch.no_grad():
        frames = model.encoder.encode(
            drawn.streams, drawn.lengths, drawn.present, masked=drawn.drawn["mask/fused"],
            mask_embedding=model.mask_embedding,
        ).frames  # fmt: skip
        z, y = model.head(frames), model.targets(drawn).frames
    masked, unmasked, count = 0.0, 0.0, 0
    for row, length in enumerate(lengths):
        for t in range(length):
            distance = float((z[row, t] - y[row, t]).square().sum())
            if drawn.drawn["mask/fused"][row, t]:
                masked, count = masked + distance, count + 1
            elif subsets[row] == (False, True):
                unmasked, count = unmasked + 0.3 * distance, count + 1
    assert parts["masked"][1] == 0.7 and parts["unmasked"][1] == 1.0
    assert float(parts["masked"][0].detach()) == pytest.approx(masked, rel=1e-4)
    assert float(parts["unmasked"][0].detach()) == pytest.approx(unmasked, rel=1e-4)
    assert drawn.counts == {"masked": count, "unmasked": count}


def test_gradient_reaches_the_student_alone():
    """Every weight of the student and the mask embedding have one; the teacher has none and is in evaluation mode."""
    model = objective(student=ModalitySchedule(all=(1.0, 1.0), otherwise=NEVER)).train()
    drawn = model.draw(batch(), 0)
    loss = model(drawn, 0)
    sum(part for part, _ in loss.parts.values()).backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules()) and model.encoder.training
    with_gradient = {
        name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0
    }
    wanted = {name for name, _ in model.named_parameters() if not name.startswith("teacher.")}
    assert wanted - with_gradient <= {"encoder.frontends.audio.project.bias"}  # nothing behind a norm that removes it


def test_the_mask_embedding_has_a_gradient_where_nothing_is_masked():
    """Data parallelism would wait for it for ever."""
    model = objective(mask=SpanMask(probability=0.0, length=10)).train()
    sum(part for part, _ in model(model.draw(batch(), 0), 0).parts.values()).backward()
    assert model.mask_embedding.grad is not None and not model.mask_embedding.grad.any()


def test_the_teacher_is_the_closed_form_of_an_average():
    """After n steps: prod(tau) theta_0 + sum (1 - tau_k) prod_{j>k}(tau_j) theta_k; batch norm's statistics too."""
    model = objective(ema=TeacherConfig(start=0.8, end=0.95, anneal_updates=3))
    first = copy.deepcopy(model.encoder.state_dict())
    states = []
    generator = torch.Generator().manual_seed(0)
    for update in range(6):
        with torch.no_grad():
            for tensor in model.encoder.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
                else:
                    tensor.add_(1)
        states.append(copy.deepcopy(model.encoder.state_dict()))
        model.after_step(update, torch.zeros(()))
    rates = [0.8, 0.85, 0.9, 0.95, 0.95, 0.95]
    teacher = model.teacher.state_dict()
    assert any("running_var" in name for name in teacher)
    for name, found in teacher.items():
        if not found.is_floating_point():
            assert found == states[-1][name]  # counters are copied
            continue
        wanted = np.prod(rates) * first[name].double()
        for k, state in enumerate(states):
            wanted = wanted + (1 - rates[k]) * np.prod(rates[k + 1 :]) * state[name].double()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_padding_changes_neither_targets_nor_loss():
    """An item alone and in a longer batch: the same draws, the same targets, the same loss."""
    model = objective().eval()
    alone, padded = model.draw(batch([31]), 200_000), model.draw(batch([31, 80, 55]), 200_000)
    for name in alone.present:
        assert alone.present[name][0] == padded.present[name][0]
    assert (alone.drawn["mask/fused"][0] == padded.drawn["mask/fused"][0, :31]).all()
    one, other = model.targets(alone), model.targets(padded)
    torch.testing.assert_close(one.frames[0], other.frames[0, :31], atol=1e-4, rtol=1e-4)
    one = model(alone, 200_000)
    rows = {part: padded.drawn[f"predicted/{part}"] < 80 for part in ("masked", "unmasked")}
    for part, kept in rows.items():
        padded.drawn[f"predicted/{part}"] = padded.drawn[f"predicted/{part}"][kept]
    padded.drawn["weight/unmasked"] = padded.drawn["weight/unmasked"][rows["unmasked"]]
    other = model(padded, 200_000)
    for part in ("masked", "unmasked"):
        assert float(one.parts[part][0].detach()) == pytest.approx(
            float(other.parts[part][0].detach()), rel=1e-3, abs=1e-6
        )


def test_validation_draws_as_at_the_end_of_the_schedules():
    """Figures of different times compare, and lips alone are among what is validated from the first time on."""
    model = objective().eval()
    drawn = [model.draw(batch([40] * 40), update) for update in (0, 500_000)]
    assert all((drawn[0].present[name] == drawn[1].present[name]).all() for name in ("audio", "video"))
    assert 0 < int(drawn[0].present["audio"].sum()) < 25 and len(drawn[0].drawn["predicted/unmasked"])
    assert model.train().draw(batch([40] * 40), 0).present["audio"].all()


def test_a_front_end_that_nothing_reaches_is_left_as_it_is():
    """A-data2vec: weight decay would wear its lips down over the updates."""
    sound = ModalitySchedule(all=(0.0, 0.0), otherwise={"audio": (1.0, 1.0)})
    model = objective(student=sound)
    assert not any(one.requires_grad for one in model.encoder.frontends["video"].parameters())
    assert all(one.requires_grad for one in model.encoder.frontends["audio"].parameters())
    assert all(one.requires_grad for one in objective().encoder.frontends.parameters())
    dispatch = parallel.Dispatch(model.train())
    optimizer = optimizers.build(model, "adam", betas=(0.9, 0.98), eps=1e-6, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    for update in range(2):
        optimizers.set_rates(optimizer, 0.1, update)
        group = [("main", model.draw(batch(), update))]
        outcome = train_step(dispatch, group, agree(dispatch, group).counts, optimizer, update=update, clip_norm=None)
        model.after_step(update, outcome.skipped)
    moved = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert not [name for name in moved if "frontends.video" in name]
    assert {f"{part}.frontends.audio.project.weight" for part in ("encoder", "teacher")} <= moved


def test_a_subset_that_is_everything_adds_to_its_share():
    schedule = ModalitySchedule(all=(0.5, 0.5), otherwise={"video+audio": (0.5, 0.5), "audio": (0.5, 0.5)})
    assert schedule.shares(0, "audio+video") == {"audio+video": 0.75, "audio": 0.25}
    alone = ModalitySchedule(all=(0.0, 0.0), otherwise={"audio": (1.0, 1.0)})
    assert alone.shares(0, "audio") == {"audio": 1.0}


def test_an_item_without_sound_is_taught_by_its_lips():
    """The teacher of sound sees what there is; frames that have no target or no input are not predicted."""
    mixed = batch([40, 40])
    mixed.lengths["audio"] = torch.tensor([0, 25])
    drawn = objective().draw(mixed, 150_000)
    assert not drawn.teacher_present["audio"][0] and drawn.teacher_present["video"][0]
    places = torch.cat([drawn.drawn["predicted/masked"], drawn.drawn["predicted/unmasked"]])
    assert int(places.max()) < 40 + 25 and bool((places < 40).any())


def test_unmasked_frames_of_lips_are_predicted_only_where_sound_was_dropped():
    """What has no sound is taught by its lips: to predict from a frame what is seen in it teaches nothing."""
    mixed = batch([40, 40, 40])
    mixed.lengths["audio"] = torch.tensor([0, 40, 40])
    mixed.present = {"audio": torch.tensor([True, True, False])}  # the third one's sound is not given by its source
    lips = ModalitySchedule(all=(0.0, 0.0), otherwise={"video": (1.0, 1.0)})
    drawn = objective(student=lips).draw(mixed, 0)
    assert not drawn.present["audio"].any() and drawn.teacher_present["audio"].tolist() == [False, True, False]
    assert set((drawn.drawn["predicted/unmasked"] // 40).tolist()) == {1}
    assert set((drawn.drawn["predicted/masked"] // 40).tolist()) == {0, 1, 2}


def test_collapse_is_told_once_or_stops():
    """As data2vec's code: targets whose frames all look the same, after a while."""
    model = objective(watch_after=10).train()
    figures = {"std/teacher": 0.8, "std/target": 0.05, "std/prediction": 0.5}
    assert model.watch(10, figures) is None
    assert "std/target is 0.05, expected at least 0.1" in str(model.watch(11, figures))
    assert model.watch(12, figures) is None
    # Another figure that falls later is told, too; the first is not repeated.
    later = str(model.watch(13, figures | {"std/prediction": 0.001}))
    assert "std/prediction is 0.001" in later and "std/target" not in later
    assert "std/prediction" in str(objective(watch_after=0).watch(1, {"std/target": 1.0, "std/prediction": 0.001}))
    with pytest.raises(Diverged, match="std/target"):
        objective(watch_after=0, stop_on_collapse=True).watch(1, figures)
    for frames, wanted, allowed in ((torch.ones(50, 16), 0.001, 1e-4), (torch.randn(5000, 16), 1.0, 0.05)):
        total, count = spread(frames)
        assert float(total) / count == pytest.approx(wanted, abs=allowed) and count == len(frames)
    assert spread(torch.ones(1, 16))[1] == 0.0  # one frame says nothing


def test_a_teacher_whose_frames_are_all_alike_is_told():
    """Normalised targets look as ever, their differences blown up; std / RMS before normalisation tells."""
    model = objective(watch_after=0).eval()
    drawn = model.draw(batch(), 0)

    def figures() -> dict[str, float]:
        return {name: float(total / count) for name, (total, count) in model(drawn, 0).logs.items()}

    healthy = figures()
    assert healthy["std/teacher"] > 0.5 and model.watch(1, healthy) is None
    with torch.no_grad():
        for block in model.teacher.transformer.blocks:
            block.contract.weight.mul_(2.0)
            block.contract.bias.fill_(1.0)  # beside it, what differs between frames is little
    collapsed = figures()
    assert collapsed["std/teacher"] < 0.05 and collapsed["std/target"] > 0.9
    assert "std/teacher is 0.0" in str(model.watch(2, collapsed))


def test_std_of_the_teacher_equals_a_literal_loop():
    """Of each item and channel, over real frames; the mean over channels, weighted by frames; of zeros 0."""
    x, lengths = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0)) + 2.0, torch.tensor([9, 5, 1])
    x[1, 5:] = torch.nan  # whatever stands in padding
    total, count = spread_before_norm(x, valid_frames(lengths, 9))
    wanted = 0.0
    for row, length in enumerate(lengths):
        real = x[row, :length].double()
        wanted += float(length) * float((real.std(0, correction=0) / real.square().mean(0).sqrt()).mean())
    assert float(total) == pytest.approx(wanted, rel=1e-5) and int(count) == 15
    assert float(spread_before_norm(torch.zeros(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))[0]) == 0.0


def test_the_teacher_stays_where_a_step_was_skipped():
    """Sound that is not finite makes gradients that are not: neither student nor teacher moves; the next step does."""
    model = objective(student=ModalitySchedule(all=(1.0, 1.0), otherwise=NEVER)).train()
    dispatch = parallel.Dispatch(model)
    optimizer = optimizers.build(model, "adam", betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    before = copy.deepcopy(model.teacher.state_dict())
    for update, poison in enumerate((float("nan"), 0.0)):
        given = batch()
        given.streams["audio"][0, 0] += poison
        group = [("main", model.draw(given, update))]
        optimizers.set_rates(optimizer, 1e-3, update)
        outcome = train_step(dispatch, group, agree(dispatch, group).counts, optimizer, update=update, clip_norm=None)
        model.after_step(update, outcome.skipped)
        moved = [name for name, one in model.teacher.state_dict().items() if not torch.equal(one, before[name])]
        if poison != poison:
            assert float(outcome.skipped) == 1.0 and not moved
        else:
            assert {name.rpartition(".")[2] for name in moved} >= {"weight", "running_mean", "num_batches_tracked"}


def test_the_teacher_takes_no_statistics_that_are_not_finite():
    model = objective(ema=TeacherConfig(start=0.5, end=0.5))
    theirs, ours = (dict(one.named_buffers()) for one in (model.encoder, model.teacher))
    poisoned, healthy = [name for name in ours if name.endswith("running_var")][:2]
    theirs[poisoned].fill_(torch.inf)
    theirs[healthy].fill_(3.0)
    model.after_step(0, torch.zeros(()))
    assert (ours[poisoned] == 1.0).all() and (ours[healthy] == 2.0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 4}, "objective.top_k: 4, but the encoder has 3 blocks"),
        ({"top_k": 0}, "top_k: 0; expected 1 block or more"),
        ({"mask": SpanMask(probability=0.5, length=10, replace="other_frames")}, "mask.replace"),
        ({"unmasked_weight": {"lips": 1.0}}, "objective.unmasked_weight: stream `lips`"),
        ({"ema": {"start": 1.1}}, "expected rates from 0 to 1"),
        (
            {"student": {"all": [0.5, 1.5], "otherwise": {"audio": [1, 1]}}},
            "student.all: \\[0.5, 1.5\\]",
        ),
        ({"student": {"all": [0.5, 0.5], "otherwise": {"audio": [1, 0.5]}}}, "otherwise: the shares must be positive"),
        ({"teacher": {"all": [0, 0], "otherwise": {"sound": [1, 1]}}}, "objective.teacher.otherwise: stream `sound`"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        built = configs.build(configs.plain(changes), AVData2vecConfig, Path("x.yaml"))
        objective(**vars(built))


RUN = {key: value for key, value in PRETRAIN.items() if key != "objective"} | {"system": "av-data2vec"}
QUICK = {"objective.ema.start": 0.9, "objective.student.anneal_updates": 4, "model.fusion": "sum"}
SCHEDULE = {"objective.student.all": [0.5, 0.25], "objective.student.otherwise": {"video": [1, 1], "audio": [0, 0]}}
NO_UNITS = {"data.units": None}


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path):
    """From the command line: student, teacher and figures, to the bit."""
    cuts = write_cuts(tmp_path / "data", [0.6, 0.7, 0.8, 1.0, 1.1], lips=range(5), units=None)
    changes = {"data.cuts": [cuts], "data.valid_cuts": [cuts], "training.checkpoint_every": 2}
    changes |= {"training.schedule": "constant"} | QUICK | SCHEDULE | NO_UNITS
    for name, updates in (("whole", (5,)), ("stopped", (2, 5))):
        for number in updates:
            conf = write_run(tmp_path / f"{name}.yaml", RUN, changes | {"training.updates": number})
            assert command("pretrain", conf, tmp_path / name) == 0
    ends = [checkpoint.read(tmp_path / name / "checkpoints/step-0000005.ckpt") for name in ("whole", "stopped")]
    assert any(key.startswith("teacher.") for key in ends[0]["model"])
    for key, tensor in ends[0]["model"].items():
        assert torch.equal(tensor, ends[1]["model"][key]), key
    lines = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    figures = [one for one in map(json.loads, lines) if one["kind"] == "train"]
    assert {"std/teacher", "std/target", "std/prediction", "loss/masked", "loss/unmasked"} <= figures[-1].keys()
    assert all(np.isfinite(one["loss"]) for one in figures)
    weights = {path.name for path in (tmp_path / "whole/encoder").iterdir()}
    assert {"encoder.safetensors", "config.yaml"} <= weights


def test_an_encoder_is_not_said_to_have_learnt_what_never_reached_it(tmp_path):
    """A-data2vec on cuts with lips: `trained_on` names sound alone; AV-data2vec's names both."""
    cuts = write_cuts(tmp_path / "data", [0.6, 0.7], lips=range(2), units=None)
    changes = {"data.cuts": [cuts], "training.updates": 1} | QUICK | NO_UNITS
    for otherwise, wanted in (({"video": [0, 0], "audio": [1, 1]}, ["audio"]), (NEVER, ["audio", "video"])):
        student = {"objective.student.all": [0, 0], "objective.student.otherwise": otherwise}
        name = "-".join(wanted)
        assert command("pretrain", write_run(tmp_path / f"{name}.yaml", RUN, changes | student), tmp_path / name) == 0
        assert load_encoder(tmp_path / name / "encoder").trained_on == wanted


def train(conf: Path, norm: bool = False) -> AVData2vec:
    """Two updates, beside the YAML; without `norm` the front-ends' batch norm does not look at the batch."""
    config = configs.load(conf, AVData2vecRun)
    torch.manual_seed(config.seed)
    model = AVData2vec(AVEncoder(config.model, config.data.streams), config.objective, seed=config.seed)
    model.encoder.frontends.train(norm)
    stream = TrainingStream(config.data, make_reading(config.data, seed=config.seed, train=True), seed=config.seed)
    trainer.run(model, stream, config.training, conf.with_suffix(""), device=torch.device("cpu"))
    return model


def two_ranks(folder: str) -> None:
    for conf in sorted(Path(folder).glob("ranks-*.yaml")):
        train(conf)
    for time in ("trained", "resumed"):
        teacher = train(Path(folder) / "norm.yaml", norm=True).teacher
        torch.save(dict(teacher.named_buffers()), Path(folder) / f"{time}-{dist.rank()}.pt")


def test_ranks_and_accumulation_make_the_same_update(tmp_path):
    """One batch, two, two ranks under DDP and FSDP2, there with two batches each, too: the same student and teacher.

    Where batch norm looks at the batch, both ranks' teachers have the same statistics, and resuming keeps them.
    """
    cuts = write_cuts(tmp_path / "data", [1.0] * 4, lips=range(4), units=None)
    training = {"updates": 2, "eps": 1e-3, "schedule": "constant", "clip_norm": 1.0, "checkpoint_every": 2}
    changes = {f"training.{key}": value for key, value in training.items()} | {"data.cuts": [cuts]} | QUICK | SCHEDULE
    changes |= {f"model.{key}": value for key, value in QUIET.items()} | NO_UNITS
    for name, most, how in (
        ("one-batch", 4.0, "ddp"), ("one-twice", 2.0, "ddp"), ("ranks-ddp", 2.0, "ddp"), ("ranks-fsdp2", 2.0, "fsdp2"),
        ("ranks-fsdp2-twice", 1.0, "fsdp2"), ("norm", 2.0, "ddp"),
    ):  # fmt: skip
        write_run(tmp_path / f"{name}.yaml", RUN, changes | {"data.max_batch_s": most, "training.parallel": how})
    for done in on_ranks(2, "test_avdata2vec:two_ranks", tmp_path):
        assert done.returncode == 0, done.stderr
    for conf in sorted(tmp_path.glob("one-*.yaml")):
        train(conf)
    found = {
        conf.stem: checkpoint.read(tmp_path / conf.stem / "checkpoints/step-0000002.ckpt")["model"]
        for conf in tmp_path.glob("*-*.yaml")
    }
    assert len(found) == 5 and dist.world_size() == 1
    lines = [json.loads(line) for line in (tmp_path / "one-batch/metrics.jsonl").read_text().splitlines()]
    assert max(one["loss/unmasked"] for one in lines) > 0, "some item is lips alone"
    for name, weights in found.items():
        assert weights.keys() == found["one-batch"].keys()
        for key, tensor in weights.items():
            if tensor.is_floating_point() and "running" not in key:
                torch.testing.assert_close(tensor, found["one-batch"][key], atol=2e-5, rtol=1e-4, msg=f"{name} {key}")
    first, *others = (
        torch.load(tmp_path / f"{time}-{rank}.pt", weights_only=True)
        for time in ("trained", "resumed")
        for rank in (0, 1)
    )
    assert any("running_mean" in name and one.any() for name, one in first.items()), "some statistics have moved"
    for other in others:
        assert all(torch.equal(one, other[name]) for name, one in first.items())


def test_the_schedule_is_drawn_with_its_numbers(tmp_path, capsys):
    """`mmspeech schedule`: the shares of Table 4's last row, as numbers beside the picture."""
    conf = Path(__file__).parents[1] / "recipes/lrs3/conf/av-data2vec/pretrain/ablation-student-8.yaml"
    assert command("schedule", conf, tmp_path / "s.png") == 0
    names, *lines = [line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines()]
    rows = {int(line[0]): dict(zip(names, map(float, line), strict=True)) for line in lines}
    share = "student: share of the items: "
    for update, wanted in ((0, (1, 0, 0)), (75_000, (0.625, 0.28125, 0.09375)), (600_000, (0.25, 0.5625, 0.1875))):
        found = [rows[update][share + name] for name in ("audio+video", "video", "audio")]
        assert found == pytest.approx(wanted)
    assert rows[600_000]["teacher's tau: tau"] == pytest.approx(0.99999)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    panels = {"student": {"both": [1, 0], "sound": [0, 1]}, "teacher": {"sound, if not both": [0, 1], "both": [1, 0]}}
    one, other = plots.panels_over(panels, [0, 1_000_000], "update").axes
    colours = [line.get_color() for line in one.lines], [line.get_color() for line in other.lines]
    assert colours[0] == colours[1][::-1] and len(set(colours[0])) == 2, "a stream has one colour in all panels"
    capsys.readouterr()
    assert command("schedule", conf, tmp_path / "s.png", "--set", "objective.student.al=1") == 2
    assert "`objective.student.al` is not a setting of ModalitySchedule" in capsys.readouterr().err
