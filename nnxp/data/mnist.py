"""MNIST: load it from a folder or the user's cache, and download it to the cache if needed.

The data set of LeCun, Cortes and Burges (CC BY-SA 3.0) has 60,000 training and 10,000 test images
of handwritten digits, with 28 x 28 pixels each. QMNIST (Yadav and Bottou 2019) and EMNIST (Cohen et
al. 2017) can be loaded, too.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nnxp.checks import explained
from nnxp.data.dataset import Dataset
from nnxp.data.idx import read_idx
from nnxp.data_format import IMAGE_SCALE
from nnxp.errors import DataError, DataUnavailableError
from nnxp.files import expand_home, require_writable, write_atomically

FILES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
"""The names of the four files, and the SHA-256 of each gzipped file on the mirrors."""

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

_REMEDY = (
    f"put the four files ({', '.join(FILES)}) into a folder, and name it in "
    'nnxp.data.load_mnist("folder"), with --data-dir, or in NNXP_DATA_DIR'
)


@explained('nnxp.data.load_mnist("folder")')
def load_mnist(
    folder: str | Path | None = None, *, images: bool = False
) -> tuple[Dataset, Dataset]:
    """Load MNIST, or another data set in the same files, as a training and a test set.

    Parameters
    ----------
    folder : path, optional
        The folder of the four IDX files; `find_mnist` describes their names. Their sizes may differ
        from MNIST's, as in Fashion-MNIST or a subset. By default the folder in ``$NNXP_DATA_DIR``;
        if that is not set, the user's cache, to which missing files are downloaded.
    images : bool, optional
        Return inputs as images for convolutions; by default as rows.

    Returns
    -------
    train, test : Dataset
        Inputs are an (examples, pixels) uint8 array, or (examples, 1, height, width) with `images`.
        Labels are an (examples,) array of integers: uint8, or int32 for QMNIST. EMNIST's images are
        stored column by column and are transposed; its labels are not changed, and are from 1 to 26
        for letters.

    Raises
    ------
    DataUnavailableError
        If the files are not in the folder, or cannot be downloaded.
    DataError
        If a file is damaged, or the files do not belong together.
    """
    if folder or os.environ.get("NNXP_DATA_DIR"):
        return _read(find_mnist(folder), images)
    cache = _cache()
    try:
        with contextlib.suppress(DataUnavailableError):
            return _read(_find_in(cache), images)
        _download(cache)  # its error does not show that of _find_in, whose remedy is another
        return _read(_find_in(cache), images)
    except DataUnavailableError:
        raise
    except DataError as error:
        raise DataError(f"{error}; delete {cache} to download the files again") from error


def find_mnist(folder: str | Path | None = None) -> dict[str, Path]:
    """Return the paths of the four files by MNIST's names, without downloading them.

    Parameters
    ----------
    folder : path, optional
        The folder that has the files, or has them in ``raw`` or ``MNIST/raw`` as in torchvision.
        The files have the names of MNIST, also as ``train-images.idx3-ubyte``, of QMNIST, or of one
        split of EMNIST, with or without ``.gz``. Each may be in a folder of its own name. By
        default the folder in ``$NNXP_DATA_DIR``; if that is not set, the user's cache.

    Returns
    -------
    dict of str to Path

    Raises
    ------
    DataUnavailableError
        If the folder or a file does not exist.
    DataError
        If a file is empty, or the files are of more than one split of EMNIST.
    """
    if folder:
        return _find_in(expand_home(folder))
    named = os.environ.get("NNXP_DATA_DIR")
    place = expand_home(named) if named else _cache()
    try:
        return _find_in(place)
    except DataUnavailableError as error:
        raise DataUnavailableError(
            f"NNXP_DATA_DIR is set, but {error}"
            if named
            else f"{error}; nnxp.data.load_mnist() downloads it"
        ) from None


def _find_in(folder: Path) -> dict[str, Path]:
    nearest, message = -1, ""
    empty: Path | None = None
    try:
        if not folder.is_dir():
            what = f"{folder} is no folder" if folder.exists() else f"there is no folder {folder}"
            raise DataUnavailableError(f"{what}; name the folder that holds the four files")
        for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
            for names in _names_in(place):
                paths = {name: _find(place, own) for name, own in names.items()}
                found = {name: path for name, path in paths.items() if path}
                if len(found) == len(paths):
                    broken = [path for path in found.values() if not path.stat().st_size]
                    if not broken:
                        return found
                    empty = empty or broken[0]
                elif len(found) > nearest:
                    missing = next(own for name, own in names.items() if not paths[name])
                    nearest = len(found)
                    message = f"{place} holds neither {missing} nor {missing}.gz"
    except OSError as error:
        raise DataUnavailableError(f"{folder} cannot be read ({error})") from error
    if empty:
        raise DataError(f"{empty} is empty (0 bytes); copy it there again")
    raise DataUnavailableError(
        f"{message}; copy it there, or name the folder that holds the four files"
    )


def _names_in(place: Path) -> Iterator[dict[str, str]]:
    """Yield the names that the four files may have in a folder: MNIST's, QMNIST's, EMNIST's."""
    yield {name: name for name in FILES}
    others = {name: name.replace("t10k", "test") for name in FILES}
    yield {
        name: "qmnist-" + other.replace("idx1-ubyte", "idx2-int") for name, other in others.items()
    }
    files = place.iterdir() if place.is_dir() else ()
    matches = [re.match(r"emnist-(\w+)-(train|test)-(images|labels)", file.name) for file in files]
    splits = sorted({match[1] for match in matches if match})
    if len(splits) > 1:
        raise DataError(
            f"{place} holds {len(splits)} splits of EMNIST: {', '.join(splits)}; move the four "
            "files of one to a folder of its own"
        )
    for split in splits:
        yield {name: f"emnist-{split}-{other}" for name, other in others.items()}


def _find(place: Path, name: str) -> Path | None:
    """Return the file of this name, in one of its spellings; nonempty files come first."""
    spellings = (name, name.replace("-idx", ".idx"))
    endings = [f"{spelling}{ending}" for spelling in spellings for ending in ("", ".gz")]
    paths = [place / ending for ending in endings]
    paths += [place / folder / ending for folder in spellings for ending in endings]
    existing = [path for path in paths if path.is_file()]
    existing.sort(key=lambda path: path.stat().st_size == 0)
    return existing[0] if existing else None


def _cache() -> Path:
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("nnxp", appauthor=False) / "mnist"
    except RuntimeError:
        folder = Path("~")  # older versions of platformdirs return a path that begins with it
    if not folder.is_absolute():
        raise DataUnavailableError(
            f"there is no home folder for the cache; set HOME to an absolute path, or {_REMEDY}"
        )
    return folder


def _read(paths: dict[str, Path], as_images: bool) -> tuple[Dataset, Dataset]:
    datasets, sizes = [], []
    for part in ("train", "t10k"):
        images_name, labels_name = (name for name in FILES if name.startswith(part))
        images = read_idx(paths[images_name], axes=3)
        # QMNIST's labels have eight columns: the class, then the writer and others.
        columns = "idx2" in paths[labels_name].name
        labels = read_idx(paths[labels_name], axes=2 if columns else 1)
        for name, values, wanted in (
            (images_name, images, "uint8"),
            (labels_name, labels, "integers"),
        ):
            if values.dtype != np.uint8 and (wanted == "uint8" or values.dtype.kind != "i"):
                raise DataError(
                    f"{paths[name]} holds {values.dtype}, wanted {wanted}; read it with "
                    "nnxp.data.read_idx and make a Dataset of it"
                )
        if columns:
            labels = labels[:, 0].copy()
        if paths[images_name].name.startswith("emnist-"):
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        if len(images) != len(labels):
            raise DataError(
                f"{paths[images_name]} holds {len(images)} images, {paths[labels_name]} "
                f"{len(labels)} labels; are they of one set?"
            )
        shape = (1, *images.shape[1:]) if as_images else (-1,)
        datasets.append(Dataset(images.reshape(len(images), *shape), labels, scale=IMAGE_SCALE))
        sizes.append(images.shape[1:])
    if sizes[0] != sizes[1]:
        raise DataError(
            f"training images are of {sizes[0]} pixels and test images of {sizes[1]}; are the "
            "files of one set?"
        )
    return datasets[0], datasets[1]


def _download(folder: Path) -> None:
    """Download each missing file from the first mirror that has it."""
    import logging

    from nnxp.data.download import download

    logger = logging.getLogger("nnxp")

    try:
        missing = {
            name: folder / f"{name}.gz"
            for name in FILES
            if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()
        }
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing.values():
            require_writable(path)
        failed: list[str] = []
        for name, path in missing.items():
            failures = []
            for mirror in sorted(MIRRORS, key=failed.count):  # try mirrors that failed last
                url = f"{mirror}{path.name}"
                logger.info("downloading %s", url)
                try:
                    data = download(url, FILES[name])
                    break
                except DataUnavailableError as error:
                    failures.append(str(error))
                    failed.append(mirror)
            else:
                raise DataUnavailableError(
                    f"MNIST cannot be downloaded ({'; '.join(failures)}); {_REMEDY}"
                )
            write_atomically(path, data)
    except OSError as error:
        raise DataUnavailableError(
            f"MNIST cannot be downloaded to {folder} ({error.strerror}); {_REMEDY}"
        ) from error
