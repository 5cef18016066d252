"""What a training run is told: :class:`TrainOptions`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from quantasr.errors import RecipeError, TrainingError
from quantasr.recipes.pattern import Pattern

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "exponential", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
SYNCS = ("gradients", "models")
HOW_NOT_WHAT = frozenset({"accumulate", "checkpoint_every", "keep", "report_every", "workers"})
"""Options that a resumed run may have otherwise than the run that it goes on with."""


@dataclass(frozen=True)
class TrainOptions:
    """How a model is trained. Checked when built: :class:`TrainingError` names the option.

    Length: ``steps`` of the optimizer, or ``epochs`` over the data where ``steps`` is not given.

    Batches: ``batch`` recordings a step, over all processes; each process takes its share in ``accumulate`` parts
    (more parts need less memory and give the same gradient). ``workers`` threads read and augment ahead.

    Optimizer: ``adamw`` (``betas``) or ``sgd`` (``momentum``), with ``weight_decay`` for all but biases, norms and
    quantizers' scales. The learning rate rises to ``rate`` in ``warm_up`` steps and goes by ``schedule`` to
    ``rate * final_rate`` at the end. Quantizers' learned scales take ``scale_rate`` times that rate. Gradients are
    clipped to a norm of ``clip`` (0: not).

    ``precision`` of the computing; weights stay fp32. ``freeze``: patterns of modules, as in recipes, that are not
    trained, and whose batch norms keep their statistics. The other batch norms take the statistics of each batch for
    ``freeze_norms_after`` steps, and keep them from then on (0: from the start).

    Validation every ``validate_every`` steps and at the end (0: never); ``best_by`` names the figure that decides which
    is best (``""``: the first of wer and loss that there is); after ``patience`` validations without a better one
    training ends (0: never). Checkpoints every ``checkpoint_every`` steps (0: when validating), and with every
    validation. The last ``keep`` are kept, and the best. At the end the weights are the mean of the ``average`` best
    checkpoints (without validation, of the last; 0: the weights are those of the last step).

    ``sync``: processes share ``gradients`` in every step, or, as Kaldi's parallel jobs do, train alone and average
    their ``models`` every ``sync_every`` steps.

    A line is reported every ``report_every`` steps. ``seed`` decides all that is random.
    """

    steps: int | None = None
    epochs: float = 2.0
    batch: int = 8
    accumulate: int = 1
    workers: int = 1
    optimizer: str = "adamw"
    rate: float = 5e-5
    weight_decay: float = 0.01
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "cosine"
    warm_up: int = 0
    final_rate: float = 0.01
    scale_rate: float = 1.0
    clip: float = 1.0
    precision: str = "fp32"
    freeze: tuple[str, ...] = ()
    freeze_norms_after: int = 0
    seed: int = 0
    validate_every: int = 200
    best_by: str = ""
    patience: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    average: int = 1
    sync: str = "gradients"
    sync_every: int = 100
    report_every: int = 10

    def __post_init__(self) -> None:
        self._check_types()
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("sync", SYNCS),
        ):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name} = {getattr(self, name)!r}: known are {', '.join(known)}")
        self._check_ranges()
        for pattern in self.freeze:
            try:
                Pattern(pattern)
            except RecipeError as error:
                raise TrainingError(f"freeze: {error}") from None
        if self.sync == "models" and (self.validate_every % self.sync_every or self.saved_every % self.sync_every):
            # What is validated and kept is one model: it exists only where the processes have met.
            raise TrainingError(
                f"sync_every = {self.sync_every}: validate_every and checkpoint_every must be multiples of it"
            )

    @property
    def saved_every(self) -> int:
        """Steps between checkpoints; 0: only at the end."""
        return self.checkpoint_every or self.validate_every

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * steps_per_epoch))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML; what is not set (``steps``) is left out."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], where: str = "training options") -> TrainOptions:
        """Build from a table as :meth:`to_dict` gives it; raises :class:`TrainingError` naming ``where``."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(table) - known)
        if unknown:
            raise TrainingError(f"{where}: unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        try:
            return cls(**values)
        except TrainingError as error:
            raise TrainingError(f"{where}: {error}") from None

    def _check_types(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "steps" and value is None:
                continue
            if isinstance(field.default, float) and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))  # TOML and callers write 1 for 1.0
                continue
            wanted = int if field.name == "steps" else type(field.default)
            items = value if isinstance(value, tuple) else ()
            inner = str if field.name == "freeze" else float
            if type(value) is not wanted or not all(isinstance(item, inner) for item in items):
                raise TrainingError(f"{field.name} = {value!r}: write a {_WORDS[wanted]}")
            if any(isinstance(number, float) and not math.isfinite(number) for number in (value, *items)):
                raise TrainingError(f"{field.name} = {value!r}: write a finite number")

    def _check_ranges(self) -> None:
        for name in ("steps", "batch", "accumulate", "keep", "sync_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} = {value}: must be 1 or more")
        for name in ("epochs", "rate", "scale_rate"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} = {getattr(self, name)}: must be more than 0")
        for name in _FROM_ZERO:
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} = {getattr(self, name)}: must be 0 or more")
        if not 0 <= self.momentum < 1 or len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise TrainingError(f"momentum = {self.momentum}, betas = {self.betas}: must be from 0 to below 1")
        if not 0 <= self.final_rate <= 1 or (self.schedule == "exponential" and self.final_rate == 0):
            raise TrainingError(f"final_rate = {self.final_rate}: the share of rate at the end, above 0 and up to 1")


_FROM_ZERO = (
    "workers",
    "weight_decay",
    "warm_up",
    "clip",
    "freeze_norms_after",
    "seed",
    "validate_every",
    "patience",
    "checkpoint_every",
    "average",
    "report_every",
)
_WORDS = {int: "whole number", float: "number", str: "string", tuple: "list"}
