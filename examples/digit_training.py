"""The training loop that the scripts beside it share: AdamW, one cycle, checkpoints that resume to the same numbers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from digit_strings import (
    TAKES,
    Example,
    Recording,
    Wave,
    fixed_set,
    schedule,
    training_batches,
    wer,
    word_errors,
)
from torch import Tensor, nn

REPORT, CHECK = 50, 200  # steps from one line to the next, from one validation and checkpoint to the next


def fit(
    model: nn.Module,
    corpus: Sequence[Recording],
    checkpoint: Path,
    options: argparse.Namespace,
    loss_of: Callable[[Sequence[Example]], Tensor],
    recognise: Callable[[Sequence[Wave]], Sequence[str]],
) -> float:
    """Train ``model`` in place, resuming from ``checkpoint`` if it is there; returns the seconds spent in all.

    ``options`` has ``rate``, ``steps``, ``batch``, ``seed`` and ``bf16``.
    """
    part = [r for r in corpus if r.take in TAKES["training"]]
    validation = fixed_set(corpus, "validation", options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    first, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["spent"]
        print(f"{checkpoint}: resuming at step {first}", flush=True)
    started, losses = time.monotonic(), []
    for step, examples in enumerate(training_batches(part, options.batch, options.seed, first, options.steps), first):
        if step % 8 == 0:  # dropout and masks: the same wherever training is resumed
            torch.manual_seed(options.seed * 1_000_003 + step)
        rate = options.rate * schedule(step, options.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = loss_of(examples)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        done = step + 1
        if done % REPORT == 0:
            minutes = (spent + time.monotonic() - started) / 60
            mean = np.mean(losses[-REPORT:])
            print(f"step {done}/{options.steps}  loss {mean:.3f}  rate {rate:.2e}  {minutes:.1f} min", flush=True)
        if done % CHECK == 0 or done == options.steps:
            errors = word_errors([e.text for e in validation], recognise([e.wave for e in validation]))
            print(f"step {done}  validation WER {wer(errors):.2f} %", flush=True)
            now = spent + time.monotonic() - started
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "spent": now}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return spent + time.monotonic() - started
