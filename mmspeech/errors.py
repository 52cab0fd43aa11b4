"""The two kinds of trouble that a user can meet; everything else is our own mistake and keeps its traceback."""


class UserError(Exception):
    """A mistake that a user can mend: printed as one line, exit code 2.

    The line has three parts: where (file, cut, key), expected against found, what to do.
    """


class Diverged(UserError):
    """A training that leads nowhere: no finite gradients, or all outputs alike; another setting may train."""


class BadItem(Exception):
    """One clip, cut or line that cannot be used; loops set it aside with this reason and go on."""
