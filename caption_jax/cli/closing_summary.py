"""The last lines of training and evaluation: why training ended, the report, and what to do next."""

from __future__ import annotations

from caption_jax.evaluation.report.html.run_facts import describe_end
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.runs.sessions import EARLY_STOPPING, LAST_STEP, read_sessions
from caption_jax.runs.workdir import read_description
from caption_jax.runtime.process import make_command
from input_pipeline.files import absolute_path
from input_pipeline.terminal_text import escape

_FEW_IMAGES = 50  # below this, the noise of CIDEr-D exceeds the differences between evaluations
_FEW_WORDS = 10


def print_end_of_training(workdir: str, scored_evaluation: ScoredEvaluation | None) -> None:
    """Prints why training ended and, if it is complete, the path of the report and the next commands.

    Args:
        workdir: workdir of the run, as on the command line.
        scored_evaluation: the evaluation of the validation split; None without one.
    """
    *_, session = read_sessions(absolute_path(workdir))
    print(f"\nWhy training ended: {describe_end(session, None, ())}")
    if scored_evaluation is not None:
        print(f"Best weights: step {scored_evaluation.protocol['step']:,}")
        for remark in describe_weaknesses(scored_evaluation, session.last_step):
            print(f"Note: {remark}")
    if session.reason not in (LAST_STEP, EARLY_STOPPING):
        return
    _print_report(scored_evaluation)
    if "test" in session.splits:
        evaluate = "evaluate on the test split", _make_command("evaluate", workdir, "--split=test")
    else:
        evaluate = "evaluate on other images with captions", _make_command("evaluate", workdir, "--data=FOLDER")
    _print_commands(
        _make_caption_command(workdir),
        evaluate,
        _make_index_command(workdir) or ("plot losses and scores", f"tensorboard --logdir={workdir}"),
    )


def describe_weaknesses(scored_evaluation: ScoredEvaluation, last_step: int | None) -> list[str]:
    """Returns reasons to doubt the best weights: they were selected on few images, or their captions hardly differ."""
    remarks = []
    images, step = len(scored_evaluation.references), scored_evaluation.protocol["step"]
    words = scored_evaluation.diversity["vocabulary"]
    if step != last_step and images < _FEW_IMAGES:
        remarks.append(
            f"these weights were selected on only {images} images, so the choice is partly chance; compare with the "
            "last ones (--checkpoint=last)"
        )
    if words < _FEW_WORDS and images >= _FEW_WORDS:
        remarks.append(
            f"the captions of {images} images consist of only {words:.0f} different words: the run was probably too "
            "short (config.train.steps)"
        )
    return remarks


def print_end_of_evaluation(workdir: str, scored_evaluation: ScoredEvaluation) -> None:
    """Prints the path of the report and the next commands; see `print_end_of_training`."""
    print()
    _print_report(scored_evaluation)
    blank = "evaluate without the images, for comparison", _make_command("evaluate", workdir, "--images=blank")
    _print_commands(_make_caption_command(workdir), _make_index_command(workdir) or blank)


def _make_caption_command(workdir: str) -> tuple[str, str]:
    return "caption images", _make_command("caption", workdir, "photo.jpg", "folder/")


def _make_index_command(workdir: str) -> tuple[str, str] | None:
    """Returns the command that indexes images for search, if the model supports it."""
    if not read_description(absolute_path(workdir)).has_joint_embedding:
        return None
    return "index images for search", _make_command("index", workdir, "folder/")


def _make_command(subcommand: str, workdir: str, *arguments: str) -> str:
    return make_command(subcommand, f"--workdir={workdir}", *arguments)


def _print_report(scored_evaluation: ScoredEvaluation | None) -> None:
    if scored_evaluation is not None and scored_evaluation.report is not None:
        print(f"Report: {escape(scored_evaluation.report)}")


def _print_commands(*commands: tuple[str, str]) -> None:
    """Prints each command on a line of its own, so that it can be copied."""
    print("\nNext commands:")
    for description, command in commands:
        print(f"  {description}:\n    {command}")
