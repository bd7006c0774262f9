"""Data sets that lie in no file of ours: on the hub, or behind an installed plug-in. Streamed; no Arrow cache is written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from fedpref.data.files import BATCH, JsonRows, Table, open_table, reason_of
from fedpref.data.schema import HUB, PLUGIN, DatasetSpec
from fedpref.data.spec import call_plugin
from fedpref.errors import BrokenFileError, DatasetError, NoNetworkError


@contextlib.contextmanager
def open_source(spec: DatasetSpec) -> Iterator[Table]:
    """Open a data set that is not local, see ``DatasetSpec.is_local``.

    Raises:
        NoNetworkError: the hub cannot be reached.
        DatasetError: no such data set, or a plug-in that fails.
    """
    if spec.source.startswith(HUB):
        with tempfile.TemporaryDirectory(prefix="fedpref-hub-") as scratch, _hub(spec, scratch) as table:
            yield table
        return
    made = call_plugin(spec.source.removeprefix(PLUGIN))
    if isinstance(made, DatasetSpec):
        with open_table(made, made.path) as table:
            yield table
        return
    yield JsonRows(_rows(made), spec.name)


@contextlib.contextmanager
def _hub(spec: DatasetSpec, scratch: str) -> Iterator[Table]:
    import datasets

    name = spec.source.removeprefix(HUB)
    try:
        try:
            stream = datasets.load_dataset(
                name, spec.config, split=spec.split, revision=spec.revision, streaming=True, cache_dir=scratch
            )
        except ValueError as error:  # an unknown configuration or split; the message names those that exist
            raise DatasetError(
                f"{spec.name}: is not on the hub as described.", str(error)[:200], "Check `config` and `split`."
            ) from None
        yield JsonRows(_rows(stream), name)
    except datasets.exceptions.DatasetNotFoundError:
        raise DatasetError(
            f"The hub has no data set {name!r} that you may read.",
            "The name, the revision or your access token is wrong.",
            "Check `source` and `revision`.",
        ) from None
    except OSError as error:
        raise NoNetworkError(
            f"{spec.name}: the hub cannot be reached.",
            f"{type(error).__name__} for {name}.",
            f"Fetch the file where there is a network and name it: {spec.name}@FILE.",
        ) from None
    except ValueError as error:
        raise BrokenFileError(
            f"{spec.name}: a file of it on the hub is broken.", reason_of(error), "Check it there, or use a copy."
        ) from None


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a ``Dataset`` or ``IterableDataset``, drawn batch by batch."""
    for batch in dataset.iter(batch_size=BATCH):
        names = list(batch)
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(names, values, strict=True))
