"""Wrong usages of the command, with the exit status and the important part of the one line on stderr for each.

`{name}` in the arguments stands for a path: `workdir` of a run, `searchable` of a run with a text encoder, `indexed` of
the latter with an index, `damaged` workdir, `empty` folder, `file` that is not a folder, and `configs`, a folder with
the files of `BROKEN_CONFIGS`. Commands run in a folder that contains `photo.png` and nothing else.
"""

from __future__ import annotations

import re

BROKEN_CONFIGS = {
    "syntax.py": "def get_config(:\n    pass\n",
    "function.py": "config = 3\n",
    "key.py": (
        "from caption_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.optimizer.lerning_rate = 1.0\n"
        "    return config\n"
    ),
    "none.py": "def get_config():\n    pass\n",
    "name.py": "def get_config():\n    return defualt_config()\n",
    "module.py": "import no_such_module\n",
    "value.py": (
        "from caption_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.data.batch_size = '64'\n"
        "    return config\n"
    ),
    "argument.py": "def get_config():\n    return None\n",
}

SHAPES = "train --config=shapes --workdir={empty}/run"
FOLDER = "train --config=folder --workdir={empty}/run --config.data.eval_batch_size=64"  # for 8 devices

# Command line, exit status, part of the message. Words of the command line are separated by spaces.
SUBCOMMANDS_AND_FLAGS = [
    ("", 2, "a subcommand is missing, one of train, evaluate, "),
    ("trian --config=shapes", 2, "unknown subcommand trian; did you mean train?"),
    ("photo.png", 2, "unknown subcommand photo.png; expected one of train, evaluate, "),
    ("--mode=captoin --workdir={workdir} photo.png", 2, "unknown --mode=captoin; did you mean caption?"),
    ("caption --mode=search --workdir={workdir} dog", 2, "the subcommand caption contradicts --mode=search"),
    ("--workdir={workdir} caption photo.png", 2, "train requires --config=NAME"),
    ("--epochs=3", 2, "unknown flag --epochs; did you mean the config key --config.train.epochs=3?"),
    (SHAPES + " --epochs=3", 2, "unknown flag --epochs; did you mean the config key --config.train.epochs=3?"),
    (SHAPES + " --batch-size 8", 2, "did you mean the config key --config.data.batch_size?"),
    (SHAPES + " --layers=2", 2, "--config.model.text_encoder.layers=2"),
    (SHAPES + " --dry-run", 2, "unknown flag --dry-run; did you mean --dry_run?"),
    (SHAPES + " --colour=red", 2, "unknown flag --colour; config keys are set with --config.KEY=VALUE"),
    ("caption --workdri={workdir} photo.png", 2, "unknown flag --workdri; did you mean --workdir="),
    ("caption --workdir={workdir} photo.png --top=3", 2, "caption does not use --top, a flag of search, neighbours"),
    ("--mode=caption --workdir={workdir} --dry_run photo.png", 2, "caption does not use --dry_run, a flag of train"),
    ("search --workdir={indexed} --top=0 dog", 2, "--top=0: 0 is not a positive integer"),
    ("search --workdir={indexed} --top=many dog", 2, "--top=many: the value must be an integer"),
    ("caption --workdir={workdir} --format=xml photo.png", 2, "--format=xml: the value must be one of text, jsonl"),
    ("caption --workdir={workdir} --weights=int4 photo.png", 2, "must be one of stored, float32, bfloat16, int8"),
    (
        "tune --workdir={workdir} --weights=int8",
        2,
        "tune does not use --weights, a flag of evaluate, caption, ",
    ),
    ("caption-many --workdir={workdir} --out=captions", 2, "caption-many requires images or shards: files, patterns"),
    ("caption-many --workdir={workdir} photo.png", 2, "caption-many requires --out=FOLDER, a new folder for"),
    ("caption-many --workdir={workdir} --out=captions none*.tar", 2, "no images match ['none*.tar']"),
    (
        "caption-many --workdir={workdir} --out=captions --alternatives=2 photo.png",
        1,
        "set --config.decode.method=beam --config.",
    ),
    ("export --workdir={workdir} --to=torch --weights=int8", 1, "--weights=int8 requires --to=folder"),
    ("caption --workdir={workdir} --format", 2, "Missing value for flag --format"),
    ("caption --workdir={workdir} --quiet --verbose photo.png", 2, "--quiet and --verbose exclude each other"),
    ("evaluate --workdir={workdir} photo.png", 2, "evaluate takes no arguments, but got photo.png"),
    ("train --flagfile=missing.txt", 2, "missing.txt"),
]
CONFIGS = [
    ("train", 2, "train requires --config=NAME: the path of a config file, or one of coco, "),
    ("train --workdir={workdir}", 2, "or workdir:{workdir} for that of its run"),
    ("train --config=shape", 1, "--config=shape: no such file; did you mean shapes? The packaged configs are coco, "),
    ("train --config=missing.py", 1, "--config=missing.py: no such file; the packaged configs are coco, "),
    ("train --config={empty}", 1, "is a folder; it must be a config file"),
    ("train --config={configs}/syntax.py", 1, "syntax.py, line 1: invalid syntax"),
    ("train --config={configs}/function.py", 1, "function.py has no function get_config"),
    (
        "train --config={configs}/key.py",
        1,
        "key.py, line 4: the config has no key 'lerning_rate'. Did you mean \"learning_rate\"?",
    ),
    ("train --config={configs}/none.py", 1, "none.py: get_config must return a ConfigDict, not NoneType"),
    ("train --config={configs}/name.py", 1, "name.py, line 2: NameError: name 'defualt_config' is not defined"),
    ("train --config={configs}/module.py", 1, "module.py, line 1: ModuleNotFoundError: No module named"),
    ("train --config={configs}/value.py", 1, "value.py, line 4: TypeError: "),
    (
        "train --config={configs}/argument.py:b1 --workdir={empty}/run",
        1,
        "argument.py: TypeError: get_config()",
    ),
    (SHAPES + " --config.data.bach_size=8", 2, "--config.data.bach_size: config.data has no key 'bach_size'. Did you"),
    (
        SHAPES + " --config.dta.batch_size=8",
        2,
        "config has no key 'dta'. Did you mean",
    ),
    (SHAPES + " --config.epochs=8", 2, "config has no key 'epochs'. Did you mean --config.train.epochs?"),
    (SHAPES + " --config.seed.x=8", 2, "--config.seed.x: config.seed has no keys, because its value is 0"),
    (SHAPES + " --config.data.batch_size=abc", 2, "--config.data.batch_size=abc: the value must be an integer"),
    (
        SHAPES + " --config.optimizer.learning_rate=fast",
        2,
        "--config.optimizer.learning_rate=fast: the value must be a n",
    ),
    (SHAPES + " --config.data.lowercase=maybe", 2, "--config.data.lowercase=maybe: the value must be true or false"),
    (SHAPES + " --config.data=3", 2, "--config.data=3: "),
    (SHAPES + " --config.data.batch_size", 2, "Missing value for flag --config.data.batch_size"),
    (SHAPES + " --config.train.steps=-1", 1, "config.train.steps is -1; it must be 0 "),
    (SHAPES + " --config.decode.method=bean", 1, "config.decode.method is 'bean'; it must be "),
    ("configs shape", 1, "no config 'shape'; the packaged configs are coco, "),
    ("configs shapes coco", 2, "configs takes at most the name of a config, but got shapes coco"),
]
COMBINED_MODELS = [
    ("soup {workdir} {workdir}", 2, "soup requires --workdir=FOLDER, a new folder for the average"),
    ("soup --workdir={empty}/soup", 2, "soup requires the models to average: workdirs of runs, such as runs/a runs/b"),
    ("soup --workdir={empty}/soup {workdir}", 2, "soup averages two or more models, but got {workdir}; FOLDER@all"),
    ("soup --workdir={empty}/soup --recipe=best {workdir}", 2, "--recipe=best: the value must be one of greedy, un"),
    ("soup --workdir={empty}/soup --checkpoint=last {workdir}", 2, "soup does not use --checkpoint, a flag of "),
    ("soup --workdir={workdir} {workdir} {searchable}", 1, "--workdir={workdir} already holds a run: set --workdir to"),
    ("soup --workdir={empty}/soup {workdir} {searchable}", 1, "soup averages the weights of one architecture, but "),
    ("soup --workdir={empty}/soup {workdir} missing", 1, "missing/config.json is missing: missing is not the workdir"),
    ("soup --workdir={empty}/soup {empty} {workdir}", 1, "{empty} is not the workdir of a training run"),
    ("soup --workdir={empty}/soup {workdir} {workdir}@7", 1, "no checkpoint of step 7 in {workdir}/checkpoints"),
    ("soup --workdir={empty}/soup {empty}@all {workdir}", 1, "{empty}/config.json is missing"),
    ("soup --workdir={empty}/soup {workdir} {empty}@all", 1, "{empty}@all: {empty} has no saved weights"),
    ("soup --workdir={empty}/soup {workdir} {workdir}", 1, "{workdir} and {workdir} have the same weights"),
    ("soup --workdir={empty}/soup --split=test {workdir} {searchable}", 1, "cannot choose models on the test split"),
    ("export --workdir={workdir}", 2, "export requires --to=FORMAT, one of folder"),
    ("export --workdir={workdir} --to=keras", 2, "--to=keras: the value must be one of folder, torch"),
    ("export --workdir={workdir} --to=folder --out={empty}", 1, "{empty} already exists: delete it, or write to ano"),
    ("export --workdir={damaged} --to=folder --out={empty}/new", 1, "{damaged}/config.json is damaged ("),
    ("evaluate --workdir={workdir} --recipe=uniform", 2, "evaluate does not use --recipe, a flag of soup"),
    ("evaluate --workdir={workdir} --config.decode.ensemble=missing", 1, "missing/config.json is missing: missing is"),
    (
        "caption --workdir={workdir} --config.decode.ensemble={empty} photo.png",
        1,
        "{empty} is not the workdir of a training run",
    ),
    (FOLDER + " --config.decode.ensemble={workdir}", 1, "but train uses a single model: remove the key"),
]
WORKDIRS = [
    ("index photo.png", 2, "index requires --workdir=FOLDER, the folder of a run"),
    ("evaluate --workdir=demo", 2, "evaluate writes to its workdir, so --workdir must be a folder"),
    ("export --workdir=demo --to=folder", 2, "a model given by name is exported to a folder of yours: set --out"),
    ("caption --workdir= photo.png", 2, "caption requires --workdir=FOLDER, the folder of a run"),
    (
        "caption --workdir=missing photo.png",
        1,
        "missing/config.json is missing: missing is not the workdir of a",
    ),
    ("caption --workdir={empty} photo.png", 1, "{empty} is not the workdir of a training run"),
    ("caption --workdir={damaged} photo.png", 1, "{damaged}/config.json is damaged ("),
    ("caption --workdir={file} photo.png", 1, "--workdir={file}: {file} is not a folder"),
    ("evaluate --workdir={file}/run", 1, "--workdir={file}/run: {file} is not a folder"),
    ("train --config=shapes --workdir={file}/run", 1, "--workdir={file}/run: {file} is not a folder"),
    ("train --config=workdir:{workdir}", 2, "train requires --workdir=FOLDER"),
    ("plan --topology=cpu:8", 2, "plan requires --config=NAME, or --workdir=FOLDER with the folder of a run"),
    ("search dog", 2, "search requires --workdir=FOLDER, the folder of a run"),
]
INPUTS = [
    ("caption --workdir={workdir}", 2, "caption requires images: files, patterns or folders"),
    ("caption --workdir={workdir} missing.jpg", 1, "missing.jpg: no such file"),
    ("caption --workdir={workdir} {file}", 1, "not in a supported image format"),
    ("caption --workdir={workdir} {empty}", 2, "no images match"),
    ("caption --workdir={workdir} --context=title photo.png", 1, "context"),
    ("index --workdir={searchable}", 2, "index requires image files or folders, or a split of the data with --split"),
    ("index --workdir={searchable} --split=test photo.png", 2, "index takes either files or --split"),
    ("index --workdir={searchable} none*.jpg", 1, "no images match ['none*.jpg']"),
    ("index --workdir={indexed} missing.jpg", 1, "missing.jpg: no such file"),
    ("index --workdir={workdir} photo.png", 1, "this run was trained without a joint embedding of images and texts"),
    ("search --workdir={searchable}", 2, "search requires --query or an argument"),
    ("search --workdir={searchable} --query=", 2, "search requires --query or an argument"),
    ("search --workdir={searchable} --query=dog cat", 2, "search takes one query, but got --query=dog and cat"),
    ("search --workdir={searchable} dog", 1, "there is no index in {searchable}/index. Build one with"),
    ("search --workdir={searchable} --index=missing dog", 1, "there is no index in missing. Build one with"),
    ("search --workdir={indexed} missing.jpg", 1, "missing.jpg: no such file"),
    ("search --workdir={indexed} --index={file} dog", 1, "the index must be a folder, but {file} is a file"),
    ("search --workdir={workdir} dog", 1, "this run was trained without a joint embedding of images and texts"),
    ("neighbours --workdir={indexed} --split=tset", 1, "no split 'tset'; the dataset has train (8), val (2), test (2)"),
    ("evaluate --workdir={workdir} --split=tset", 1, "no split 'tset'; the dataset has train (8), val (2), test (2)"),
    ("evaluate --workdir={workdir} --data=missing", 1, "no such folder: missing"),
    ("evaluate --workdir={workdir} --data={empty}", 1, "no caption file in {empty}; expected one of captions.csv"),
    (
        "evaluate --workdir={workdir} --images=blanc",
        2,
        "--images=blanc: the value must be one of real, blank",
    ),
    ("evaluate --workdir={workdir} --context=none --context=x", 2, "evaluate takes a single --context"),
    ("tune --workdir={searchable} --split=test", 1, "cannot tune on the test split"),
    (FOLDER, 1, "Set config.data.root to the folder of the data"),
    (
        FOLDER + " --config.data.root=missing",
        1,
        "no such folder: missing; set",
    ),
    (FOLDER + " --config.data.root={empty}", 1, "no caption file in {empty}; expected one of captions.csv"),
    ("plan --config=shapes --workdir={empty}/run", 2, "plan requires --topology"),
    ("plan --config=shapes --workdir={empty}/run --topology=v9:4x4", 1, "--topology='v9:4x4': unknown chip 'v9'"),
    ("plan --config=shapes --workdir={empty}/run --topology=cpu:1 --pairs=9", 1, "needs a measured --step_seconds"),
    ("plan --config=shapes --workdir={empty}/run --topology=v5e:4", 1, "expected a 2-dimensional slice after 'v5e:'"),
    ("prepare --out={empty}/new", 2, "prepare requires --config=NAME, which selects the data"),
    ("prepare --config=shapes", 2, "prepare requires --out=FOLDER, the folder for the shards"),
    ("prepare --config=shapes --out={workdir}", 1, "--out={workdir} is not empty and holds no prepared dataset: set"),
    ("prepare --config=shapes --out=gs://bucket/new", 1, "--out=gs://bucket/new is on a bucket, but must be a local"),
    ("prepare --config=shapes --out={empty}/new --image_format=png", 2, "the value must be one of raw, jpeg"),
    ("prepare --config=shapes --out={empty}/new --workdir={workdir}", 2, "prepare does not use --workdir, a flag of "),
    ("train --config=shapes --image_format=jpeg", 2, "train does not use --image_format, a flag of prepare"),
    (FOLDER + " --config.data.source=prepared --config.data.root={empty}", 1, "{empty}/card.json is missing: `prepare"),
    ("score", 2, "the following arguments are required: annotations, results"),
    ("score {file}", 2, "the following arguments are required: results"),
    ("score missing.json results.json", 1, "no such file: "),
    ("score {file} {file} --split=test --bootstrap", 2, "unrecognized arguments: --bootstrap"),
]
WRONG_USAGES = [*SUBCOMMANDS_AND_FLAGS, *CONFIGS, *COMBINED_MODELS, *WORKDIRS, *INPUTS]


def read_error(stderr: str) -> str:
    """Returns the only line of an error output that is not a message of the log, which starts with the time."""
    (line,) = (line for line in stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line))
    return line
