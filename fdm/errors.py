"""One sentence for the user: what is wrong, and what to do."""


class FdmError(Exception):
    """A failure that the user can mend; the command line prints its sentence and exits with 1."""
