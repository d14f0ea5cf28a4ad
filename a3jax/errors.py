"""The one exception that stands for a user's mistake; the command line turns it into one line and exit status 2."""


class UserError(Exception):
    """Bad input: the message names the file, field or value, and says what to do."""
