"""VATLM's phoneme-to-unit model: packing, length regulator, generation, training on pairs."""

import dataclasses

import numpy as np
import pytest
import torch

from mmspeech.batch import Batch
from mmspeech.blocks.packing import Packing
from mmspeech.errors import UserError
from mmspeech.models.phone2unit import (
    MOST_FRAMES,
    Phone2Unit,
    Phone2UnitConfig,
    load_phone2unit,
    phone_of_frame,
    save_phone2unit,
)
from mmspeech.pretraining.phone2unit import Phone2UnitLossConfig, Phone2UnitObjective, run_lengths

CPU = torch.device("cpu")
TINY = Phone2UnitConfig(
    num_units=7,
    dim=16,
    encoder_layers=2,
    decoder_layers=2,
    ffn_dim=32,
    duration_dim=16,
    kernel=5,
    duration_dropout=0.0,
    dropout=0.0,
    attention_dropout=0.0,
)


def tiny(**changes) -> Phone2Unit:
    torch.manual_seed(0)
    return Phone2Unit(dataclasses.replace(TINY, **changes)).eval()


def made(num_items=4, start=0):
    """Phones (N, P), lengths, durations with zeros among them, frames."""
    generator = torch.Generator().manual_seed(start)
    lengths = torch.tensor([9 - 2 * (i % 4) for i in range(num_items)])
    inside = torch.arange(9) < lengths[:, None]
    phones = torch.randint(4, 45, (num_items, 9), generator=generator) * inside
    durations = torch.randint(0, 5, (num_items, 9), generator=generator) * inside
    durations[:, 0] += 1
    return phones, lengths, durations, durations.sum(1)


def test_packing_leads_there_and_back():
    """Every element is found again, gaps are as wide as asked on all sides, and nobody lies in them."""
    lengths = torch.tensor([3, 0, 5, 1])
    packing = Packing.of(lengths, 2, CPU)
    padded = torch.arange(1.0, 21).view(4, 5)
    rows = packing.pack(padded).masked_fill(packing.gaps[:, 0], 0.0)
    assert rows.tolist() == [0, 0, 1, 2, 3, 0, 0, 0, 0, 11, 12, 13, 14, 15, 0, 0, 16, 0, 0]
    inside = torch.arange(5) < lengths[:, None]
    assert torch.equal(packing.pad(rows), padded * inside)
    assert rows[packing.real].tolist() == padded[inside].tolist()
    assert packing.positions[packing.real].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]


def test_length_regulator_equals_a_literal_loop():
    """Phone p stands in as many frames as it lasts, in order; phones of no frame in none."""
    durations = torch.randint(0, 4, (5, 11), generator=torch.Generator().manual_seed(1))
    durations[4] = 0
    size = int(durations.sum(1).max())
    found = phone_of_frame(durations, size)
    for row, times in zip(found.tolist(), durations.tolist(), strict=True):
        literal = [phone for phone, count in enumerate(times) for _ in range(count)]
        assert row == literal + [10] * (size - len(literal))


def test_run_lengths_equal_a_literal_loop():
    """Cumulative rounding to frames: durations add up, and a phone too short for a frame keeps its place."""
    rng = np.random.default_rng(0)
    frames = np.array([12, 0, 7, 9])
    ids = np.repeat(rng.integers(4, 7, (4, 24)), rng.integers(1, 4, 24), axis=1)[:, :48]
    found = run_lengths(ids, frames)
    for i, count in enumerate(frames):
        phones, ends = [], []
        for tick in range(4 * count):
            if tick == 0 or ids[i, tick] != ids[i, tick - 1]:
                phones.append(ids[i, tick])
                ends.append(0)
            ends[-1] = int((tick + 1) / 4 + 0.5)
        assert found.phones[i, : found.lengths[i]].tolist() == phones
        assert found.durations[i, : found.lengths[i]].tolist() == np.diff([0, *ends]).tolist()
        assert found.durations[i].sum() == count and not found.phones[i, found.lengths[i] :].any()
    assert (found.durations[0, : found.lengths[0]] == 0).any()


def test_shapes_of_what_is_predicted():
    model = tiny()
    phones, lengths, durations, frames = made()
    predicted = model(phones, lengths, durations, frames)
    assert predicted.logits.shape == (int(frames.sum()), 7)
    assert predicted.log_durations.shape == (4, 9)
    made_up = model.generate(phones, lengths)
    assert made_up.durations.shape == (4, 9) and made_up.units.shape == (4, int(made_up.lengths.max()))
    assert torch.equal(made_up.durations.sum(1), made_up.lengths)


def test_an_item_sees_neither_padding_nor_its_neighbours():
    """Alone, beside others, with other ids behind its end: the same units, durations and logits."""
    model = tiny()
    phones, lengths, durations, frames = made()
    together, generated = model(phones, lengths, durations, frames), model.generate(phones, lengths)
    dirty = phones.masked_fill(torch.arange(9) >= lengths[:, None], 5)
    assert torch.equal(model(dirty, lengths, durations, frames).logits, together.logits)
    logits = together.logits.split(frames.tolist())
    for i, count in enumerate(lengths.tolist()):
        one = (phones[i : i + 1, :count], lengths[i : i + 1])
        alone = model(*one, durations[i : i + 1, :count], frames[i : i + 1])
        torch.testing.assert_close(alone.logits, logits[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.log_durations[0], together.log_durations[i, :count], atol=1e-5, rtol=1e-5)
        own = model.generate(*one)
        assert torch.equal(own.units[0], generated.units[i, : own.lengths[0]])
        assert torch.equal(own.durations[0], generated.durations[i, :count])
        assert not generated.units[i, own.lengths[0] :].any()


@pytest.mark.parametrize("bias", [-20.0, 0.4, 2.0, 90.0])
def test_no_duration_is_negative_and_no_item_is_shorter_than_its_phones(bias):
    """Whatever is predicted: at least one frame per phone in total, at most MOST_FRAMES per phone."""
    model = tiny()
    torch.nn.init.constant_(model.predictor.project.bias, bias)
    phones, lengths, *_ = made()
    found = model.generate(phones, lengths)
    inside = torch.arange(9) < lengths[:, None]
    assert (found.durations >= 0).all() and (found.durations <= MOST_FRAMES).all()
    assert (found.lengths >= lengths).all() and not found.durations[~inside].any()
    assert found.units.shape[1] == int(found.lengths.max())


def test_bf16_gives_the_same_units_but_for_ties():
    """Under the same durations: wherever the best logit leads by more than twice what bf16 moves any of them by (each
    may move by so much), which are most frames; predicted durations differ by a frame at most."""
    model = tiny()
    phones, lengths, durations, frames = made(8)
    with torch.no_grad():
        exact = model(phones, lengths, durations, frames).logits  # (F, K)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(phones, lengths, durations, frames).logits.float()
    error = (half - exact).abs().max()
    assert 0 < error < 0.03 * exact.abs().max()
    best = exact.topk(2).values
    clear = best[:, 0] - best[:, 1] > 2 * error
    assert clear.float().mean() > 0.8
    assert torch.equal(half.argmax(1)[clear], exact.argmax(1)[clear])
    whole = model.generate(phones, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.generate(phones, lengths)
    assert (rounded.durations - whole.durations).abs().max() <= 1
    assert (rounded.lengths - whole.lengths).abs().max() <= 3


def pairs(count=8, seed=0) -> Batch:
    """Items whose units and durations follow from the phones: unit = phone % 7, 1 + phone % 3 frames each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        phones = rng.permutation(np.arange(4, 16))[: rng.integers(6, 12)]
        rows.append(np.repeat(phones, 1 + phones % 3))
    lengths = torch.tensor([len(row) for row in rows])
    ids = np.zeros((count, int(lengths.max()), 4), np.uint8)
    units = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row[:, None]
        units[i, : len(row)] = torch.from_numpy(row % 7)
    return Batch(
        ids=[f"pair{i}" for i in range(count)],
        streams={"text": torch.from_numpy(ids)},
        lengths={"text": lengths},
        targets={"units": units},
        target_lengths={"units": lengths.clone()},
        passes=[0] * count,
    )


@torch.no_grad()
def test_the_loss_equals_a_literal_loop():
    """Cross-entropy with smoothing over frames, square error of log(frames + 1) over phones; sums and divisors."""
    objective = Phone2UnitObjective(tiny(), Phone2UnitLossConfig(label_smoothing=0.1)).eval()
    batch = objective.draw(pairs(3), 0)
    loss = objective(batch, 0)
    phones, lengths, durations = batch.drawn["phones"], batch.target_lengths["phones"], batch.drawn["durations"]
    frames = batch.target_lengths["units"]
    predicted = objective.model(phones, lengths, durations, frames)
    total, right, place = 0.0, 0, 0
    for i, count in enumerate(frames.tolist()):
        for t in range(count):
            logs = predicted.logits[place].log_softmax(0)
            unit = int(batch.targets["units"][i, t])
            total -= 0.9 * float(logs[unit]) + 0.1 * float(logs.mean())
            right += int(logs.argmax()) == unit
            place += 1
    squares, off = 0.0, 0
    for i, count in enumerate(lengths.tolist()):
        for p in range(count):
            guess = float(predicted.log_durations[i, p])
            squares += (guess - np.log1p(int(durations[i, p]))) ** 2
            off += abs(max(round(np.expm1(guess)), 0) - int(durations[i, p]))
    assert float(loss.parts["units"][0]) == pytest.approx(total, rel=1e-4)
    assert float(loss.parts["durations"][0]) == pytest.approx(squares, rel=1e-4)
    assert batch.counts == {"units": place, "durations": int(lengths.sum())}
    assert [int(value) for value, _ in loss.logs.values()] == [right, off]


def test_frames_without_unit_are_left_out():
    """Units may be two short of the phones: they decide."""
    objective, batch = Phone2UnitObjective(tiny(), Phone2UnitLossConfig()), pairs(2)
    batch.target_lengths["units"] -= 2
    drawn = objective.draw(batch, 0)
    assert torch.equal(drawn.drawn["durations"].sum(1), drawn.target_lengths["units"])
    assert len(drawn.drawn["frames"]) == drawn.counts["units"] == int(drawn.lengths["text"].sum()) - 4


def test_the_model_learns_eight_pairs_by_heart():
    """All units under true durations, nearly all durations; then generation gives the pairs back."""
    objective = Phone2UnitObjective(tiny(dim=32, ffn_dim=64), Phone2UnitLossConfig(label_smoothing=0.0)).train()
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    batch = objective.draw(pairs(), 0)
    for _ in range(60):
        loss = objective(batch, 0)
        mean = sum(total / batch.counts[part] for part, (total, _) in loss.parts.items())
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    figures = {name: float(value) / count for name, (value, count) in objective.eval()(batch, 0).logs.items()}
    assert figures["accuracy/units"] > 0.99
    assert figures["duration_error/frames"] < 0.02
    found = objective.model.generate(batch.drawn["phones"], batch.target_lengths["phones"])
    same = torch.equal(found.lengths, batch.target_lengths["units"])
    assert same and (found.units == batch.targets["units"]).float().mean() > 0.99


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("text", 46, "model.num_phones: 46, but the cuts have a phone id 46"),
        ("units", 7, "model.num_units: 7, but the cuts have a unit 7; set it to the size of the codebook"),
    ],
)
def test_ids_that_the_model_lacks_are_named(where, value, message):
    batch = pairs(1)
    (batch.streams if where == "text" else batch.targets)[where][0, 0] = value
    with pytest.raises(UserError, match=message):
        Phone2UnitObjective(tiny(), Phone2UnitLossConfig()).draw(batch, 0)


def test_a_saved_model_is_loaded_again(tmp_path):
    model = tiny()
    model.inputs = {"text": {"reader": "phones"}}
    save_phone2unit(model, tmp_path / "model")
    again = load_phone2unit(tmp_path / "model")
    assert again.config == model.config and again.inputs == model.inputs and not again.training
    phones, lengths, *_ = made()
    assert torch.equal(again.generate(phones, lengths).units, model.generate(phones, lengths).units)
    with pytest.raises(UserError, match=f"{tmp_path}: expected a phone-to-unit model.*give {tmp_path / 'model'}"):
        load_phone2unit(tmp_path)


@pytest.mark.parametrize("changes", [{"kernel": 4}, {"dim": 15}, {"num_units": 0}])
def test_sizes_that_cannot_be_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes)) if "dim" not in changes else "heads"):
        dataclasses.replace(TINY, **changes)
