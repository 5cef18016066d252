"""Kaldi's i-vector extractor: its files, and the options that go with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.cmvn import OPTIONS, OnlineCmvn, read_cmvn_stats
from quantasr.kaldi.matrices import unpack_symmetric
from quantasr.kaldi.options import Option, fill, parse_options, read_options
from quantasr.kaldi.stream import Reader

# What Vosk sets for all of its models.
_VOSK_MAX_COUNT = 100.0
_VOSK_MIN_ENERGY = 50.0
_FILES = {
    "lda-matrix": "final.mat",
    "global-cmvn-stats": "global_cmvn.stats",
    "cmvn-config": "online_cmvn.conf",
    "splice-config": "splice.conf",
    "diag-ubm": "final.dubm",
    "ivector-extractor": "final.ie",
}


@dataclass(frozen=True)
class IvectorOptions:
    """The options of ``ivector_extractor.conf``, with Kaldi's defaults.

    ``max_count``, in frames times ``posterior_scale``: beyond it, more frames make an estimate no surer (0: no limit).
    """

    splice_left: int = 4
    splice_right: int = 4
    online_cmvn_iextractor: bool = False
    ivector_period: int = 10
    num_gselect: int = 5
    min_post: float = 0.025
    posterior_scale: float = 0.1
    max_count: float = 0.0
    num_cg_iters: int = 15
    use_most_recent_ivector: bool = True
    greedy_ivector_extractor: bool = False
    max_remembered_frames: float = 1000.0

    def __post_init__(self) -> None:
        for name, fits, rule in (
            ("left-context and right-context", min(self.splice_left, self.splice_right) >= 0, "not negative"),
            ("ivector-period", self.ivector_period > 0, "positive"),
            ("num-gselect", self.num_gselect > 0, "positive"),
            ("min-post", 0 <= self.min_post < 0.5, "in 0 to 0.5"),
            ("posterior-scale", 0 < self.posterior_scale <= 1, "above 0 and at most 1"),
            ("max-count", self.max_count >= 0, "not negative"),
            ("max-remembered-frames", self.max_remembered_frames >= 0, "not negative"),
        ):
            if not fits:
                raise ModelLoadError(f"i-vector extractor: {name} must be {rule}")


@dataclass(frozen=True)
class IvectorExtractor:
    """Everything that turns features into i-vectors: a Gaussian mixture (UBM) and what each Gaussian says of a speaker.

    Shapes, of ``gaussians`` G, transformed features D, i-vectors S and base features B: ``lda`` ``[D, spliced (+ 1)]``,
    ``global_cmvn`` ``[2, B + 1]``, ``ubm_weights`` ``[G]``, ``ubm_means_invvars`` and ``ubm_inv_vars`` ``[G, D]``,
    ``means`` ``[G, D, S]`` (M), ``inverse_variances`` ``[G, D (D + 1) / 2]`` packed by rows (Sigma inverse). See
    Kaldi's ``ivector-extractor.h``. Raises ModelLoadError when two of them do not fit each other.
    """

    lda: NDArray[np.float32]
    global_cmvn: NDArray[np.float64]
    ubm_weights: NDArray[np.float32]
    ubm_means_invvars: NDArray[np.float32]
    ubm_inv_vars: NDArray[np.float32]
    means: NDArray[np.float32]
    inverse_variances: NDArray[np.float32]
    prior_offset: float
    options: IvectorOptions = field(default_factory=IvectorOptions)
    cmvn: OnlineCmvn = field(default_factory=OnlineCmvn)

    def __post_init__(self) -> None:
        gaussians, dim = self.ubm_means_invvars.shape
        base = self.feature_dim
        spliced = base * (self.options.splice_left + 1 + self.options.splice_right)
        for fits, message in (
            (
                self.lda.shape[1] in (spliced, spliced + 1),
                f"the matrix takes {self.lda.shape[1]} values, but {base} features of splice.conf's "
                f"{self.options.splice_left} + 1 + {self.options.splice_right} frames are {spliced}",
            ),
            (len(self.lda) == dim, f"the matrix gives {len(self.lda)} values, the UBM has {dim}"),
            (
                self.means.shape[:2] == (gaussians, dim),
                f"extractor of {list(self.means.shape)}, UBM {gaussians} x {dim}",
            ),
            (self.ubm_weights.shape == (gaussians,), f"{self.ubm_weights.size} weights of {gaussians} Gaussians"),
            (self.ubm_inv_vars.shape == (gaussians, dim), "the UBM's means and variances differ in shape"),
            (self.inverse_variances.shape == (gaussians, dim * (dim + 1) // 2), "variances and means do not fit"),
            (bool((self.ubm_inv_vars > 0).all() and (self.ubm_weights >= 0).all()), "the UBM has impossible values"),
        ):
            if not fits:
                raise ModelLoadError(f"i-vector extractor: {message}")

    @property
    def feature_dim(self) -> int:
        """Columns of the features it takes."""
        return int(self.global_cmvn.shape[1] - 1)

    @property
    def ivector_dim(self) -> int:
        """Length of an i-vector."""
        return int(self.means.shape[2])

    @cached_property
    def gconsts(self) -> NDArray[np.float32]:
        """Log-likelihood of each Gaussian at zero, weight included, ``[G]``."""
        means, inverse = self.ubm_means_invvars.astype(np.float64), self.ubm_inv_vars.astype(np.float64)
        with np.errstate(divide="ignore"):  # a weight of zero: never chosen
            logs = np.log(self.ubm_weights.astype(np.float64))
        logs += 0.5 * (np.log(inverse) - np.square(means) / inverse - np.log(2 * np.pi)).sum(axis=1)
        return logs.astype(np.float32)

    @cached_property
    def projections(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What one frame of each Gaussian adds to an estimate: Sigma^-1 M ``[G, D, S]``, and M^T Sigma^-1 M packed."""
        linear = np.empty(self.means.shape, np.float32)
        size = self.ivector_dim
        rows, columns = np.tril_indices(size)
        quadratic = np.empty((len(linear), len(rows)), np.float32)
        for i, (means, packed) in enumerate(zip(self.means, self.inverse_variances, strict=True)):
            wide = means.astype(np.float64)
            weighted = unpack_symmetric(packed.astype(np.float64)) @ wide
            linear[i] = weighted
            quadratic[i] = (wide.T @ weighted)[rows, columns]
        return linear, quadratic

    @cached_property
    def unpacking(self) -> NDArray[np.int64]:
        """Where each element of a symmetric ``[S, S]`` lies in its packed form."""
        found: NDArray[np.int64] = unpack_symmetric(np.arange(self.ivector_dim * (self.ivector_dim + 1) / 2)).astype(
            int
        )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What is no array, JSON-ready."""
        return {"prior_offset": self.prior_offset, "options": asdict(self.options), "cmvn": asdict(self.cmvn)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @classmethod
    def from_dict(cls, row: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> IvectorExtractor:
        """What ``to_dict`` and ``arrays`` gave."""
        return cls(
            **{name: arrays[name] for name in ARRAYS},
            prior_offset=float(row["prior_offset"]),
            options=IvectorOptions(**row["options"]),
            cmvn=OnlineCmvn(**row["cmvn"]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IvectorExtractor):
            return NotImplemented
        same = self.to_dict() == other.to_dict()
        return same and all(np.array_equal(mine, other.arrays()[name]) for name, mine in self.arrays().items())

    def __hash__(self) -> int:
        return hash((self.prior_offset, self.options, self.cmvn, self.means.shape))


ARRAYS = tuple(item.name for item in fields(IvectorExtractor) if item.name not in ("prior_offset", "options", "cmvn"))


def load_extractor(where: str | Path, *, max_count: float | None = None) -> IvectorExtractor:
    """The extractor of a Vosk ``ivector`` folder, a Kaldi ``extractor`` folder, or an ``ivector_extractor.conf``.

    A folder with ``splice.conf`` is Vosk's, which sets ``max_count`` to 100 and CMVN's ``min_energy`` to 50; Kaldi's
    has ``splice_opts`` and sets neither. ``max_count`` here wins over both. Raises ModelLoadError with the file on
    anything that is missing or does not fit.
    """
    where = Path(where)
    conf = next(
        (
            path
            for path in (where, where / "ivector_extractor.conf", where / "conf" / "ivector_extractor.conf")
            if path.is_file()
        ),
        None,
    )
    files, options, cmvn = _from_conf(conf) if conf else _from_folder(where)
    splicing = {"left-context": "splice_left", "right-context": "splice_right"}
    options = fill(options, _splice_options(files["splice-config"]), splicing)
    if max_count is not None:
        options = IvectorOptions(**{**asdict(options), "max_count": max_count})
    weights, means_invvars, inv_vars = read_diag_gmm(files["diag-ubm"])
    means, inverse_variances, offset = read_extractor(files["ivector-extractor"])
    lda = Reader.open(files["lda-matrix"]).read_matrix().astype(np.float32)
    _require_finite(lda, files["lda-matrix"])
    try:
        return IvectorExtractor(
            lda,
            read_cmvn_stats(files["global-cmvn-stats"]),
            weights,
            means_invvars,
            inv_vars,
            means,
            inverse_variances,
            offset,
            options,
            fill(cmvn, read_options(files["cmvn-config"]), OPTIONS),
        )
    except ModelLoadError as error:
        raise ModelLoadError(f"{where}: {error}") from error


def _from_folder(folder: Path) -> tuple[dict[str, Path], IvectorOptions, OnlineCmvn]:
    files = {name: folder / file for name, file in _FILES.items()}
    vosk = files["splice-config"].is_file()
    if not vosk:
        files["splice-config"] = folder / "splice_opts"
    for path in files.values():
        if not path.is_file():
            raise ModelLoadError(
                f"{path}: there is no such file; an i-vector extractor needs {', '.join(_FILES.values())}"
            )
    if vosk:
        return files, IvectorOptions(max_count=_VOSK_MAX_COUNT), OnlineCmvn(min_energy=_VOSK_MIN_ENERGY)
    return files, IvectorOptions(), OnlineCmvn()


def _from_conf(conf: Path) -> tuple[dict[str, Path], IvectorOptions, OnlineCmvn]:
    options = read_options(conf)
    for name in _FILES:
        if name not in options:
            raise ModelLoadError(f"{conf}: option --{name} is missing; an i-vector extractor needs it")
    files = {name: options[name].file() for name in _FILES}
    not_there = ("splice_left", "splice_right", "num_cg_iters")
    names = {item.name.replace("_", "-"): item.name for item in fields(IvectorOptions) if item.name not in not_there}
    found: IvectorOptions = fill(IvectorOptions(), {k: v for k, v in options.items() if k not in _FILES}, names)
    return files, found, OnlineCmvn()


def _splice_options(path: Path) -> dict[str, Option]:
    """``splice.conf`` has an option a line, ``splice_opts`` all of them in one."""
    return read_options(path) if path.suffix == ".conf" else parse_options(Path(path).read_text("utf-8").split(), path)


def read_diag_gmm(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """A ``final.dubm``: weights ``[G]``, means times inverse variances and inverse variances ``[G, D]``."""
    reader = Reader.open(path)
    reader.expect_token("<DiagGMM>", "<DiagGMMBegin>")
    if reader.expect_token("<GCONSTS>", "<WEIGHTS>") == "<GCONSTS>":
        reader.read_vector()  # computed anew, as Kaldi does
        reader.expect_token("<WEIGHTS>")
    weights = reader.read_vector().astype(np.float32)
    reader.expect_token("<MEANS_INVVARS>")
    means_invvars = reader.read_matrix().astype(np.float32)
    reader.expect_token("<INV_VARS>")
    inv_vars = reader.read_matrix().astype(np.float32)
    reader.expect_token("</DiagGMM>", "<DiagGMMEnd>")
    for values in (weights, means_invvars, inv_vars):
        _require_finite(values, path)
    return weights, means_invvars, inv_vars


def read_extractor(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """A ``final.ie``: M ``[G, D, S]``, packed inverse variances ``[G, D (D + 1) / 2]``, offset of the prior."""
    reader = Reader.open(path, mapped=True)
    reader.expect_token("<IvectorExtractor>")
    reader.expect_token("<w>")
    if reader.read_matrix(np.float64).size:
        raise ModelLoadError(f"{path}: its weights depend on the i-vector, which online extraction cannot do")
    reader.expect_token("<w_vec>")
    reader.read_vector(np.float64)
    reader.expect_token("<M>")
    count = reader.read_int32()
    if not 0 < count <= reader.remaining:
        reader.fail(f"{count} Gaussians cannot be")
    means = [reader.read_matrix(np.float64).astype(np.float32) for _ in range(count)]
    reader.expect_token("<SigmaInv>")
    variances = [reader.read_packed(np.float64).astype(np.float32) for _ in range(count)]
    reader.expect_token("<IvectorOffset>")
    offset = reader.read_double()
    reader.expect_token("</IvectorExtractor>")
    if len({mean.shape for mean in means}) > 1 or len({variance.shape for variance in variances}) > 1:
        raise ModelLoadError(f"{path}: its Gaussians differ in size")
    found = np.stack(means), np.stack(variances), offset
    for values in (*found[:2], np.array(offset)):
        _require_finite(values, path)
    return found


def _require_finite(values: NDArray[Any], path: str | Path) -> None:
    if not values.size or not np.isfinite(values).all():
        raise ModelLoadError(f"{path}: holds values that are not finite, or none at all")
