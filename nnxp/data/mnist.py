"""MNIST: load it from a folder or the user's cache, and download it to the cache if needed.

The data set of LeCun, Cortes and Burges (CC BY-SA 3.0) has 60,000 training and 10,000 test images
of handwritten digits, of 28 x 28 pixels each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nnxp.checks import optional_import
from nnxp.data.dataset import Dataset
from nnxp.data.idx import read_idx
from nnxp.data_format import IMAGE_SCALE
from nnxp.errors import DataError, DataUnavailableError, MissingExtraError

FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""The names of the four files, and the SHA-256 of each gzipped file, as the mirrors have it."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_TIMEOUT = 10  # seconds without an answer before the next mirror is tried


def load_mnist(folder: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """Load MNIST, or another data set in the same files, as a training and a test set.

    Parameters
    ----------
    folder : path, optional
        The folder of the four IDX files, gzipped or not. Their sizes may differ from MNIST's, as
        in Fashion-MNIST or a subset. By default the folder in ``$NNXP_DATA_DIR``; if that is not
        set, the user's cache, to which missing files are downloaded.

    Returns
    -------
    train, test : Dataset
        Inputs are an (examples, pixels) uint8 array, labels an (examples,) uint8 array.

    Raises
    ------
    DataUnavailableError
        If the files are not in the folder, or cannot be downloaded.
    DataError
        If a file is damaged, or the files do not belong together.
    """
    chosen = folder or os.environ.get("NNXP_DATA_DIR")
    if chosen:
        return _read(find_mnist(chosen))
    cache = _cache()
    try:
        paths = find_mnist(cache)
    except DataUnavailableError:
        _download(cache)
        paths = find_mnist(cache)
    try:
        return _read(paths)
    except DataError as error:
        raise DataError(f"{error}; delete {cache} to download the files anew") from error


def find_mnist(folder: str | Path | None = None) -> dict[str, Path]:
    """Return the paths of the four files by name, without downloading them.

    Parameters
    ----------
    folder : path, optional
        By default the folder in ``$NNXP_DATA_DIR``; if that is not set, the user's cache.

    Raises
    ------
    DataUnavailableError
        If the folder or a file does not exist.
    """
    folder = Path(folder or os.environ.get("NNXP_DATA_DIR") or _cache())
    if not folder.is_dir():
        raise DataUnavailableError(f"there is no folder {folder}")
    paths = {}
    for name in FILES:
        candidates = (folder / name, folder / f"{name}.gz")
        existing = [path for path in candidates if path.is_file()]
        if not existing:
            raise DataUnavailableError(f"{folder} holds neither {name} nor {name}.gz")
        paths[name] = existing[0]
    return paths


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("nnxp", appauthor=False) / "mnist"


def _read(paths: dict[str, Path]) -> tuple[Dataset, Dataset]:
    datasets, sizes = [], []
    for part in ("train", "t10k"):
        images_name, labels_name = (name for name in FILES if name.startswith(part))
        images = read_idx(paths[images_name], axes=3)
        labels = read_idx(paths[labels_name], axes=1)
        if len(images) != len(labels):
            raise DataError(
                f"{paths[images_name]} holds {len(images)} images, {paths[labels_name]} "
                f"{len(labels)} labels; are they of one set?"
            )
        datasets.append(Dataset(images.reshape(len(images), -1), labels, scale=IMAGE_SCALE))
        sizes.append(images.shape[1:])
    if sizes[0] != sizes[1]:
        raise DataError(
            f"training images are of {sizes[0]} pixels and test images of {sizes[1]}; are the "
            "files of one set?"
        )
    return datasets[0], datasets[1]


def _download(folder: Path) -> None:
    """Download each missing file from the first mirror that has it, and check its SHA-256."""
    try:
        pooch = optional_import("pooch", "download")
    except MissingExtraError as error:
        raise DataUnavailableError(
            f"MNIST is not on this machine and cannot be downloaded: {error}"
        ) from None
    # pooch logs several lines per file; nnxp prints one instead.
    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT)
    for name, digest in FILES.items():
        if (folder / name).is_file() or (folder / f"{name}.gz").is_file():
            continue
        failures = []
        for mirror in MIRRORS:
            url = f"{mirror}{name}.gz"
            print(f"downloading {url}", file=sys.stderr)
            try:
                pooch.retrieve(url, f"sha256:{digest}", f"{name}.gz", folder, downloader=downloader)
                break
            except ValueError:  # pooch raises it for a wrong SHA-256
                failures.append(f"{url} has another SHA-256 than published")
            except OSError as error:  # no connection, or the disk is full
                failures.append(f"{url}: {error.strerror or type(error).__name__}")
        else:
            raise DataUnavailableError(
                f"MNIST cannot be downloaded ({'; '.join(failures)}); put the four files into a "
                "folder and name it with --data-dir or $NNXP_DATA_DIR"
            )
