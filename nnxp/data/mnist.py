"""MNIST: found in a folder, in the user's cache, or downloaded there.

LeCun, Cortes and Burges, CC BY-SA 3.0: 60,000 and 10,000 handwritten digits of 28 x 28.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nnxp.checks import optional_import
from nnxp.data.dataset import Dataset
from nnxp.data.idx import read_idx
from nnxp.errors import DataError, DataUnavailableError, MissingExtraError

FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""Names of the four files, and SHA-256 of each as it is downloaded, gzipped."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_TIMEOUT = 10  # seconds without an answer before the next mirror is tried


def load_mnist(folder: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """Load MNIST, or any set in its layout, as training and test examples.

    Parameters
    ----------
    folder : path, optional
        Holds the four IDX files, gzipped or not; sizes come from the files, so Fashion-MNIST or
        a subset will do. By default the folder named by ``$NNXP_DATA_DIR``; else the user's
        cache, filled by a checked download when it is empty.

    Returns
    -------
    train, test : Dataset
        Inputs (examples, pixels) and labels (examples,), both uint8.

    Raises
    ------
    DataUnavailableError
        If the files are not in the folder, or cannot be downloaded.
    DataError
        If a file is not what its name says.
    """
    chosen = folder or os.environ.get("NNXP_DATA_DIR")
    if chosen:
        return _read(find_mnist(chosen))
    cache = _cache()
    try:
        found = find_mnist(cache)
    except DataUnavailableError:
        _download(cache)
        found = find_mnist(cache)
    try:
        return _read(found)
    except DataError as error:
        raise DataError(f"{error}; delete {cache} to download the files anew") from error


def find_mnist(folder: str | Path | None = None) -> dict[str, Path]:
    """Return the paths of the four files by name, without downloading them.

    Parameters
    ----------
    folder : path, optional
        By default ``$NNXP_DATA_DIR``, else the user's cache.

    Raises
    ------
    DataUnavailableError
        If one is not there.
    """
    folder = Path(folder or os.environ.get("NNXP_DATA_DIR") or _cache())
    if not folder.is_dir():
        raise DataUnavailableError(f"there is no folder {folder}")
    found = {}
    for name in FILES:
        candidates = (folder / name, folder / f"{name}.gz")
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise DataUnavailableError(f"{folder} holds neither {name} nor {name}.gz")
        found[name] = existing[0]
    return found


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("nnxp", appauthor=False) / "mnist"


def _read(found: dict[str, Path]) -> tuple[Dataset, Dataset]:
    datasets, sizes = [], []
    for part in ("train", "t10k"):
        images_name, labels_name = (name for name in FILES if name.startswith(part))
        images = read_idx(found[images_name], axes=3)
        labels = read_idx(found[labels_name], axes=1)
        if len(images) != len(labels):
            raise DataError(
                f"{found[images_name]} holds {len(images)} images, {found[labels_name]} "
                f"{len(labels)} labels; are they of one set?"
            )
        datasets.append(Dataset(images.reshape(len(images), -1), labels))
        sizes.append(images.shape[1:])
    if sizes[0] != sizes[1]:
        raise DataError(
            f"training images are of {sizes[0]} pixels and test images of {sizes[1]}; are the "
            "files of one set?"
        )
    return datasets[0], datasets[1]


def _download(folder: Path) -> None:
    """Fetch each file that is missing from the first mirror that has it, checked and whole."""
    try:
        pooch = optional_import("pooch", "download")
    except MissingExtraError as error:
        raise DataUnavailableError(
            f"MNIST is not on this machine and cannot be downloaded: {error}"
        ) from None
    # pooch would log each step at level INFO; one line for each file is said here instead.
    pooch.get_logger().setLevel("WARNING")
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT)
    for name, digest in FILES.items():
        if (folder / name).is_file() or (folder / f"{name}.gz").is_file():
            continue
        failures = []
        for mirror in MIRRORS:
            url = f"{mirror}{name}.gz"
            print(f"downloading {url}", file=sys.stderr)
            try:
                pooch.retrieve(url, f"sha256:{digest}", f"{name}.gz", folder, downloader=fetch)
                break
            except ValueError:  # pooch's word for a wrong hash
                failures.append(f"{url} has another SHA-256 than published")
            except OSError as error:  # no connection, or no room here
                failures.append(f"{url}: {error.strerror or type(error).__name__}")
        else:
            raise DataUnavailableError(
                f"MNIST cannot be downloaded ({'; '.join(failures)}); put the four files into a "
                "folder and name it with --data-dir or $NNXP_DATA_DIR"
            )
