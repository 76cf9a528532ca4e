"""What errors say to install."""

from __future__ import annotations

import re
import shlex

from nnxp.extras import is_checkout, requirements


def installs(extra: str) -> str:
    """Return a pattern of the message that a package is missing, with the command to install it.

    The command names the extra in a checkout. Elsewhere, as in the tests of the wheel, pip may not
    find nnxp: the command names the extra's packages.
    """
    packages = shlex.join(each.text for each in requirements() if each.extra == extra)
    named = rf".*\[{extra}\]" if is_checkout() else re.escape(packages)
    return f"is not installed; .*pip install {named}"
