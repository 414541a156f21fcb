# %% [markdown]
# # A first captioner
#
# Trains a small captioner of rendered scenes, captions new scenes, looks at the attention of each word, and scores the
# captions. It takes about five minutes on two cores and downloads nothing.
#
# This file is a notebook: VS Code and PyCharm open it as one, and `jupytext --to notebook first_captioner.py` converts
# it for Jupyter. It also runs as a script, which writes the figures to the working directory:
#
#     python docs/notebooks/first_captioner.py

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import caption_jax
from caption_jax.config_files import load_config
from caption_jax.evaluation.report.summary_cards import attention_card
from caption_jax.evaluation.word_attention import teacher_forced_attention
from caption_jax.inference.image_attention import attention_per_word
from caption_jax.metrics import score_images
from caption_jax.runs.loading import read_model
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate
from input_pipeline.sources import open_splits

WORKDIR = "runs/notebook"
STEPS = int(os.environ.get("STEPS", "600"))

# %% [markdown]
# ## Train
#
# A config is a `ConfigDict` from a file in `configs/`. It is validated once, as a `RunSpec`, and the rest of the code
# uses only the spec. If `WORKDIR` already contains this run, training resumes.

# %%
config = load_config("shapes")
with config.unlocked():
    config.train.steps = STEPS
    config.train.epochs = 0
    config.train.eval_every = max(STEPS // 3, 1)
    config.optimizer.warmup_steps = -1  # a tenth of the steps
    config.optimizer.ema = -1.0  # fits the number of steps
spec = RunSpec.from_config(config)
evaluation = train_and_evaluate(spec, WORKDIR)
print(evaluation.metrics)

# %% [markdown]
# ## Caption new scenes
#
# `caption` takes paths, bytes, files, PIL images and arrays.

# %%
captioner = caption_jax.load(WORKDIR)
print(captioner)
records = open_splits(spec.data)["test"].records[:6]
captions = captioner.caption([record.source() for record in records])

model = read_model(WORKDIR)
description = model.description  # everything about the model except its weights
pixels = np.stack([description.preprocessing.load(record.source(), name=record.name) for record in records])
figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
for axis, image, caption in zip(axes.flat, pixels, captions, strict=True):
    axis.imshow(image)
    axis.set_title(caption.text, fontsize=8, wrap=True)
    axis.axis("off")
figure.savefig("captions.png")

# %% [markdown]
# ## Attention
#
# Where the decoder looks when it predicts each word of the first caption: the mean over layers and heads of its
# cross-attention to the grid of image features.

# %%
vocabulary = description.vocabulary
tokens = vocabulary.encode(captions[0].text, spec.data.max_length)[None, 1:]
attention = teacher_forced_attention(description, model.weights.variables, pixels[:1], tokens)
words, attention_of_words = attention_per_word(vocabulary, tokens[0], attention[0])
plt.imsave("attention.png", attention_card(pixels[0], words, attention_of_words))

# %% [markdown]
# ## Score
#
# Scores per image show which captions are wrong. CIDEr-D weights the words of a caption by how rare they are among the
# captions of the other images, so it requires the references of several images.

# %%
references = {record.image_id: list(record.captions) for record in records}
candidates = {record.image_id: caption.text for record, caption in zip(records, captions, strict=True)}
print(caption_jax.score(references, candidates))
scores = score_images(references, candidates)
for image_id, cider_d in zip(scores.image_ids, scores.values["CIDEr-D"], strict=True):
    print(f"scene {image_id}: CIDEr-D {cider_d:.2f}, {candidates[image_id]}")
