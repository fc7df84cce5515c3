"""Named data sets as random-access sources through tensorflow-datasets (TFDS), without TensorFlow.

"digits" and "mnist5k" come with Python packages and are prepared on first use. Data sets of the TFDS catalog
("mnist", "cifar10", ...) are read where they are prepared already; only `download` goes to the network. On disk a
data set is data_dir/name[/config]/version, in array_record files. Images are uint8 as stored: see `to_unit`.
"""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dgm_jax.data.records import Source

_NAME = re.compile(r"(?P<folder>[a-z]\w*(/[\w.-]+)?)(:(?P<version>\d+\.\d+\.\d+))?", re.IGNORECASE)


def source(name: str, split: str, *, data_dir: str | os.PathLike | None = None) -> Source:
    """The records of one split, dicts with fields such as "image" and "label"; never touches the network.

    Args:
        name: "digits", "mnist5k", or a TFDS name, `name[/config][:version]`; the newest version by default.
        split: "train", "test", or a slice in TFDS's syntax such as "train[:10%]".
        data_dir: `None` is $TFDS_DATA_DIR where that is set, else dgm_jax in the user's cache directory.

    Raises:
        FileNotFoundError: where a catalog data set is not prepared; it says what to run.
        ValueError: for a split that the data set lacks, or a name that TFDS does not allow.
    """
    root = _directory(data_dir)
    builder_class = _packaged(name)
    path = _find(name, root) if builder_class is None else _prepare(builder_class, root)
    if path is None:
        raise FileNotFoundError(
            f"Expected {name!r} prepared in {str(root)!r}, as reading never goes to the network; got nothing there. "
            f'To download it, run: python -c "from dgm_jax.data import download; download({name!r}, {str(root)!r})"'
        )
    builder = _open(path)
    try:
        return builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"Expected a split of {name}, one of {sorted(builder.info.splits)}, or a slice such as 'train[:10%]'; "
            f"got {split=} ({' '.join(str(error).split())})."
        ) from error


def download(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Download and prepare a TFDS data set for `source`, where it is not there yet, and return its folder.

    This does go to the network, through TFDS, which tries for some minutes before it gives up.
    """
    root = _directory(data_dir)
    builder_class = _packaged(name)
    if builder_class is not None:
        return _prepare(builder_class, root)
    path = _find(name, root)
    if path is not None:
        _open(path)
        return path
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=root, try_gcs=False, file_format="array_record")
    if isinstance(builder, tfds.core.GeneratorBasedBuilder):
        # TFDS encodes image arrays through TensorFlow, and takes bytes as they are
        builder._generate_examples = _encoding_images(builder._generate_examples, builder.info.features)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _directory(data_dir: str | os.PathLike | None) -> Path:
    if data_dir is not None:
        return Path(data_dir).expanduser()
    if os.environ.get("TFDS_DATA_DIR"):
        return Path(os.environ["TFDS_DATA_DIR"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dgm_jax"


def _packaged(name: str) -> Any:
    """The builder class of a data set that a Python package ships, or `None`."""
    match name:
        case "digits":
            from dgm_jax.data.builders.digits import Digits

            return Digits
        case "mnist5k":
            from dgm_jax.data.builders.mnist5k import Mnist5k

            return Mnist5k
    return None


def _prepare(builder_class: Any, root: Path) -> Path:
    """Write a packaged data set once, and return its folder.

    It is written to a folder of its own and renamed, which is atomic: of several processes the first to finish
    wins, and none sees half a data set.
    """
    name = builder_class.name
    path = root / name / str(builder_class.VERSION)
    if path.exists():
        return path
    package = builder_class.PACKAGE
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"Expected {package} installed, as {name} is read from it; run: pip install 'dgm_jax[experiments]'"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=f".{name}-", dir=root)
    try:
        builder = builder_class(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
        try:
            os.rename(builder.data_dir, path)
        except OSError:
            if not path.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _find(name: str, root: Path) -> Path | None:
    """The folder of a prepared catalog data set, or `None`."""
    folder, version = _parse(name)
    found = list((root / folder).glob(f"{version or '*'}/dataset_info.json"))
    if not found and "/" not in folder:
        found = list((root / folder).glob(f"*/{version or '*'}/dataset_info.json"))
        configs = sorted({file.parent.parent.name for file in found})
        if len(configs) > 1:
            raise ValueError(f"Expected a configuration, as in '{folder}/{configs[0]}'; got {name=}, with {configs=}.")
    return max((file.parent for file in found), key=_version_key, default=None)


def _version_key(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", path.name))


def _parse(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"Expected a data set 'name', 'name/config' or 'name:1.0.0', as TFDS calls it; got {name=}.")
    return match["folder"], match["version"]


def _open(path: Path) -> Any:
    """The builder of a prepared data set, read from its folder alone."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(path)
    found = getattr(builder.info.file_format, "value", None)
    if found != "array_record":
        raise ValueError(
            f"Expected array_record files in {str(path)!r}, as others need TensorFlow to be read; got {found}. "
            "Download the data set again with dgm_jax.data.download into another data_dir."
        )
    return builder


def _encoding_images(generate: Callable[..., Any], features: Any) -> Callable[..., Any]:
    """`generate`, with each uint8 array of an image feature as PNG bytes, which lose nothing."""
    import numpy as np
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(feature: Any, value: Any) -> Any:
        if not (isinstance(feature, tfds.features.Image) and isinstance(value, np.ndarray) and value.dtype == np.uint8):
            return value
        buffer = io.BytesIO()
        Image.fromarray(value.squeeze(-1) if value.shape[-1] == 1 else value).save(buffer, format="png")
        return buffer.getvalue()

    def encoded(*args: Any, **kwargs: Any) -> Any:
        examples = generate(*args, **kwargs)
        return pairs(examples) if isinstance(examples, Iterator) else examples  # a Beam pipeline stays what it is

    def pairs(examples: Iterator) -> Iterator:
        for key, example in examples:
            yield key, {field: png(features[field], value) for field, value in example.items()}

    return encoded
