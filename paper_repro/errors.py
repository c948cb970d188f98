"""Errors that a user can cause; the command line shows their message without a traceback."""


class ReproError(Exception):
    """Base class of every error that the experiments raise for their users."""


class ConfigurationError(ReproError):
    """A configuration has an unknown key or an impossible value; the message names it."""


class DataError(ReproError):
    """A data file is missing or damaged; the message says which, and what to do."""


class ResultError(ReproError):
    """A result that was asked for is not there, or does not fit what it is to be used for."""
