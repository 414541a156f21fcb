"""The model card of an exported model: README.md with the front matter of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from caption_jax.export.card_facts import EvaluationFacts, RunFacts
from caption_jax.runs.loading import Model
from caption_jax.specs import RunSpec
from caption_jax.specs.decode_summary import decode_settings

_LICENCE = "TO BE CHOSEN BY THE OWNER OF THE MODEL"
_LIMITS = """\
- The model describes images like those that it was trained on, in the words of their captions. On other images it still
  writes a fluent sentence, which may be wrong, and nothing in the sentence shows that.
- It repeats the errors, omissions and prejudices of the training captions, for example about people.
- The log-probability of a caption is not the probability that the caption is true.
- Scores compare captions with those of people; a high score does not mean that a caption is correct. They hold for the
  stated images, and the intervals cover only the choice of those images.
- The image encoder may have been pretrained on other images, which are not listed here.
"""


def write_card(model: Model, facts: RunFacts, usage: str, library: str) -> str:
    """Writes a model card.

    Args:
        model: the model, with the decoding settings of the export.
        facts: facts about its run.
        usage: how to caption an image, in Markdown.
        library: the library that loads the model, as the Hub names it.

    Returns:
        The content of README.md.
    """
    spec = model.description.spec
    sections = {
        "Use": usage,
        "Purpose": _describe_purpose(model),
        "Training data": _describe_data(facts),
        "Evaluation": _describe_evaluations(facts),
        "Limits": _LIMITS,
        "Licence": f"{_LICENCE}. Choose one that the training data, their captions and the pretrained weights permit, "
        "and set it here and in `license` at the top of this file. Without a licence, nobody else may use the model.",
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    return f"{_make_front_matter(facts, spec, library)}\n# {facts.name}\n\n{_describe_model(model, facts)}\n\n{body}\n"


def _make_front_matter(facts: RunFacts, spec: RunSpec, library: str) -> str:
    """Returns the YAML block that the Hub reads. JSON strings are valid YAML."""
    tags = json.dumps(["image-captioning", *dict.fromkeys([library, "caption-jax"])])
    lines = [
        "---",
        "# The owner of the model must choose the licence, with its identifier on the Hub or as `other`.",
        "license: other",
        f"license_name: {json.dumps(_LICENCE.lower().replace(' ', '-'))}",
        f"library_name: {json.dumps(library)}",
        "pipeline_tag: image-to-text",
        f"tags: {tags}",
    ]
    if facts.evaluations:
        lines += ["model-index:", f"- name: {json.dumps(facts.name)}", "  results:"]
    for evaluation in facts.evaluations:
        lines += _make_result(evaluation, facts, spec)
    return "\n".join([*lines, "---", ""])


def _make_result(evaluation: EvaluationFacts, facts: RunFacts, spec: RunSpec) -> list[str]:
    dataset = evaluation.protocol.get("data") or facts.dataset
    lines = [
        "  - task:",
        "      type: image-to-text",
        "    dataset:",
        f"      name: {json.dumps(str(dataset))}",
        f"      type: {json.dumps(spec.data.source)}",
        f"      split: {json.dumps(evaluation.split)}",
        "    metrics:",
    ]
    for name, value in evaluation.metrics.items():
        lines += [f"    - type: {json.dumps(name)}", f"      name: {json.dumps(name)}", f"      value: {value:.6g}"]
    return lines


def _describe_model(model: Model, facts: RunFacts) -> str:
    spec, settings = model.description.spec, model.description.model_settings
    encoder, decoder = spec.model.encoder, spec.model.decoder
    variant = getattr(encoder, "variant", "") or getattr(encoder, "size", "")
    origin = f", {facts.soup}" if facts.soup else ""
    return (
        f"A model that describes images in one sentence, exported at step {model.weights.step:,}{origin}: an image "
        f"encoder ({type(encoder).__name__.removesuffix('Backbone')} {variant}, {spec.data.image_size} pixels), and a "
        f"transformer decoder of {decoder.layers} layers and width {decoder.width} with "
        f"{settings.vocabulary_size:,} tokens. Captions have at most {settings.max_length} tokens."
    )


def _describe_purpose(model: Model) -> str:
    description = model.description
    spec = description.spec
    purposes = ["to write captions like those of the training data"] if spec.objective.caption_weight else []
    if description.has_joint_embedding:
        purposes.append("to find images by text")
    if spec.has_context:
        purposes.append(f"to use up to {spec.model.context.max_texts} texts about an image as context")
    if spec.objective.terms:
        purposes.append(f"on the additional objectives {', '.join(spec.objective.terms)}")
    return (
        f"Trained {'; '.join(purposes)}. It is meant for images like the training images. It is not meant for "
        "decisions about people, or where a wrong description could do harm and nobody checks it."
    )


def _describe_data(facts: RunFacts) -> str:
    lines = [f"Source: {facts.dataset}."]
    if not facts.splits:
        return f"{lines[0]} The numbers of images and captions are not recorded in the folder that was exported."
    lines += ["", "| split | images | captions |", "| --- | --- | --- |"]
    lines += [
        f"| {name} | {_count(split, 'images')} | {_count(split, 'captions')} |" for name, split in facts.splits.items()
    ]
    return "\n".join(lines)


def _count(split: Mapping[str, int], key: str) -> str:
    return f"{split[key]:,}" if key in split else "not recorded"


def _describe_evaluations(facts: RunFacts) -> str:
    if not facts.evaluations:
        return "No scores of these weights are recorded: run `caption-jax evaluate` in the workdir, then export again."
    return "\n\n".join("\n".join(_describe_evaluation(evaluation)) for evaluation in facts.evaluations)


def _describe_evaluation(evaluation: EvaluationFacts) -> Iterator[str]:
    protocol = evaluation.protocol
    yield f"### {evaluation.split}"
    yield ""
    yield "| metric | value | 95 % interval |"
    yield "| --- | --- | --- |"
    for name, value in evaluation.metrics.items():
        interval = evaluation.intervals.get(name)
        bounds = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        yield f"| {name} | {value:.4f} | {bounds} |"
    yield ""
    yield f"Protocol: {_describe_protocol(protocol)}."


def _describe_protocol(protocol: Mapping[str, Any]) -> str:
    captions = f" with {protocol['captions']:,} captions" if "captions" in protocol else ""
    parts = [f"{protocol['images']:,} images{captions}", f"step {protocol['step']:,}"]
    if protocol.get("unreadable_images"):
        parts.append(f"{protocol['unreadable_images']:,} unreadable images")
    parts += [
        f"{key} {protocol[key]}"
        for key in ("context", "weights", "tokenization", "intervals", "device")
        if key in protocol
    ]
    return "; ".join([*parts, f"decoding {decode_settings(protocol['decode'])}"])
