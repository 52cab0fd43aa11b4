"""`python -m mmspeech`, which is also what `torchrun -m mmspeech` starts."""

from mmspeech.cli.app import main

if __name__ == "__main__":
    main()
