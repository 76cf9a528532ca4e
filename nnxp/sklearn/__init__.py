"""Estimators of scikit-learn that train networks of nnxp; they need the extra ``sklearn``.

scikit-learn is imported with the first estimator, so that ``import nnxp`` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnxp.checks import optional_import

if TYPE_CHECKING:
    from nnxp.sklearn.classifier import MLPClassifier
    from nnxp.sklearn.regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(
            f"module 'nnxp.sklearn' has no attribute {name!r}; known: {', '.join(__all__)}",
            name=name,
        )
    optional_import("sklearn.base", "sklearn")
    from nnxp.sklearn import classifier, regressor

    return getattr(classifier if name == "MLPClassifier" else regressor, name)


def __dir__() -> list[str]:
    return __all__
