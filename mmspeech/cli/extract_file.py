"""Frames of one video or sound file: layers of an encoder, in one file of tensors.

A file of up to a minute is encoded as a whole. A longer one goes in windows of a minute, and each frame is taken from
the window in which it lies further from the edge.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmspeech import files
from mmspeech.cli.extract_features import check_layers, wanted_streams
from mmspeech.console import say
from mmspeech.data.one_file import open_file
from mmspeech.data.reading import FRAMES_PER_S, collate
from mmspeech.decoding import windows
from mmspeech.errors import BadItem
from mmspeech.models.av_encoder import AVEncoder

WINDOW, OVERLAP = 60 * FRAMES_PER_S, 4 * FRAMES_PER_S


@torch.inference_mode()
def extract(
    source: Path,
    out: Path,
    encoder: AVEncoder,
    layers: Sequence[int],
    modalities: Sequence[str] | None,
    device: torch.device,
) -> None:
    """Write `layer_K` (T, D) float32 of each layer K, 25 frames per second, with what was read as metadata.

    Args:
        encoder: in evaluation mode.
        modalities: streams that it gets; by default all that the file has, with a line for what is missing.

    Raises BadItem if the file has none of the streams, or not all of those named.
    """
    check_layers(encoder, layers)
    streams = wanted_streams(encoder, modalities)
    encoder = encoder.to(device)
    kept: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with open_file(source, streams) as file:
        if modalities and file.missing:
            reason = next(iter(file.missing.values()))
            raise BadItem(f"{source}: {reason}; without --modalities what there is is taken")
        for line in file.notices():
            say(line)
        spans = windows.spans(file.num_frames, WINDOW, OVERLAP)
        for span in spans:
            item = file.read(*span)
            if item is None:
                raise BadItem(f"{source}: has no sound, and hardly a face in some minutes of it; give another file")
            batch = collate([item], list(file.streams), [0]).to(device)
            encoded = encoder.encode(batch.streams, batch.lengths, layers=sorted(kept))
            first = 0 if span == spans[0] else OVERLAP // 2
            last = None if span == spans[-1] else span.stop - span.start - OVERLAP // 2
            for layer, frames in zip(sorted(kept), encoded.layers, strict=True):
                kept[layer].append(frames[0, first:last].float().cpu())
    tensors = {f"layer_{layer}": torch.cat(parts) for layer, parts in kept.items()}
    facts = {"source": str(source), "streams": ",".join(file.streams), "frames_per_second": str(FRAMES_PER_S)}
    with files.replacing(out) as temporary:
        save_file(tensors, temporary, metadata=facts)
    shape = tuple(next(iter(tensors.values())).shape)
    say(f"{out}: {', '.join(tensors)} {shape} from {' and '.join(file.streams)}, {FRAMES_PER_S} frames per second")
