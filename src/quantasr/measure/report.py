"""Tables of results for people; every figure comes from the result objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantasr.artifact import Artifact
from quantasr.measure.audit import Audit
from quantasr.measure.bench import BenchRow
from quantasr.measure.bit_widths import BitWidths
from quantasr.measure.cells import difference_cell, megabytes, percent, plain_table, rate_cell, types_cell
from quantasr.measure.evaluate import EvalResult, Evaluation
from quantasr.measure.lm_weights import Weights, WeightSearch
from quantasr.measure.sensitivity import RULE, Part, Sensitivity
from quantasr.speech.scoring import Score


def evaluation_table(evaluation: Evaluation) -> Table:
    """Error rates with counts and intervals, RTF, and each system's difference from the first."""
    first = evaluation.results[0]
    words = first.wer.counts.reference_length
    table = plain_table(
        f"{len(first.utterances)} utterances, {words} words, {first.audio_seconds / 60:.1f} min",
        *("system", "WER [95 %]", "S", "D", "I", "CER", "RTF", "WER − first [95 %]"),
        caption="RTF: processing time ÷ audio time, lower is better. Difference: paired bootstrap, in points.",
    )
    differences = ["", *map(difference_cell, evaluation.against_first())]
    for result, difference in zip(evaluation.results, differences, strict=True):
        counts = result.wer.counts
        table.add_row(
            escape(result.system),
            rate_cell(result.wer),
            str(counts.substitutions),
            str(counts.deletions),
            str(counts.insertions),
            percent(result.cer.rate),
            f"{result.rtf:.4f}",
            difference,
        )
    return table


def bench_table(rows: Sequence[BenchRow]) -> Table:
    """Times as ratios to the first row, memory, size and int8 share."""
    timing = rows[0].timing
    table = plain_table(
        f"{timing.audio_seconds:.1f} s of audio, batch 1, {rows[0].threads} threads, "
        f"{len(timing.seconds)} turns interleaved",
        *(
            "system",
            "RTF",
            "p50",
            "p95",
            f"time ÷ {rows[0].label} [quartiles]",
            "encoder alone: RTF, ÷",
            "load",
            "peak memory",
            "size",
            "int8 MACs",
            *(["WER [95 %]"] if rows[0].wer else []),
        ),
        caption="RTF: processing time ÷ audio time, lower is better. int8 MACs: share of all multiply-accumulates, "
        "as the engine reports its kernels.",
    )
    for row in rows:
        table.add_row(
            escape(row.label),
            f"{row.timing.rtf:.4f}",
            f"{row.timing.p50 * 1e3:.1f} ms",
            f"{row.timing.p95 * 1e3:.1f} ms",
            str(row.ratio),
            f"{row.encoder.rtf:.4f}, {row.encoder_ratio.median:.3f}",
            "" if row.footprint is None else f"{row.footprint.load_seconds:.2f} s",
            "" if row.footprint is None else megabytes(row.footprint.peak_bytes),
            megabytes(row.size),
            "" if row.int8_share is None else percent(row.int8_share),
            *([rate_cell(row.wer)] if row.wer else []),
        )
    return table


def audit_table(audit: Audit) -> Table:
    """Each layer: planned, executed, share of the work, and why it stayed float."""
    whole = f"{audit.engine} ({audit.compute}): multiply-accumulates {types_cell(audit.share)}"
    table = plain_table(
        whole if len(audit.parts) == 1 else "the layers of all parts",
        *("layer", "kind", "recipe", "executed in", "share of MACs", "why float"),
        caption=f"int8: {audit.products}" if audit.products else None,
    )
    for layer in audit.layers:
        table.add_row(
            escape(layer.path),
            layer.kind,
            layer.planned,
            layer.executed,
            percent(layer.macs / max(audit.macs, 1)),
            escape(layer.reason),
        )
    return table


def native_table(engine: str, compute: str, measured: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Table:
    """Which layers run in PyTorch's own int8, which stay float and why, and how int8 is entered and left."""
    kept = [row for row in layers if "kernel" in row]
    table = plain_table(
        f"{engine}, float rest {compute}: {len(kept)} of {len(layers)} layers in int8, "
        f"{percent(measured['int8_share'])} of multiply-accumulates; int8 is entered {measured['entries']} and left "
        f"{measured['exits']} times",
        *("layers", "kind", "run as", "why float"),
        caption="milliseconds: " + ", ".join(f"{name} {value}" for name, value in measured["milliseconds"].items()),
    )
    groups = Counter((row["kind"], row.get("kernel", "float"), row.get("reason", "")) for row in layers)
    for (kind, kernel, reason), count in groups.items():
        table.add_row(str(count), kind, kernel, escape(reason))
    return table


def rounded_table(copy: Mapping[str, Any]) -> Table:
    """The weights of a Kaldi model's copy (:meth:`quantasr.pipeline_kaldi.Requantized.to_dict`), with their errors."""
    table = plain_table(
        f"{copy['path']}: {copy['recipe']}",
        *("component", "type", "shape", "bits", "scales", "mean error ÷ rms", "largest error ÷ rms"),
        caption=f"float as they were: {', '.join(copy['left_float']) or 'none'}",
    )
    for row in copy["layers"]:
        errors = (f"{row[name] / row['rms']:.2g}" if row["rms"] else "0" for name in ("mean_error", "max_error"))
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(escape(row["name"]), row["kind"], shape, str(row["bits"]), row["granularity"], *errors)
    return table


def artifact_table(artifact: Artifact) -> Table:
    """What an artifact is and the figures recorded when it was made."""
    table = Table(title=escape(str(artifact.folder)), title_justify="left", show_header=False)
    provenance, recipe = artifact.provenance, artifact.recipe
    calibration = provenance.get("calibration", {})
    rows = {
        "name": artifact.name,
        "model": f"{provenance.get('model')} ({provenance.get('architecture')}, "
        f"{provenance.get('parameters', 0):,} parameters)",
        "recipe": f"{recipe['name']}: {recipe['description']}",
        "calibrated on": f"{calibration.get('utterances')} utterances, {calibration.get('seconds')} s",
        "size": megabytes(artifact.size),
        "integers": _integers(artifact),
        "created": f"{provenance.get('created')} by quantasr {provenance.get('quantasr')}",
    }
    if "retuned" in provenance:
        tuned = provenance["retuned"]
        chosen = ", ".join(f"{name} {value}" for name, value in tuned["options"].items())
        rows["retuned"] = f"{chosen}: {tuned['before']} -> {tuned['after']} on {tuned['utterances']} utterances"
    if "time_to_float" in artifact.measured:
        measured = artifact.measured
        rows["time ÷ float graph"] = (
            f"{measured['time_to_float']:.2f} where it was made ({measured['fastest']} ÷ {measured['fastest_float']})"
        )
    for name, row in artifact.parity.items():
        rows[f"parity {name}"] = row.get("error") or (
            f"largest difference {row['largest_difference']:.2g}, "
            f"same best token in {row['same_argmax']:.2%} of {row['frames']} frames"
        )
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def _integers(artifact: Artifact) -> str:
    """What an artifact's integers need of a CPU."""
    if artifact.native:
        return f"multiplied by PyTorch ({artifact.engine})"
    if artifact.portable:
        return "right on every CPU: no sum of two products exceeds 16 bits"
    wide = artifact.integers.get("wide", [])
    what = f"{len(wide)} products of two 8-bit integers, such as {wide[0]}" if wide else "perhaps 8 bits on both sides"
    return f"{what}: fast with VNNI, computed in another way without"


def sensitivity_table(found: Sensitivity) -> Table:
    """What each part of a model does alone in int8, most harmful first, and what all of them do together."""
    scored = found.parts[0].harm.wer is not None
    timed = f", time on {found.engine} ({found.compute}), {found.audio_seconds:.1f} s" if found.engine else ""
    left_out = Counter(found.left_out.values())
    table = plain_table(
        f"{found.model}: one {found.by} in int8, {found.utterances} utterances{timed}",
        *("int8 in", "layers", "MACs", "KL", "same best"),
        *(["WER − float [95 %]", "S / D / I"] if scored else []),
        *(["time ÷ float [quartiles]"] if found.engine else []),
        "advice",
        caption=f"KL: divergence from float in nats a frame, at most {found.max_kl:g}. {RULE}"
        + "".join(f" Left out: {count} layers, {reason}." for reason, count in left_out.items()),
    )
    table.columns[-1].justify = "left"
    for part in found.parts:
        table.add_row(*_part(part, scored, bool(found.engine)), escape(part.advice))
    table.add_section()
    for part in found.totals:
        table.add_row(*_part(part, scored, bool(found.engine)), part.gain)
    return table


def _part(part: Part, scored: bool, timed: bool) -> list[str]:
    harm = part.harm
    cells = [
        escape(part.name),
        str(len(part.layers)),
        f"{100 * part.macs:.1f} %",
        f"{harm.kl:.2g}",
        percent(harm.same_argmax),
    ]
    if scored and harm.wer is not None:
        counts = harm.wer.b.counts
        cells.append(difference_cell(harm.wer))
        cells.append(f"{counts.substitutions} / {counts.deletions} / {counts.insertions}")
    if timed:
        cells.append("-" if part.time is None else escape(str(part.time)))
    return cells


def bit_widths_table(found: BitWidths) -> Table:
    """Error rate and size at each width, and the difference to the float model."""
    first, rate = found.original, found.rate_name
    other = "CER" if found.unit == "word" else "WER"
    counts = found.score(first).counts.reference_length
    units = "words" if found.unit == "word" else "characters"
    ranges = "ranges of each utterance" if found.ranges == "per_utterance" else "calibrated ranges"
    table = plain_table(
        f"{found.model}: {len(first.utterances)} utterances, {counts} {units}, "
        f"{first.audio_seconds / 60:.1f} min; {found.layers} of {found.candidates} layers quantized",
        *("bits", "quantized", "scales", f"{rate} [95 %]", "S", "D", "I", other, f"{rate} − float [95 %]"),
        *("size", "÷ float", "RTF"),
        caption=f"Activations: affine, one scale, {ranges}. Size: packed weights with their scales, and all other "
        "parameters in float32. RTF: processing time ÷ audio time; simulated widths have none (-). Difference: paired "
        "bootstrap, in points.",
    )
    for column in table.columns[1:3]:
        column.justify = "left"

    def add(bits: str, what: str, scales: str, result: EvalResult, size: int | None, rtf: str) -> None:
        score, second = found.score(result), result.cer if found.unit == "word" else result.wer
        errors = score.counts
        table.add_row(
            *(bits, escape(what), scales, rate_cell(score)),
            *map(str, (errors.substitutions, errors.deletions, errors.insertions)),
            percent(second.rate),
            "" if result is first else difference_cell(found.against_float(result)),
            "-" if size is None else megabytes(size),
            "-" if size is None else f"{size / found.size:.3f}",
            rtf,
        )

    add("32", "float", "", first, found.size, f"{first.rtf:.4f}")
    for one in found.beside:
        add("", one.result.system, "", one.result, one.size, f"{one.result.rtf:.4f}")
    for rows in found.curves().values():
        table.add_section()
        for row in rows:
            add(str(row.bits), row.quantized, row.granularity, row.result, row.size, "-")
    return table


def weights_table(found: WeightSearch) -> Table:
    """The error rate at each LM weight (rows) and word penalty (columns), and what the best pair gives."""
    grid, chosen = found.grid, found.chosen
    weights = sorted({pair.lm_weight for pair in grid.scores})
    penalties = sorted({pair.penalty for pair in grid.scores})
    rate = "WER" if found.unit == "word" else "CER"
    scored = found.score(found.result)
    low, high = scored.interval
    where = "other speech, on which they were not chosen" if found.separate else (
        "THE SAME SPEECH, on which they were chosen: on new speech they will do worse"
    )  # fmt: skip
    table = plain_table(
        f"{rate} over LM weight and word penalty ({len(next(iter(grid.scores.values())).utterances)} utterances)",
        "LM weight",
        *(f"penalty {penalty:g}" for penalty in penalties),
        caption=f"Best: {chosen}. With these, on {where}: {scored.counts}, 95 % [{100 * low:.2f}, {100 * high:.2f}]; "
        f"{difference_cell(found.comparison)} points against the search's own ({grid.own}).",
    )
    for weight in weights:
        cells = []
        for penalty in penalties:
            pair = Weights(weight, penalty)
            one = grid.scores.get(pair)
            cells.append("" if one is None else f"{'* ' if pair == chosen else ''}{percent(one.rate)}")
        table.add_row(f"{weight:g}", *cells)
    return table


def speakers_table(speakers: Mapping[str, Score]) -> Table:
    """Each speaker's error rate with its counts."""
    table = plain_table("speakers", "speaker", "utterances", "length", "error rate [95 %]", "S", "D", "I")
    for name, found in speakers.items():
        counts = found.counts
        table.add_row(
            escape(name),
            *map(str, (len(found.utterances), counts.reference_length)),
            rate_cell(found),
            *map(str, (counts.substitutions, counts.deletions, counts.insertions)),
        )
    return table
