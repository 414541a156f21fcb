"""The loop of beam search."""

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
    """Captions of a batch of images.

    Attributes:
        tokens: ids after <s>, then pads.
        log_probs: of each token under the model, 0 at pads.
        score: of live captions the log-probability after constraints, of ended ones that over the length penalty; -inf
            for a place that holds no caption.
    """

    tokens: Int[Array, "batch rows length"]
    log_probs: Float[Array, "batch rows length"]
    score: Float[Array, "batch rows"]

    def rows(self, chosen: Int[Array, "batch chosen"]) -> Captions:
        """Those rows."""
        return Captions(*(gather_rows(array, chosen) for array in self))

    def extend(self, step: Int[Array, ""], token: jax.Array, log_prob: jax.Array, score: jax.Array) -> Captions:
        """One more token, with its log-probability and the new score."""
        return Captions(
            self.tokens.at[:, :, step].set(token), self.log_probs.at[:, :, step].set(log_prob), jnp.asarray(score)
        )


def best_of(parts: list[Captions], count: int) -> Captions:
    """The `count` best of all parts; the earlier where scores are the same."""
    joined = Captions(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))
    return joined.rows(jax.lax.top_k(joined.score, count)[1])


class _State(NamedTuple):
    step: Int[Array, ""]
    caches: tuple[Cache, ...]
    live: tuple[Captions, ...]  # of each group
    ended: tuple[Captions, ...]  # of each group
    done: Bool[Array, " batch"]


@dataclass(frozen=True)
class Search:
    """A beam search, ready to run.

    Attributes:
        predictor: gives the next token's logits.
        length: most tokens of a caption, <s> not counted.
        width: live captions of each group.
        groups: number of groups.
        keep: ended captions that each group keeps.
        penalty: divisor of a score, by length.
        diversity: cost of a token for each time that groups before have chosen it at this step.
        constraints: on log-probabilities.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id of <pad>.
    """

    predictor: Predictor
    length: int
    width: int
    groups: int
    keep: int
    penalty: Callable[[jax.Array], jax.Array]
    diversity: float | Float[Array, ""]
    constraints: tuple[Constraint, ...]
    bos_id: int
    eos_id: int
    pad_id: int

    def run(self) -> tuple[Captions, ...]:
        """Each group's best captions, best first."""
        end = jax.lax.while_loop(
            lambda state: (state.step < self.length) & ~state.done.all(), self._advance, self._start()
        )
        at_limit = end.step == self.length
        found = []
        for live, ended in zip(end.live, end.ended, strict=True):
            cut = jnp.where(at_limit, live.score / self.penalty(jnp.asarray(self.length)), -jnp.inf)
            best = best_of([ended, live._replace(score=cut)], self.keep)
            missing = jnp.isneginf(best.score)[..., None]
            tokens = jnp.where(missing, self.pad_id, best.tokens)
            found.append(Captions(tokens, jnp.where(missing, 0.0, best.log_probs), best.score))
        return tuple(found)

    def _start(self) -> _State:
        batch, beams = self.predictor.batch, self.width * self.groups
        # All beams begin alike: only the first of a group is alive, or the others would be its copies.
        score = jnp.broadcast_to(jnp.where(jnp.arange(self.width) == 0, 0.0, -jnp.inf), (batch, self.width))
        return _State(
            step=jnp.zeros((), jnp.int32),
            caches=self.predictor.start(beams, self.groups, self.length),
            live=(self._none(batch, self.width)._replace(score=score),) * self.groups,
            ended=(self._none(batch, self.keep),) * self.groups,
            done=jnp.zeros(batch, bool),
        )

    def _none(self, batch: int, rows: int) -> Captions:
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

        live, ended, parents = [], [], []
        chosen = jnp.zeros((tokens.shape[0], 1, self.predictor.vocabulary_size)) if self.groups > 1 else None
        for group in range(self.groups):
            rows = slice(group * self.width, (group + 1) * self.width)
            options = allowed[:, rows]
            if group:
                options = options - self.diversity * chosen
            now_live, now_ended, parent = self._choose(
                state.live[group], state.ended[group], options, log_probs[:, rows], state.step
            )
            live.append(now_live)
            ended.append(now_ended)
            parents.append(parent + group * self.width)
            if group + 1 < self.groups:
                newest = jax.lax.dynamic_index_in_dim(now_live.tokens, state.step, axis=2, keepdims=False)
                alive = ~jnp.isneginf(now_live.score)
                chosen = chosen.at[:, 0].set(jax.vmap(lambda c, t, n: c.at[t].add(n))(chosen[:, 0], newest, alive))
        parents = jnp.concatenate(parents, axis=1)
        return _State(
            step=state.step + 1,
            caches=tuple(cache.reorder(parents) for cache in caches),
            live=tuple(live),
            ended=tuple(ended),
            done=self._decided(live, ended, state.step + 1),
        )

    def _choose(
        self, live: Captions, ended: Captions, options: LogProbs, log_probs: LogProbs, step: Int[Array, ""]
    ) -> tuple[Captions, Captions, Int[Array, "batch width"]]:
        """The next live and ended captions of a group, and the rows that the live ones continue."""
        ending = live.score + options[..., self.eos_id]
        going_on = jnp.where(jnp.arange(options.shape[-1]) == self.eos_id, -jnp.inf, options)
        count = min(self.width, options.shape[-1])
        values, ids = self.predictor.ops.top_k(going_on, count)  # the best of all rows are among the best of each
        score, place = jax.lax.top_k((live.score[..., None] + values).reshape(len(ids), -1), self.width)
        parent = place // count
        token = jnp.take_along_axis(ids.reshape(len(ids), -1), place, axis=1)
        flat = log_probs.reshape(len(ids), -1)  # one number a row is gathered, not the row
        log_prob = jnp.take_along_axis(flat, parent * options.shape[-1] + token, axis=1)
        next_live = live.rows(parent).extend(step, token, log_prob, score)

        # A caption has ended if its end is among the best continuations of all, those that go on included.
        ahead = (score[:, None] > ending[..., None]).sum(-1) + (ending[:, None] > ending[..., None]).sum(-1)
        final = jnp.where(ahead < self.width, ending / self.penalty(step + 1), -jnp.inf)
        now_ended = live.extend(step, self.eos_id, log_probs[..., self.eos_id], final)
        return next_live, best_of([ended, now_ended], self.keep), parent

    def _decided(self, live: list[Captions], ended: list[Captions], step: Int[Array, ""]) -> Bool[Array, " batch"]:
        """Whether no live caption, however it goes on, can overtake the worst that is kept.

        Its score cannot rise and is not positive, so the largest divisor ahead gives the most it can reach.
        """
        divisor = jnp.maximum(self.penalty(step + 1), self.penalty(jnp.asarray(self.length)))
        decided = [
            (now_live.score.max(-1) / divisor <= now_ended.score.min(-1))
            for now_live, now_ended in zip(live, ended, strict=True)
        ]
        return jnp.stack(decided).all(0)
