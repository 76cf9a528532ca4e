"""Write the gallery: run each script, and write its output and picture as a page of the site.

`python docs/make_gallery.py` runs all scripts of the gallery on MNIST, which takes some minutes;
`python docs/make_gallery.py NAME …` runs some of them. The pages, docs/gallery/NAME.md, and their
pictures are committed: the build of the site runs no script.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "gallery"

# Each script: its arguments, the arguments that set the picture's path, and that path.
FOLDER = ("--out run", "run/picture.png")
SCRIPTS = {
    "fruit_graph": ("", "", ""),
    "logistic_regression": ("", "", ""),
    "xor": ("", "--picture picture.png", "picture.png"),
    "gradient_check": ("", "", ""),
    "full_batch": ("", "", ""),
    "digits_classifier": ("", "", ""),
    "vanishing_gradients": ("", "--out run", "run/layers.png"),
    "learning_rate_range": ("", "--out run", "run/range.png"),
    "compare_optimizers": ("--seeds 1", *FOLDER),
    "compare_initializers": ("--seeds 2", *FOLDER),
    "compare_batch_norm": ("--seeds 2", *FOLDER),
    "compare_dropout": ("--seeds 2", *FOLDER),
    "compare_weight_decay": ("--seeds 2", *FOLDER),
    "compare_activations": ("--seeds 1", *FOLDER),
    "compare_hidden_sizes": ("--seeds 2", *FOLDER),
    "compare_lenet": ("--seeds 1", *FOLDER),
}


def write_page(name: str) -> None:
    """Run a script in an empty folder, and write its page and its picture."""
    arguments, place, picture = SCRIPTS[name]
    script = ROOT / "scripts" / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    title, _, lesson = docstring.partition("\n\n")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), *arguments.split(), *place.split()]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            raise SystemExit(f"{name}: {result.stderr.strip()}")
        if picture:
            shutil.copyfile(Path(folder, picture), PAGES / f"{name}.png")
    printed = "\n".join(
        line.rstrip() for line in result.stdout.splitlines() if not line.startswith("files in ")
    )
    shown = f"python scripts/{name}.py {arguments}".rstrip()
    heading = re.sub(r"\s+", " ", title).rstrip(".")
    parts = [f"# {heading}", lesson, f"```console\n$ {shown}\n{printed.strip()}\n```"]
    if picture:
        parts.append(f"![The picture that {name}.py drew]({name}.png)")
    parts.append(f"[The script](../../scripts/{name}.py)")
    text = "\n\n".join(part for part in parts if part)
    (PAGES / f"{name}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    unknown = set(sys.argv[1:]).difference(SCRIPTS)
    if unknown:
        raise SystemExit(f"not in the gallery: {', '.join(unknown)}; known: {', '.join(SCRIPTS)}")
    PAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCRIPTS:
        print(name, flush=True)
        write_page(name)
