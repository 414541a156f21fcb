"""Prepared datasets: images of one size with their captions and ids, in array_record shards.

`preparation.prepare` writes a folder of these files, and the source `prepared` reads it:

    settings.json                        what determines the contents, written first
    train-00000-of-00003.array_record    the records of a shard
    train-00000-of-00003.json            its number of records, hash, ids and captions; written after the shard
    card.json                            the settings, counts, hash and skipped images, written last

A shard is complete if its JSON file exists, and a dataset if it has a card.
"""
