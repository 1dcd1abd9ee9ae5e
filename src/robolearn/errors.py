"""The one exception that means: the user can mend this, and the message says how."""


class UserError(Exception):
    """A mistake in the configuration, the data or the surroundings of a run.

    The message is one sentence that names the key or the file and the way out. Entry points print it
    without a traceback and exit with status 2.
    """
