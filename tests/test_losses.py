"""The loss in blocks of frames: the same numbers as in one piece, in bounded memory."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmspeech.pretraining import losses

P, K, D, BLOCK = 1000, 64, 4, 4096  # 64000 logits, in 15 blocks of 64 frames and one of 40


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation made, and the most that was alive at once, in elements."""

    def __init__(self):
        super().__init__()
        self.largest, self.alive, self.peak = 0, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                if id(storage) not in self.alive:
                    self.alive[id(storage)] = storage.nbytes() // tensor.element_size()
                    weakref.finalize(storage, self.alive.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def run(block, monkeypatch, dtype=torch.float32, autocast=False):
    """Losses, hits and both gradients of a weighted sum, with at most `block` logits at a time; and their sizes."""
    monkeypatch.setattr(losses, "BLOCK_LOGITS", block)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(P, D, generator=generator).to(dtype).requires_grad_()
    codebook = torch.randn(K, D, generator=generator).requires_grad_()
    units, weights = torch.randint(0, K, (P,), generator=generator), torch.rand(P, generator=generator)
    with Sizes() as sizes:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            each, right = losses.masked_unit_loss(hidden, codebook, units)
        (each * weights).sum().backward()
    return (each.detach(), right, hidden.grad, codebook.grad), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_change_no_number(monkeypatch, dtype):
    """Losses, hits and gradients are those of one product, also for one frame at a time and in autocast."""
    whole, _ = run(P * K, monkeypatch, dtype)
    for block in (BLOCK, 1):
        blocks, _ = run(block, monkeypatch, dtype, autocast=dtype is torch.bfloat16)
        torch.testing.assert_close(blocks[:2], whole[:2], atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(blocks[2:], whole[2:], strict=True):  # sums over frames, in another order
            assert (ours - theirs).norm() < (1e-2 if ours.dtype == torch.bfloat16 else 1e-5) * theirs.norm()


def test_memory_does_not_hold_all_logits(monkeypatch):
    """Forward and backward, no tensor has more elements than a block, and few blocks are alive at once."""
    _, whole = run(P * K, monkeypatch)
    assert whole.largest == P * K and whole.peak > 2 * P * K  # what is counted is there to be seen
    _, blocks = run(BLOCK, monkeypatch)
    assert blocks.largest <= BLOCK
    assert blocks.peak < 6 * BLOCK + 6 * P * D


def test_few_logits_are_one_product(monkeypatch):
    """Up to the bound nothing is computed twice: no block is entered again for the gradient."""
    entered = []
    real = losses.checkpoint
    monkeypatch.setattr(losses, "checkpoint", lambda *args, **more: (entered.append(1), real(*args, **more))[1])
    run(P * K, monkeypatch)
    assert not entered
    run(BLOCK, monkeypatch)
    assert len(entered) == 16  # the blocks of 64 frames and the one of 40
