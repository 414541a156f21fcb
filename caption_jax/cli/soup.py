"""`--mode=soup`: averages the weights of trained models."""

from __future__ import annotations

import jax
from absl import app, flags

from caption_jax.cli.command_flags import get_context_kind, spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.evaluation.soup import check_new, make_soup
from caption_jax.evaluation.weight_averages import find_sources
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.soup_record import SoupRecord
from caption_jax.runtime.process import make_command
from caption_jax.specs.decode_summary import decode_settings
from input_pipeline.files import absolute_path
from input_pipeline.terminal_text import escape


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the average to the workdir and prints how it was chosen; returns the exit status.

    Raises:
        UsageError: there are fewer than two models.
    """
    workdir, spec = absolute_path(options.workdir), spec_from_flags(options)
    check_new(workdir)  # before any work is done
    sources = find_sources(arguments)
    if len(sources) < 2:
        raise app.UsageError(
            f"soup averages two or more models, but got {', '.join(map(str, sources)) or 'none'}; FOLDER@all names all "
            "saved weights of a run"
        )
    with display_from_flags(options) as display:
        experiment = open_experiment(absolute_path(sources[0].folder), spec, display=display)
        record = make_soup(
            experiment,
            sources,
            workdir,
            recipe=options.recipe,
            split_name=options.split,
            context=get_context_kind(options),
        )
    if jax.process_index() == 0:
        print_soup(record, options.workdir)
    return 0


def print_soup(record: SoupRecord, workdir: str) -> None:
    """Prints the scores of the models, the steps of the greedy choice, and the next command."""
    protocol = record.protocol
    print(
        f"\n{protocol['split']} split: {protocol['images']} images, {protocol['device']}; decoding: "
        f"{decode_settings(protocol['decode'])}\n"
    )
    width = max(len(escape(ingredient.name)) for ingredient in record.ingredients) + 2
    print(f"  {'model':<{width}} {'step':>9}  {record.metric:>9}")
    for ingredient in record.ingredients:
        print(f"  {escape(ingredient.name):<{width}} {ingredient.step:>9,}  {ingredient.score:9.4f}")
    if record.trials:
        print("\n  greedy choice: average of the models kept so far and")
        for trial in record.trials:
            outcome = "kept" if trial.is_kept else "left out"
            print(f"  {escape(trial.name):<{width}} {'':>9}  {trial.score:9.4f}  {outcome}")
    print(f"\n{record.recipe} average of {len(record.used)} models: {record.metric} {record.score:.4f}")
    print(f"norms: {record.norms}")
    best = max(record.ingredients, key=lambda ingredient: ingredient.score)
    if record.score < best.score:
        print(
            f"Note: {escape(best.name)} alone is better ({best.score:.4f}). Averages help only if the models have a "
            "common start and the same tokenizer; --recipe=greedy leaves out models that lower the score"
        )
    print(f"\nNext command:\n  evaluate the average:\n    {make_command('evaluate', f'--workdir={workdir}')}")
