"""The baseline: the model as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmbench.interventions.protocol import Attachment, Untouched

if TYPE_CHECKING:
    from vlmbench.request import Request


@dataclass(frozen=True, kw_only=True)
class NoIntervention:
    """Measures the model as it is; what every other arm is compared with."""

    name = "none"

    @property
    def arguments(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def request(self, request: Request, model: Any) -> Request:  # noqa: ARG002 – the protocol's arguments
        """The request itself."""
        return request

    def attach(self, model: Any) -> Attachment:  # noqa: ARG002
        """Change nothing."""
        return Untouched()
