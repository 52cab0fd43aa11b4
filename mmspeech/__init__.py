"""mmspeech: multi-modal speech pre-training, from clips on disk to a table of error rates."""

__version__ = "0.1.0"
