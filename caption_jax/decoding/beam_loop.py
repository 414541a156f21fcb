"""The beam search loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.decoding.constraints import Constraint, LogProbs, Progress, constrain
from caption_jax.decoding.decoded import gather_rows
from caption_jax.decoding.predictor import Predictor
from caption_jax.models.cache import Cache


class Captions(NamedTuple):
    """Finished or unfinished captions for a batch of images, one per row.

    Attributes:
        tokens: token ids after <s>, followed by padding.
        log_probs: log-probability of each token under the model, 0 at padding.
        score: log-probability after constraints, divided by the length penalty once a caption is finished; -inf for
            rows without a caption.
    """

    tokens: Int[Array, "batch rows length"]
    log_probs: Float[Array, "batch rows length"]
    score: Float[Array, "batch rows"]

    def rows(self, indices: Int[Array, "batch chosen"]) -> Captions:
        """Returns the selected rows of each image."""
        return Captions(*(gather_rows(array, indices) for array in self))

    def extend(
        self,
        step: Int[Array, ""],
        token: int | Int[Array, "batch rows"],
        log_prob: Float[Array, "batch rows"],
        score: Float[Array, "batch rows"],
    ) -> Captions:
        """Writes a token and its log-probability at `step`, and replaces the score."""
        return Captions(
            self.tokens.at[:, :, step].set(token), self.log_probs.at[:, :, step].set(log_prob), jnp.asarray(score)
        )


def best_captions(parts: list[Captions], count: int) -> Captions:
    """Returns the `count` highest-scoring captions of all parts; ties are broken in favour of the earlier one."""
    joined = Captions(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
    return joined.rows(jax.lax.top_k(joined.score, count)[1])


class _State(NamedTuple):
    step: Int[Array, ""]
    caches: tuple[Cache, ...]
    live: tuple[Captions, ...]  # per group
    finished: tuple[Captions, ...]  # per group
    done: Bool[Array, " batch"]


@dataclass(frozen=True)
class Search:
    """A beam search over a batch of images.

    Attributes:
        predictor: computes the logits of the next token.
        length: maximum caption length in tokens, not counting <s>.
        width: number of live captions (hypotheses) per group.
        groups: number of groups.
        candidates: number of finished captions kept per group.
        penalty: maps a caption length to the divisor of its score.
        diversity: penalty on a token for each time an earlier group chose it at the same step.
        constraints: applied to the log-probabilities in order.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id of <pad>.
    """

    predictor: Predictor
    length: int
    width: int
    groups: int
    candidates: int
    penalty: Callable[[jax.Array], jax.Array]
    diversity: float | Float[Array, ""]
    constraints: tuple[Constraint, ...]
    bos_id: int
    eos_id: int
    pad_id: int

    def run(self) -> tuple[Captions, ...]:
        """Returns the best captions of each group, best first."""
        end = jax.lax.while_loop(
            lambda state: (state.step < self.length) & ~state.done.all(), self._advance, self._start()
        )
        at_limit = end.step == self.length
        results = []
        for live, finished in zip(end.live, end.finished, strict=True):
            truncated_score = jnp.where(at_limit, live.score / self.penalty(jnp.asarray(self.length)), -jnp.inf)
            best = best_captions([finished, live._replace(score=truncated_score)], self.candidates)
            missing = jnp.isneginf(best.score)[..., None]
            tokens = jnp.where(missing, self.pad_id, best.tokens)
            results.append(Captions(tokens, jnp.where(missing, 0.0, best.log_probs), best.score))
        return tuple(results)

    def _start(self) -> _State:
        batch, beams = self.predictor.batch, self.width * self.groups
        # Only the first beam of each group starts out live. All beams start from <s>, so the others would duplicate it.
        score = jnp.broadcast_to(jnp.where(jnp.arange(self.width) == 0, 0.0, -jnp.inf), (batch, self.width))
        return _State(
            step=jnp.zeros((), jnp.int32),
            caches=self.predictor.start(beams, self.groups, self.length),
            live=(self._empty(batch, self.width)._replace(score=score),) * self.groups,
            finished=(self._empty(batch, self.candidates),) * self.groups,
            done=jnp.zeros(batch, bool),
        )

    def _empty(self, batch: int, rows: int) -> Captions:
        shape = (batch, rows, self.length)
        tokens = jnp.full(shape, self.pad_id, jnp.int32)
        return Captions(tokens, jnp.zeros(shape), jnp.full((batch, rows), -jnp.inf))

    def _advance(self, state: _State) -> _State:
        tokens = jnp.concatenate([live.tokens for live in state.live], axis=1)
        last = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(state.step - 1, 0), axis=2, keepdims=False)
        last = jnp.where(state.step == 0, self.bos_id, last)
        logits, caches = self.predictor.step(last, state.caches)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        allowed = constrain(self.constraints, log_probs, Progress(tokens, state.step))

        live, finished, parents = [], [], []
        times_chosen = jnp.zeros((tokens.shape[0], 1, self.predictor.vocabulary_size)) if self.groups > 1 else None
        for group in range(self.groups):
            rows = slice(group * self.width, (group + 1) * self.width)
            options = allowed[:, rows]
            if group:
                options = options - self.diversity * times_chosen
            group_live, group_finished, parent = self._choose(
                state.live[group], state.finished[group], options, log_probs[:, rows], state.step
            )
            live.append(group_live)
            finished.append(group_finished)
            parents.append(parent + group * self.width)
            if group + 1 < self.groups:
                newest = jax.lax.dynamic_index_in_dim(group_live.tokens, state.step, axis=2, keepdims=False)
                alive = ~jnp.isneginf(group_live.score)
                add = jax.vmap(lambda counts, token, value: counts.at[token].add(value))
                times_chosen = times_chosen.at[:, 0].set(add(times_chosen[:, 0], newest, alive))
        parents = jnp.concatenate(parents, axis=1)
        return _State(
            step=state.step + 1,
            caches=tuple(cache.reorder(parents) for cache in caches),
            live=tuple(live),
            finished=tuple(finished),
            done=self._is_done(live, finished, state.step + 1),
        )

    def _choose(
        self, live: Captions, finished: Captions, options: LogProbs, log_probs: LogProbs, step: Int[Array, ""]
    ) -> tuple[Captions, Captions, Int[Array, "batch width"]]:
        """Returns a group's next live and finished captions, and the row that each live caption extends."""
        eos_score = live.score + options[..., self.eos_id]
        without_eos = jnp.where(jnp.arange(options.shape[-1]) == self.eos_id, -jnp.inf, options)
        count = min(self.width, options.shape[-1])
        values, ids = self.predictor.ops.top_k(without_eos, count)  # the overall best are among the best of each row
        score, index = jax.lax.top_k((live.score[..., None] + values).reshape(len(ids), -1), self.width)
        parent = index // count
        token = jnp.take_along_axis(ids.reshape(len(ids), -1), index, axis=1)
        flat = log_probs.reshape(len(ids), -1)  # gathers one value per caption instead of whole rows
        log_prob = jnp.take_along_axis(flat, parent * options.shape[-1] + token, axis=1)
        next_live = live.rows(parent).extend(step, token, log_prob, score)

        # A caption finishes if its extension by </s> ranks among the `width` best extensions of all captions.
        better = (score[:, None] > eos_score[..., None]).sum(-1) + (eos_score[:, None] > eos_score[..., None]).sum(-1)
        final_score = jnp.where(better < self.width, eos_score / self.penalty(step + 1), -jnp.inf)
        newly_finished = live.extend(step, self.eos_id, log_probs[..., self.eos_id], final_score)
        return next_live, best_captions([finished, newly_finished], self.candidates), parent

    def _is_done(self, live: list[Captions], finished: list[Captions], step: Int[Array, ""]) -> Bool[Array, " batch"]:
        """Whether no live caption can still overtake the worst finished caption that is kept.

        Scores of live captions are at most 0 and never increase, so dividing by the largest remaining length penalty
        gives an upper bound.
        """
        divisor = jnp.maximum(self.penalty(step + 1), self.penalty(jnp.asarray(self.length)))
        done = [
            (group_live.score.max(-1) / divisor <= group_finished.score.min(-1))
            for group_live, group_finished in zip(live, finished, strict=True)
        ]
        return jnp.stack(done).all(0)
