"""Parts: what networks, layers, losses and optimizers have in common."""

from __future__ import annotations

from typing import ClassVar


class Part:
    """Base class of what a `Trainer` puts together.

    ``class Swish(nnxp.Layer, replayable=True)`` declares that what its methods do depends on
    arrays that they are given, `params` and unchanging settings alone, and leaves no trace but the
    results: so a step may be recorded once and then replayed, which is fast. It holds for the
    class itself; a subclass, which may do something else, declares it again.

    Attributes
    ----------
    replayable : bool
        Whether the class was declared so.
    """

    replayable: ClassVar[bool] = False

    def __init_subclass__(cls, *, replayable: bool = False) -> None:
        super().__init_subclass__()
        cls.replayable = replayable
