"""Whether a run that stopped in a folder is the one that is asked for now."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmspeech import config as configs
from mmspeech import dist
from mmspeech.errors import UserError
from mmspeech.files import Stage, digest, write_json
from mmspeech.training import checkpoint

# What may differ: how long, how fast, how often it is looked at. All else makes another run.
MAY_CHANGE = {
    "data.max_batch_s", "data.workers", "training.updates", "training.validate_every", "training.checkpoint_every",
    "training.log_every", "training.keep_last", "training.average_last", "training.use", "training.select",
    "objective.stop_on_collapse", "objective.watch_after",
    "training.max_nonfinite", "training.parallel", "training.unused_parameters",
    "objective.min_target_std", "objective.min_prediction_std",  # no settings any more; runs that had them may go on
}  # fmt: skip

# Where files lie is no setting: folders may move. Cuts, encoders, lists of noise and lexicons are compared as inputs.
PLACES = ("encoder", "init", "data.cuts", "data.valid_cuts", "data.valid_noise", "data.noise.cuts", "tokenizer.lexicon")


def settings(config: object) -> dict[str, Any]:
    """All settings of a run but the places of its files."""
    tree: Any = configs.plain(config)
    for place in PLACES:
        *parents, last = place.split(".")
        node = tree
        for parent in parents:
            node = node.get(parent, {})
        node.pop(last, None)
    for source in tree.get("data", {}).get("sources", []):  # which cuts have which weight is one
        source["cuts"] = [digest(Path(file)) for file in source["cuts"]]
    return tree


def check(folder: Path, stage: Stage) -> None:
    """Note in FOLDER/run.json what the run is made from; every rank calls.

    Raises UserError if checkpoints of other inputs or settings lie there: trained on with these, they would pass for
    the result of what is asked for now.
    """
    note = folder / "run.json"
    asked = {"inputs": sorted(stage.inputs.values()), "settings": stage.settings}
    if checkpoint.kept(folder / "checkpoints") and note.exists():
        begun = json.loads(note.read_text())
        if begun["inputs"] != asked["inputs"]:
            changed = "of other cuts or another encoder"
        elif keys := sorted(_differences(begun["settings"], asked["settings"])):
            changed = f"of another `{keys[0]}`"
        else:
            changed = ""
        if changed:
            raise UserError(
                f"{folder}: its checkpoints are of a run {changed}; give another folder, or remove "
                f"{folder / 'checkpoints'} to begin anew"
            )
    dist.barrier()  # nobody reads any more
    if dist.is_first():
        write_json(note, asked)


def _differences(old: object, new: object, key: str = "") -> Iterator[str]:
    """Dotted keys of what differs between two trees of settings, without those that may."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new and key not in MAY_CHANGE:
        yield key
