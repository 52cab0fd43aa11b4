"""`mmspeech prepare noisy`: noisy test sets, frozen."""

from pathlib import Path
from typing import Annotated

import typer

from mmspeech import files
from mmspeech.console import progress, say
from mmspeech.errors import UserError


def noisy(
    cuts: Annotated[list[Path], typer.Argument(help="Cuts to make noisy, e.g. exp/data/cuts_test.jsonl.gz.")],
    noise_dir: Annotated[Path, typer.Argument(help="Noise, as written by `mmspeech prepare musan`.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: CATEGORY_SNRdB.jsonl for each --noise.")],
    noise: Annotated[
        list[str],
        typer.Option(
            help="CATEGORY:DECIBELS, several with commas; all: babble, music, noise, speech at 10 ... -10; grid: these "
            "without noise, for `decode --noise-grid`."
        ),
    ] = ["babble:0"],  # noqa: B006
    split: Annotated[str, typer.Option(help="Part of the noise that is used: train, valid or test.")] = "test",
    seed: Annotated[int, typer.Option(help="Fixes which noise falls on which cut.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first cut that cannot be read.")] = False,
) -> None:
    """Freeze noisy test sets: which noise, from where and how loud, for every cut.

    Prints a hash for each: two labs with the same hash measure the same thing. `mmspeech decode --noise` reads them.
    `--noise all` makes the twenty sets of Shi et al. 2022b: babble, music, noise (natural sounds) and speech, each at
    10, 5, 0, -5 and -10 dB; `mmspeech decode --all` decodes all that are in OUT. `--noise grid` makes the fifteen of
    VATLM's Table IV. A noisy validation set takes the noise kept for it: `--split valid`.

    Example: `mmspeech prepare noisy exp/data/cuts_test.jsonl.gz exp/noise exp/noisy --noise babble:0 --noise music:-5`

    Example: `mmspeech prepare noisy exp/data/cuts_valid.jsonl.gz exp/noise exp/noisy-valid --noise grid --split valid`
    """
    from mmspeech.data import cutfiles, frozen_noise
    from mmspeech.data.noise import Noises, parse_kinds

    kinds = parse_kinds(noise)
    cutfiles.open_cuts(cuts)  # a mistake here must not cost what lies in OUT
    lists = dict.fromkeys(Noises(noise_dir, kind.category, split).path for kind in kinds)
    settings = {"noise": list(map(str, kinds)), "split": split, "seed": seed}
    stage = files.Stage(out, [*cuts, *lists], settings)
    if stage.is_current():
        for kind in kinds:
            say(f"{kind.file_name}: sha256 {frozen_noise.FrozenNoise(out / kind.file_name, noise_dir).sha256}")
        return
    with stage.resuming() as folder, files.Rejects(folder / "rejected.jsonl", strict) as rejects:
        for kind in kinds:
            wanted = progress(cutfiles.open_cuts(cuts), kind.file_name)
            lines = frozen_noise.freeze(wanted, noise_dir, kind, seed=seed, rejects=rejects, split=split)
            if not lines:
                raise UserError(f"{', '.join(map(str, cuts))}: no cut could be read; reasons in {rejects.path}")
            sha256 = frozen_noise.write(folder / kind.file_name, lines, noise_dir, kind, seed, split)
            say(f"{kind.file_name}: sha256 {sha256}")
