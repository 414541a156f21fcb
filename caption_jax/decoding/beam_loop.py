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
    """Finished or unfinished captions of a batch of images, one caption per row.

    Attributes:
        tokens: token ids after <s>, followed by padding.
        log_probs: log-probability of each token under the model, 0 at padding.
        score: log-probability after constraints, divided by the length penalty if the caption is finished; -inf for
            empty rows.
    """

    tokens: Int[Array, "batch rows length"]
    log_probs: Float[Array, "batch rows length"]
    score: Float[Array, "batch rows"]

    def select(self, indices: Int[Array, "batch selected"]) -> Captions:
        """Returns the rows of each image at `indices`."""
        return Captions(*(gather_rows(array, indices) for array in self))

    def extend(
        self,
        step: Int[Array, ""],
        token: int | Int[Array, "batch rows"],
        log_prob: Float[Array, "batch rows"],
        score: Float[Array, "batch rows"],
    ) -> Captions:
        """Returns captions with a token and its log-probability added at `step`, and with a new score."""
        return Captions(
            self.tokens.at[:, :, step].set(token), self.log_probs.at[:, :, step].set(log_prob), jnp.asarray(score)
        )


def select_best(groups: list[Captions], count: int) -> Captions:
    """Returns the `count` highest-scoring captions over all groups; ties are broken in favour of earlier captions."""
    joined = Captions(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*groups, strict=True)))
    return joined.select(jax.lax.top_k(joined.score, count)[1])


class _State(NamedTuple):
    step: Int[Array, ""]
    caches: tuple[Cache, ...]
    live: tuple[Captions, ...]  # per group
    finished: tuple[Captions, ...]  # per group
    done: Bool[Array, " batch"]


@dataclass(frozen=True)
class BeamSearch:
    """Beam search for a batch of images.

    Attributes:
        predictor: computes the logits of the next token.
        length: maximum caption length in tokens, not counting <s>.
        width: number of live captions (hypotheses) per group.
        groups: number of groups.
        candidates: number of finished captions to retain per group.
        penalty: maps the length of a caption to the divisor of its score.
        diversity: penalty on a token per hypothesis of an earlier group that chose it at the same step.
        constraints: constraints on the log-probabilities, applied in order.
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
        final = jax.lax.while_loop(
            lambda state: (state.step < self.length) & ~state.done.all(), self._advance, self._make_initial_state()
        )
        is_at_limit = final.step == self.length
        results = []
        for live, finished in zip(final.live, final.finished, strict=True):
            truncated_score = jnp.where(is_at_limit, live.score / self.penalty(jnp.asarray(self.length)), -jnp.inf)
            best = select_best([finished, live._replace(score=truncated_score)], self.candidates)
            is_empty = jnp.isneginf(best.score)[..., None]
            tokens = jnp.where(is_empty, self.pad_id, best.tokens)
            results.append(Captions(tokens, jnp.where(is_empty, 0.0, best.log_probs), best.score))
        return tuple(results)

    def _make_initial_state(self) -> _State:
        batch, beams = self.predictor.batch_size, self.width * self.groups
        # Only one beam per group is live at first. All beams start from <s>, so the others would be duplicates.
        score = jnp.broadcast_to(jnp.where(jnp.arange(self.width) == 0, 0.0, -jnp.inf), (batch, self.width))
        return _State(
            step=jnp.zeros((), jnp.int32),
            caches=self.predictor.start_caches(beams, self.groups, self.length),
            live=(self._make_empty(batch, self.width)._replace(score=score),) * self.groups,
            finished=(self._make_empty(batch, self.candidates),) * self.groups,
            done=jnp.zeros(batch, bool),
        )

    def _make_empty(self, batch: int, rows: int) -> Captions:
        shape = (batch, rows, self.length)
        tokens = jnp.full(shape, self.pad_id, jnp.int32)
        return Captions(tokens, jnp.zeros(shape), jnp.full((batch, rows), -jnp.inf))

    def _advance(self, state: _State) -> _State:
        tokens = jnp.concatenate([live.tokens for live in state.live], axis=1)
        last_tokens = jax.lax.dynamic_index_in_dim(tokens, jnp.maximum(state.step - 1, 0), axis=2, keepdims=False)
        last_tokens = jnp.where(state.step == 0, self.bos_id, last_tokens)
        logits, caches = self.predictor.step(last_tokens, state.caches)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        constrained = constrain(self.constraints, log_probs, Progress(tokens, state.step))

        live, finished, parents = [], [], []
        token_counts = jnp.zeros((tokens.shape[0], 1, self.predictor.vocabulary_size)) if self.groups > 1 else None
        for group in range(self.groups):
            rows = slice(group * self.width, (group + 1) * self.width)
            token_scores = constrained[:, rows]
            if group:
                token_scores = token_scores - self.diversity * token_counts
            group_live, group_finished, parent = self._extend_group(
                state.live[group], state.finished[group], token_scores, log_probs[:, rows], state.step
            )
            live.append(group_live)
            finished.append(group_finished)
            parents.append(parent + group * self.width)
            if group + 1 < self.groups:
                new_tokens = jax.lax.dynamic_index_in_dim(group_live.tokens, state.step, axis=2, keepdims=False)
                is_live = ~jnp.isneginf(group_live.score)
                add = jax.vmap(lambda counts, token, value: counts.at[token].add(value))
                token_counts = token_counts.at[:, 0].set(add(token_counts[:, 0], new_tokens, is_live))
        parents = jnp.concatenate(parents, axis=1)
        return _State(
            step=state.step + 1,
            caches=tuple(cache.reorder(parents) for cache in caches),
            live=tuple(live),
            finished=tuple(finished),
            done=self._is_done(live, finished, state.step + 1),
        )

    def _extend_group(
        self, live: Captions, finished: Captions, token_scores: LogProbs, log_probs: LogProbs, step: Int[Array, ""]
    ) -> tuple[Captions, Captions, Int[Array, "batch width"]]:
        """Returns the next live and finished captions of a group, and the row that each live caption extends."""
        vocabulary_size = token_scores.shape[-1]
        eos_score = live.score + token_scores[..., self.eos_id]
        non_eos_scores = jnp.where(jnp.arange(vocabulary_size) == self.eos_id, -jnp.inf, token_scores)
        count = min(self.width, vocabulary_size)
        values, ids = self.predictor.ops.top_k(non_eos_scores, count)  # contains the best extensions over all rows
        score, index = jax.lax.top_k((live.score[..., None] + values).reshape(ids.shape[0], -1), self.width)
        parent = index // count
        token = jnp.take_along_axis(ids.reshape(ids.shape[0], -1), index, axis=1)
        flat_log_probs = log_probs.reshape(ids.shape[0], -1)  # to gather one value per caption instead of whole rows
        log_prob = jnp.take_along_axis(flat_log_probs, parent * vocabulary_size + token, axis=1)
        next_live = live.select(parent).extend(step, token, log_prob, score)

        # A caption finishes if its extension by </s> ranks among the `width` best extensions of all captions.
        rank = (score[:, None] > eos_score[..., None]).sum(-1) + (eos_score[:, None] > eos_score[..., None]).sum(-1)
        final_score = jnp.where(rank < self.width, eos_score / self.penalty(step + 1), -jnp.inf)
        newly_finished = live.extend(step, self.eos_id, log_probs[..., self.eos_id], final_score)
        return next_live, select_best([finished, newly_finished], self.candidates), parent

    def _is_done(self, live: list[Captions], finished: list[Captions], step: Int[Array, ""]) -> Bool[Array, " batch"]:
        """Returns whether no live caption can overtake the worst of the retained finished captions.

        Scores of live captions are at most 0 and never increase, so the score divided by the largest remaining length
        penalty is an upper bound.
        """
        divisor = jnp.maximum(self.penalty(step + 1), self.penalty(jnp.asarray(self.length)))
        done = [
            (group_live.score.max(-1) / divisor <= group_finished.score.min(-1))
            for group_live, group_finished in zip(live, finished, strict=True)
        ]
        return jnp.stack(done).all(0)
