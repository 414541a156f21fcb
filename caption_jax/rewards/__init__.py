"""Caption metrics on the device: scores of token ids inside a jitted function, without transfers to the host.

`build_reward_tables` computes the tables of a run once, on the host. In the jitted step, `find_words` converts token
ids to keys of PTB words, and `cider_d`, `bleu_4` and `rouge_l` score them against references, which are stored captions
(`ReferenceTable.select`) or other candidates. The results equal those of `caption_jax.metrics`, except for captions
whose words the tables do not find exactly; `build_reward_tables` measures how many there are.
"""
