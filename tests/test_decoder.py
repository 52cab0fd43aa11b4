"""The attention decoder: the public model's numbers, and what its caches and masks must not change."""

import pytest
import torch

from mmspeech.blocks.position import sinusoids
from mmspeech.errors import UserError
from mmspeech.models.decoder import END, PAD, Decoder, DecoderConfig, shift_right


def small_decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    options = {"num_layers": 2, "dim": 16, "ffn_dim": 32, "heads": 4} | changes
    return Decoder(11, 12, DecoderConfig(**options)).eval()


def test_target_is_shifted_right_behind_the_end_symbol():
    """The decoder starts with </s>; padding stays padding."""
    targets = torch.tensor([[5, 6, 7, END], [8, END, PAD, PAD]])
    assert shift_right(targets).tolist() == [[END, 5, 6, 7], [END, 8, PAD, PAD]]


def test_positions_are_halves_of_sines_and_cosines():
    """sin(p f_k) and cos(p f_k) with f_k from 1 to 1/10000."""
    table = sinusoids(2, 3, 8, torch.device("cpu"))
    assert table[0, 0].item() == pytest.approx(torch.tensor(2.0).sin().item())
    assert table[2, 4].item() == pytest.approx(torch.tensor(4.0).cos().item())
    assert table[1, 3].item() == pytest.approx(3e-4, rel=1e-4)


def test_logits_do_not_see_later_tokens_or_padded_frames():
    """Causality by gradient; frames past the length have none."""
    decoder = small_decoder()
    memory = torch.randn(2, 7, 12, requires_grad=True)
    tokens = torch.tensor([[END, 4, 5, 6], [END, 7, 8, 9]])
    lengths = torch.tensor([7, 4])
    logits = decoder(tokens, memory, lengths)
    logits[1].square().sum().backward()
    assert memory.grad[1, 4:].abs().max() == 0 < memory.grad[1, :4].abs().max()
    changed = tokens.clone()
    changed[:, 2] = 10
    torch.testing.assert_close(decoder(changed, memory, lengths)[:, :2], logits[:, :2])


def test_steps_equal_the_whole():
    """Token by token with caches, hypotheses changing places and an utterance leaving, equals one forward pass.

    Of 4 x 60 tokens fed, the caches keep those that some hypothesis descends from, and a few more.
    """
    decoder = small_decoder()
    memory, lengths = torch.randn(3, 7, 12), torch.tensor([7, 4, 6])
    state = decoder.start(memory, lengths)
    generator = torch.Generator().manual_seed(1)
    histories = torch.full((3, 1, 1), END)
    utterances = torch.arange(3)
    for step in range(60):
        logits = decoder.step(histories[:, :, -1], state)
        n, width, size = histories.shape
        expected = decoder(
            histories.flatten(0, 1),
            memory[utterances].repeat_interleave(width, 0),
            lengths[utterances].repeat_interleave(width, 0),
        )
        torch.testing.assert_close(logits.flatten(0, 1), expected[:, -1], atol=1e-5, rtol=1e-4)
        chosen = torch.randint(width, (n, 4), generator=generator)
        state.choose(chosen)
        tokens = torch.randint(3, 11, (n, 4, 1), generator=generator)
        histories = torch.cat([histories.gather(1, chosen[:, :, None].expand(-1, -1, size)), tokens], dim=2)
        if step == 9:
            left = torch.tensor([0, 2])
            state.keep(left)
            histories, utterances = histories[left], utterances[left]
    assert state.past[0].size < 160
    assert int(state.ancestors.max()) < state.past[0].size


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="heads: 5 do not divide"):
        DecoderConfig(dim=16, heads=5)
