"""What an intervention is: a method that changes a loaded model, and can be taken off again. No torch import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from vlmbench.models.protocol import Prepared
    from vlmbench.request import Request


class Attachment(Protocol):
    """An intervention at work on one model. The order is: :meth:`begin`, one ``generate()``, :meth:`values`, again."""

    def begin(self, prepared: Prepared) -> None:
        """Make ready for one run, outside any clock: where the image is in the prompt, how many tokens stay.

        Raises:
            UnreachablePointError: the method does not apply to these inputs.
        """

    def values(self, num_output_tokens: int) -> dict[str, Any]:
        """What was observed during the run, for its row; called once the device is idle, outside any clock.

        Args:
            num_output_tokens: that came out, of one row.

        Raises:
            MeasurementError: the method did not do what it says (a hook that never ran, say).
        """

    def detach(self) -> None:
        """Leave the model as it was."""


@runtime_checkable
class Intervention(Protocol):
    """A method with its arguments: a frozen dataclass whose constructor does nothing but check them.

    The shipped methods and those of other packages (entry points ``vlmbench.interventions``) are used alike.
    """

    @property
    def name(self) -> str:
        """Names the arm in rows, tables and figures."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Argument name to a number, a word or a list of numbers: with :attr:`name`, all that tells two arms apart."""

    def request(self, request: Request, model: Any) -> Request:
        """The request as this arm asks it: the same one for most, another image for a method that changes the image.

        Raises:
            UnreachablePointError: the model cannot be asked so.
        """

    def attach(self, model: Any) -> Attachment:
        """Change a loaded model (:class:`vlmbench.models.protocol.VisionLanguageModel`).

        Raises:
            UnreachablePointError: the method cannot be applied to this model; the message names both and says why.
        """


@runtime_checkable
class KeepsTokens(Intervention, Protocol):
    """An intervention that lets the language model see a part of the vision tokens only."""

    @property
    def keep(self) -> float:
        """The share of vision tokens that stays, above 0, at most 1."""

    def keeping(self, keep: float) -> KeepsTokens:
        """The same method with another share."""


@runtime_checkable
class ProvesItself(Intervention, Protocol):
    """An intervention that shows on the model at hand, before it is measured, that it does what it says."""

    def prove(self, model: Any, prepared: Prepared) -> Mapping[str, Any]:
        """Compare with the model as it is, on a request that was transferred; ``words`` and figures for the provenance.

        Raises:
            UnreachablePointError: it does not do what it says.
        """


class Untouched:
    """The attachment of a method that changes no module; the base of none, what it saves is writing three methods."""

    def begin(self, prepared: Prepared) -> None:
        """Nothing to make ready."""

    def values(self, num_output_tokens: int) -> dict[str, Any]:  # noqa: ARG002 – the protocol's argument
        """Nothing observed."""
        return {}

    def detach(self) -> None:
        """Nothing to undo."""


def check_share(name: str, value: object) -> float:
    """A share above 0 and at most 1.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"'{name}' must be above 0 and at most 1 (got {value!r})")
    return float(value)
