"""A recogniser of Kaldi's as it is trained: its cross-entropy branch, and the constraint on its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.model import read_model
from quantasr.kaldi.nnet3.transitions import TransitionModel
from quantasr.sources.asr_model import LatticeModel
from quantasr.sources.kaldi.build import build_network
from quantasr.sources.kaldi.folder import find_model
from quantasr.sources.kaldi.network import KaldiNetwork
from quantasr.sources.kaldi.training import constrain, keep_zeros

XENT = "output-xent"
BRANCH = "xent_branch"


@dataclass
class KaldiModel(LatticeModel):
    """A :class:`LatticeModel` of Kaldi's. ``transitions`` says what its outputs are; None of a ``.raw`` network."""

    transitions: TransitionModel | None = None
    _branch: KaldiNetwork | None = field(default=None, init=False, repr=False)

    @property
    def network(self) -> KaldiNetwork:
        """``module``, by its type."""
        assert isinstance(self.module, KaldiNetwork)
        return self.module

    @property
    def model_path(self) -> Path:
        """The file that the model was read from; ModelLoadError where it is not there any more."""
        path = find_model(Path(self.provenance["model"]))
        if path is None:
            raise ModelLoadError(f"{self.provenance['model']}: the model was read from there, and is there no more")
        return path

    def prepare_training(self) -> bool:
        """Add the cross-entropy branch to ``module``, as ``xent_branch``; False where the network has none.

        The branch has the layers of its own only; what is before them is computed once, for both outputs. Nothing but
        :meth:`train_outputs` runs it.
        """
        if BRANCH not in self.module._modules:
            self._branch = self._branch or self._make_branch()
            if self._branch is not None:
                self.module.add_module(BRANCH, self._branch.train(self.module.training))
        return BRANCH in self.module._modules

    def _make_branch(self) -> KaldiNetwork | None:
        model = read_model(self.model_path)
        if XENT not in model.network.outputs:
            return None
        main = self.network
        left, right = main.contexts
        branch = build_network(
            model.network, left, right, subsampling=main.subsampling, output=XENT, where=str(self.model_path)
        )
        shared = main.shares(branch)
        for node in shared:
            branch.forget(node)
        if not set(branch.paths).isdisjoint(main.paths):
            return None  # a layer that both read at other times could not be shared
        return branch

    def finish_training(self) -> None:
        """Take the cross-entropy branch off again, before ``module`` is exported or quantized."""
        self.module._modules.pop(BRANCH, None)
        for network in self.networks:
            keep_zeros(network)

    @property
    def networks(self) -> list[KaldiNetwork]:
        """``module``, and the cross-entropy branch if there is one."""
        return [self.network] if self._branch is None else [self.network, self._branch]

    def train_outputs(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores ``[batch, frames, pdfs]``, frame counts ``[batch]``, and the cross-entropy branch's log-posteriors.

        The last are None unless :meth:`prepare_training` found a branch.
        """
        values = self.network.values(features)
        scores, branch, xent = self.network.result(values), self._branch, None
        if branch is not None and BRANCH in self.module._modules:
            known = {node: values.of[node] for node in self.network.shares(branch)}
            xent = branch.result(branch.values(features, known))
        return scores, self.frame_counts(lengths), xent

    def constrain(self, steps: int) -> None:
        """To be called after each optimizer step, or before the next: weights that must be semi-orthogonal come closer.

        ``steps`` is how many have been taken.
        """
        for network in self.networks:
            constrain(network, steps)
