"""Features and captions on a Ray cluster: `--engine ray`.

In: records and an encoder, or pictures and a run folder; paths that every machine of the cluster reaches.
Out: the files that one machine writes. Ray Data streams the work to actors, each of which loads the model
once; with GPUs in the cluster each actor has one, and tasks on the CPUs read ahead for it. What dies is done
again elsewhere. The process that was started by hand keeps the books: it alone holds the locks, and writes
journals and sidecars, and gives the shards their order.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from captioner.apps.cluster.ray_actors import CaptionActor, FeatureActor, read_block
from captioner.config import Config
from captioner.errors import CaptionerError, ConfigError, EncoderError, MissingExtra
from captioner.inference.caption import Alternative, Caption
from captioner.system import console

CAPTIONS_AT_A_TIME = 32  # pictures that an actor is given: a batch of the captioner
# Pictures whose folders are held and whose places are remembered at a time; for each such window the actors
# load the model anew.
WINDOW = 1_000_000


def extract_on_ray(
    records: Sequence[Any],
    encoder: Any,
    config: Config,
    *,
    address: str | None = None,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Any:
    """`feature_extraction.extract` on a cluster; the same store, the same rows.

    Args:
        records: pictures; only id and path are looked at.
        encoder: the CNN, as it is here.
        config: whose encoder it is: the actors load it from that.
        address: of the cluster; None: the one that is running here, or a new one of this machine.
        folder: of the cache, which every machine reaches.
        quiet: no bar, no words.

    Raises:
        EncoderError: on another machine the encoder has other weights, or cannot be loaded.
        CaptionerError: as `feature_extraction.extract`.
    """
    from captioner.data.feature_cache import WORKERS, Failure
    from captioner.models import feature_extraction as features
    from captioner.models.feature_extraction import shard_pictures
    from captioner.system.files import lock

    shards = features.shard_folder(encoder, folder)
    digests = features.known_digests(shards, records)
    failures: list[Any] = []
    if features.without_features(shards, records, digests):
        with lock(shards.folder), _cluster(address, quiet):
            features.repair_and_merge(shards, quiet=quiet)
            digests |= features.known_digests(shards, records)
            missing = features.without_features(shards, records, digests)
            size = shard_pictures(encoder)
            blocks = [missing[start : start + size] for start in range(0, len(missing), size)]
            place = (shards.folder / WORKERS / "ray").absolute()
            job = {"encoder": config.encoder, "seed": config.seed, "identity": shards.identity}
            with console.progress_bar(len(missing), "pictures", "features", quiet) as progress:
                for row in _stream(_rows(blocks, encoder.size), FeatureActor, {**job, "folder": str(place)}):
                    block = blocks[row["number"]]
                    for record, digest, error in zip(block, row["digests"], row["errors"], strict=True):
                        if error:
                            failures.append(Failure(record.id, record.path, error))
                        else:
                            digests[record.id] = digest
                    progress.update(len(block), **({"failed": len(failures)} if failures else {}))
            features.repair_and_merge(shards, quiet=True)
    return features.open_store(shards, digests, failures)


class RayCaptions:
    """What `job.caption_folders` needs of a captioner, computed on a cluster.

    Args:
        run: folder of the run, which every machine reaches.
        options: fields of `CaptionOptions`.
        address: as in `extract_on_ray`.
        quiet: no words.

    Raises:
        ConfigError: an option that is not for this.
    """

    def __init__(
        self, run: Path, options: Mapping[str, Any], *, address: str | None = None, quiet: bool = False
    ) -> None:
        if options.get("attention"):
            raise ConfigError("--attention is drawn where the model is: leave out --engine")
        self._job = {"run": str(run.absolute()), "options": dict(options)}
        self._address, self._quiet = address, quiet

    def __call__(self, paths: Iterable[Path]) -> Iterator[Caption]:
        """A caption each, in order."""
        paths = iter(paths)
        with _cluster(self._address, self._quiet):
            while window := [str(path) for path in islice(paths, WINDOW)]:
                yield from self._caption(window)

    def _caption(self, window: Sequence[str]) -> Iterator[Caption]:
        size = CAPTIONS_AT_A_TIME
        rows = [
            {"number": number, "paths": [str(Path(path).absolute()) for path in window[start : start + size]]}
            for number, start in enumerate(range(0, len(window), size))
        ]
        for row in _stream(rows, CaptionActor, self._job, in_order=True):
            names = window[row["number"] * size :][:size]
            yield from map(_caption_of, row["captions"], names)


def _caption_of(said: Mapping[str, Any], path: str) -> Caption:
    fields = {key: value for key, value in said.items() if value is not None}
    for name in ("words", "alternatives"):
        fields[name] = tuple(fields.get(name, ()))
    fields["alternatives"] = tuple(
        Alternative(**{**other, "words": tuple(other["words"])}) for other in fields["alternatives"]
    )
    fields["by_language"] = {
        language: _caption_of(own, own["path"]) for language, own in fields.get("by_language", {}).items()
    }
    return Caption(**{**fields, "path": path})


def _rows(blocks: Sequence[Sequence[Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "ids": [record.id for record in block],
            "paths": [str(record.path.absolute()) for record in block],
            "size": list(size),
        }
        for number, block in enumerate(blocks)
    ]


def _stream(
    rows: list[dict[str, Any]], actor: Any, job: Mapping[str, Any], *, in_order: bool = False
) -> Iterator[dict[str, Any]]:
    """What actors make of the rows, as they come; each row is a block, which can be done anew by itself."""
    ray = _ray()
    if not rows:
        return
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    _only_errors()
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = in_order
    if gpus and actor is FeatureActor:
        dataset = dataset.map(read_block, num_cpus=1)
    most = max(1, min(gpus or cpus, len(rows)))
    dataset = dataset.map(
        actor,
        fn_constructor_kwargs=dict(job),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        **({"num_gpus": 1} if gpus and actor is FeatureActor else {"num_cpus": 1}),
    )
    for row in dataset.iter_rows():
        if row.get("trouble"):
            raise EncoderError(row["trouble"])
        yield row


@contextmanager
def _cluster(address: str | None, quiet: bool) -> Iterator[None]:
    """A connection to a cluster; as it was before, afterwards."""
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    _allow_many_files()
    settings: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    try:
        ray.init(**settings, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CaptionerError(
            f"no Ray cluster can be reached at {address or 'this machine'} ({str(error).splitlines()[0]}); "
            "`ray start --head` starts one, `ray status` tells of it"
        ) from error
    nodes = sum(node["Alive"] for node in ray.nodes())
    resources = ray.cluster_resources()
    figures = [f"{int(resources.get(kind, 0))} {kind}s" for kind in ("CPU", "GPU") if resources.get(kind)]
    console.info(f"Ray cluster: {nodes} machine{'s' * (nodes != 1)}, {', '.join(figures)}", quiet=quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _only_errors() -> None:
    """Of what Ray Data says on the terminal; its log files have the rest."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)


def _allow_many_files() -> None:
    """A folder that is held takes a descriptor, and here many are held at a time."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("ray", "--engine ray") from error
    return ray
