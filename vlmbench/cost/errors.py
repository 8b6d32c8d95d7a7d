"""Errors of this package that callers turn into a reason in a record instead of a failed run."""

from __future__ import annotations

from vlmbench.errors import ModelError


class ClosedFormError(ModelError):
    """No closed form is known for an architecture or a part of it; the message says for which."""
