"""What can be set about training."""

from dataclasses import dataclass
from typing import Literal

from mmspeech.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an objective is trained; defaults are those of AV-HuBERT's pre-training where it states them."""

    updates: int  # optimizer steps
    lr: float  # peak of the schedule
    optimizer: Literal["adam", "adamw"] = "adam"  # adam: decays all parameters, as the public code
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01  # decoupled: p -= lr * weight_decay * p
    schedule: Literal["polynomial", "tri_stage", "cosine", "constant"] = "polynomial"
    warmup_updates: int = 0  # of every schedule
    hold_updates: int = 0  # tri_stage
    decay_updates: int | None = None  # tri_stage; None: the rest
    init_lr_scale: float = 0.01  # tri_stage begins at this share of the peak
    final_lr_scale: float = 0.05  # tri_stage ends at this share of the peak
    clip_norm: float | None = 10.0  # norm of the gradient over all parameters; None: not clipped
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; CPUs without such instructions are slower with it
    parallel: Literal["ddp", "fsdp2"] = "ddp"  # under torchrun; fsdp2 shards what does not fit on one GPU
    unused_parameters: bool = False  # DDP looks for parameters without gradient; objectives ask for it themselves
    validate_every: int = 1000  # updates
    checkpoint_every: int = 1000  # updates
    log_every: int = 50  # updates; the host waits for the device only then
    keep_last: int = 2  # checkpoints, besides the best
    average_last: int = 0  # checkpoints whose mean is written at the end; 0: none
    use: Literal["last", "best", "average"] = "last"  # weights that the objective has at the end
    select: str = "loss"  # validation figure that picks the best: loss, loss/PART (small), or accuracy... (large)
    max_nonfinite: int = 10  # updates in a row without a finite gradient, then the run stops
    seed: int = 0  # of dropout and other global generators

    def __post_init__(self) -> None:
        for name in ("updates", "validate_every", "checkpoint_every", "log_every", "keep_last", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)}; expected 1 or more")
        if self.lr <= 0:
            raise UserError(f"lr: {self.lr}; expected a rate above 0")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"clip_norm: {self.clip_norm}; expected a norm above 0, or null for none")
        if self.average_last < 0:
            raise UserError(f"average_last: {self.average_last}; expected 0 or more checkpoints")
        if self.warmup_updates > self.updates:
            raise UserError(f"warmup_updates: {self.warmup_updates} of {self.updates} updates; lower it")
        if self.schedule == "tri_stage" and self.final_lr_scale <= 0:
            raise UserError(f"final_lr_scale: {self.final_lr_scale}; an exponential decay ends above 0")
        if self.use == "average" and self.average_last < 1:
            raise UserError("average_last: 0, but `use` is average; give the number of checkpoints")
