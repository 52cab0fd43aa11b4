"""`mmspeech extract`: mouth tracks and features, stored beside the cuts that carry them."""

import typer

app = typer.Typer()
