"""The tuning of beam search never sees the images it is judged on."""

from __future__ import annotations

from benchmarks.beam_gain import cross_tuned


def test_each_half_takes_what_is_best_on_the_other():
    words = ["red dog runs here now", "blue cat sits there still", "old man walks far away", "big bird flies up high"]
    references = {i: [caption] for i, caption in enumerate(words)}
    good_on_even = {i: words[i] if i % 2 == 0 else "nothing of the kind" for i in range(4)}
    good_on_odd = {i: words[i] if i % 2 else "nothing of the kind" for i in range(4)}
    captions, chosen, scores = cross_tuned([good_on_even, good_on_odd], references)
    assert chosen == [1, 0]
    assert set(captions.values()) == {"nothing of the kind"}
    assert list(captions) == list(references)
    assert scores[0][0] > scores[0][1] and scores[1][1] > scores[1][0]
