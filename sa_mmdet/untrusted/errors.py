"""The one error of this folder."""

import pickle


class RefusedFileError(pickle.UnpicklingError, ValueError):
    """A file is damaged, or asks for more than data; nothing in it has been run.

    It is an UnpicklingError for callers that know :func:`torch.load`, and a ValueError for this package's tools. The
    message is one line.
    """
