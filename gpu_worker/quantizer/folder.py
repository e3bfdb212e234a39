"""Makes the whole folder with 4-bit weights."""

import sys
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from gpu_worker.digests import check_digests
from gpu_worker.engines.flux_architecture import LARGE, LargeComponent
from gpu_worker.quantizer.block_file import Method, make_block_file
from gpu_worker.quantizer.report import ComponentReport, Report, report_component
from gpu_worker.quantizer.source import Source, TensorReader
from gpu_worker.quantizer.target import (
    claimed,
    copy_unchanged,
    finish,
    listed_paths,
    quantization,
    remove_strangers,
    require_space,
)
from gpu_worker.quantizer.work import Piece, pieces_of

_LOG_INTERVAL_S: Final = 30.0
"""Between lines of progress where there is no terminal."""


def quantize_folder(source: Source, target: Path, method: Method) -> Report:
    """Make `target`, or go on with it, unless `is_finished`.

    Raises:
        ModelUnusable: source or target cannot be used, or the disk is too small.
        OSError: of reading or writing.
    """
    pieces = {component: pieces_of(source, component) for component in LARGE}
    every_piece = [piece for component in LARGE for piece in pieces[component]]
    made = quantization(optimized=method.optimized)
    with claimed(target):
        require_space(target, source, every_piece)
        if source.manifest is not None:
            total_bytes = sum(entry.size_bytes for entry in source.manifest.files.values())
            with _bar("checking the source", total_bytes, "B", unit_scale=True) as bar:
                check_digests(source.folder, source.manifest, bar.update)
        copy_unchanged(target, source)
        report = Report(
            source=source.name,
            revision=source.revision,
            tool=made.tool,
            components=[
                _component(source, component, pieces[component], target, method) for component in LARGE
            ],
        )
        remove_strangers(target, every_piece)
        report.write(target)
        total_bytes = sum((target / path).stat().st_size for path in listed_paths(source, every_piece))
        with _bar("writing the manifest", total_bytes, "B", unit_scale=True) as bar:
            finish(target, source, made, every_piece, bar.update)
    return report


def _component(
    source: Source, component: LargeComponent, pieces: list[Piece], target: Path, method: Method
) -> ComponentReport:
    layers = sum(len(piece.layers) for piece in pieces)
    with TensorReader(source.files[component]) as reader, _bar(component, layers, "layer") as bar:
        layouts = [make_block_file(piece, reader, target, method, bar.update) for piece in pieces]
    return report_component(
        component,
        layouts,
        weights=sum(parameter.numel() for parameter in source.models[component].parameters()),
        size_bytes=sum((target / piece.path).stat().st_size for piece in pieces),
    )


def _bar(what: str, total: int, unit: str, **more: Any) -> Any:
    interval_s = 0.1 if sys.stderr.isatty() else _LOG_INTERVAL_S
    return tqdm(
        desc=what, total=total, unit=unit, mininterval=interval_s, maxinterval=_LOG_INTERVAL_S, **more
    )
