"""Data sets of the Hugging Face hub, loaded with the ``datasets`` library."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from dfs_rl.data.layout import read_split_label, report_unused
from dfs_rl.data.source import Source, Sources
from dfs_rl.data.tables import PlacedBatch, table_source
from dfs_rl.errors import DataError

if TYPE_CHECKING:
    import datasets

_BATCH_ROWS = 1024
_PROBE_SECONDS = 10.0


def hub_sources(spec: str) -> Sources:
    """Load a data set from the hub, or offline from the cache of the ``datasets`` library.

    Args:
        spec: Hub id, ``owner/name`` or ``owner/name:config``.

    Returns:
        Train source and, if there is one, test source.

    Raises:
        DataError: If the data set is neither on the hub nor in the cache, or has no train split.
    """
    import datasets  # a slow import that only hub ids need
    import huggingface_hub

    name, _, config = spec.partition(":")
    online = not huggingface_hub.constants.HF_HUB_OFFLINE and _is_reachable(name)
    try:
        if online:
            splits = datasets.load_dataset(name, config or None)
        else:
            with _offline():
                splits = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if not online:
            raise DataError(
                f"data set {spec!r} is no existing folder, the hub cannot be reached (no network, "
                "or HF_HUB_OFFLINE is set), and it is not in the local cache."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data set {spec!r} cannot be read from the hub ({reason}).") from error
    return sources_of(spec, splits)


def sources_of(spec: str, splits: "datasets.DatasetDict") -> Sources:
    """Return the train and test sources of a loaded ``DatasetDict``.

    Args:
        spec: Hub id, for messages.
        splits: Splits as loaded by the ``datasets`` library.

    Raises:
        DataError: If there is no train split, or it has no columns of images and labels.
    """
    # Users cannot rename splits on the hub, so an exact name wins over other split words.
    named = {
        label.split: split
        for split in sorted(splits)
        if not (label := read_split_label(split)).rest
    }
    chosen = {name: name if name in splits else named.get(name) for name in ("train", "test")}
    train, test = chosen["train"], chosen["test"]
    if train is None:
        raise DataError(f"data set {spec!r} has the splits {sorted(splits)}; 'train' is needed.")
    report_unused(spec, sorted(set(splits) - set(chosen.values())))
    return Sources(
        spec, _source(spec, splits, train), None if test is None else _source(spec, splits, test)
    )


def _source(spec: str, splits: "datasets.DatasetDict", split: str) -> Source:
    from datasets.table import embed_table_storage

    dataset = splits[split]
    origin = f"{spec} {split}"

    def batches(column: str) -> Iterator[PlacedBatch]:
        first = 0
        selected = dataset.select_columns([column]).with_format("arrow")
        for table in selected.iter(batch_size=_BATCH_ROWS):
            try:
                # Some data sets store paths into the cache; embedding reads the images' bytes.
                embedded = embed_table_storage(table)
            except (OSError, ValueError) as error:
                raise DataError(f"{origin} has images that cannot be read ({error}).") from error
            for rows in embedded.to_batches():
                yield PlacedBatch(rows, origin, first)
                first += len(rows)

    return table_source(origin, dataset.features.arrow_schema, batches)


def _is_reachable(name: str) -> bool:
    """Return whether the hub answers a single request; the library retries for half a minute."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=_PROBE_SECONDS)
    except HfHubHTTPError as error:
        # Loading reports unknown, private and gated data sets; server errors count as unreachable.
        return bool(error.response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR)
    except Exception:  # noqa: BLE001 - the hub's HTTP library has changed its error classes twice
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Restrict both libraries to their cache, as HF_HUB_OFFLINE does at their import."""
    import datasets
    import huggingface_hub

    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
