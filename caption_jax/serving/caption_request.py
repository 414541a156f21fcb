"""Options of a request for captions, and the programs that a server has compiled for them.

A method and a number of beams determine a program. All other options are arguments of the programs, so that requests
with different options share a batch and none of them compiles anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caption_jax.serving.refusals import OptionError

MAX_PREFIX_CHARACTERS = 200
MAX_CONTEXT_CHARACTERS = 1000  # per text
REPEATABLE = ("context",)  # options that a query or a form may contain several times


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """Options of a request; those of the server apply to values of "" and 0.

    Attributes:
        method: "greedy" or "beam".
        beams: number of beams of beam search.
        candidates: number of captions per image, at most the number of beams.
        prefix: text that the captions start with.
        context: context texts, for all images of the request.
        max_length: maximum number of tokens of a caption, including <s> and </s>.
        attention: whether to return where the decoder attended in the image for each word of the best caption.
    """

    method: str = ""
    beams: int = 0
    candidates: int = 1
    prefix: str = ""
    context: tuple[str, ...] = ()
    max_length: int = 0
    attention: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CaptionOptions:
        """Parses options, whose numbers and booleans may be strings as in a query or a form, and lists a single text.

        Raises:
            OptionError: an option does not exist, or its value has another type or is negative.
        """
        types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        return cls(**{name: _parse(name, value, types) for name, value in values.items()})


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its method, "greedy" or "beam", and its number of beams, 1 for "greedy"."""

    method: str
    beams: int = 1


@dataclasses.dataclass(frozen=True)
class CaptionRequest:
    """What a program needs to know about one image, apart from its pixels.

    Attributes:
        program: the program.
        candidates: number of captions to return.
        prefix: token ids that the caption starts with.
        context: context texts.
        max_length: maximum number of tokens, including <s> and </s>; 0 for that of the model.
        attention: whether to compute the attention for the best caption, with a program of its own.
    """

    program: Program
    candidates: int = 1
    prefix: tuple[int, ...] = ()
    context: tuple[str, ...] = ()
    max_length: int = 0
    attention: bool = False


@dataclasses.dataclass(frozen=True)
class Offer:
    """The requests that a server accepts.

    Attributes:
        default: the program of requests without a method.
        beams: the compiled numbers of beams.
        max_length: maximum number of tokens of a caption.
        encode: returns the token ids of a prefix; None if a word is not in the vocabulary.
        prefix: prefix of requests without one.
        attention: whether the attention over the image can be computed.
        max_texts: maximum number of context texts; 0 for a model without context.
    """

    default: Program
    beams: Sequence[int]
    max_length: int
    encode: Callable[[str], Sequence[int] | None]
    prefix: str = ""
    attention: bool = False
    max_texts: int = 0

    @property
    def programs(self) -> tuple[Program, ...]:
        """All programs, the default first."""
        programs = (Program("greedy"), *(Program("beam", beams) for beams in self.beams))
        return (self.default, *(program for program in programs if program != self.default))

    def resolve(self, options: CaptionOptions) -> CaptionRequest:
        """Returns the request for some options.

        Raises:
            OptionError: the options are invalid, or need a program that is not compiled.
        """
        program = self._choose_program(options)
        if not 1 <= options.candidates <= program.beams:
            raise OptionError(
                f"candidates={options.candidates}: {program.method} with {program.beams} beam(s) returns 1 to "
                f"{program.beams}"
            )
        if options.max_length and not 3 <= options.max_length <= self.max_length:
            raise OptionError(f"max_length={options.max_length}: the value must be from 3 to {self.max_length}")
        if options.attention and not self.attention:
            raise OptionError("attention=true: the decoder of this model does not attend to a grid of the image")
        prefix = self._encode_prefix(options.prefix or self.prefix, options.max_length or self.max_length)
        context = self._check_context(options.context)
        return CaptionRequest(program, options.candidates, prefix, context, options.max_length, options.attention)

    def _choose_program(self, options: CaptionOptions) -> Program:
        method = options.method or ("beam" if options.beams > 1 else self.default.method)
        if method not in ("greedy", "beam"):
            raise OptionError(f"method={method!r}: the value must be greedy or beam")
        if method == "greedy":
            if options.beams > 1:
                raise OptionError(f"beams={options.beams}: greedy decoding has one; set method=beam")
            return Program("greedy")
        if not self.beams:
            raise OptionError("method=beam: this server has compiled no beam search (--beams)")
        beams = options.beams or (self.default.beams if self.default.method == "beam" else self.beams[0])
        if beams not in self.beams:
            compiled = ", ".join(map(str, self.beams))
            raise OptionError(f"beams={beams}: this server has compiled beam search with {compiled} (--beams)")
        return Program("beam", beams)

    def _encode_prefix(self, text: str, max_length: int) -> tuple[int, ...]:
        if not text.strip():
            return ()
        if len(text) > MAX_PREFIX_CHARACTERS:
            raise OptionError(f"prefix: has {len(text)} characters, more than {MAX_PREFIX_CHARACTERS}")
        _check_characters("prefix", text)
        ids = self.encode(text)
        if ids is None:
            raise OptionError("prefix: contains a word that is not in the vocabulary of the model")
        if len(ids) > max_length - 2:
            raise OptionError(f"prefix: has {len(ids)} tokens; with this max_length, at most {max_length - 2} fit")
        return tuple(int(i) for i in ids)

    def _check_context(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Returns the texts that are not empty."""
        if texts and not self.max_texts:
            raise OptionError("context: this model was trained without context (config.model.context.max_texts)")
        if len(texts) > self.max_texts:
            raise OptionError(f"context: has {len(texts)} texts, more than {self.max_texts}")
        for text in texts:
            if len(text) > MAX_CONTEXT_CHARACTERS:
                raise OptionError(f"context: a text has {len(text)} characters, more than {MAX_CONTEXT_CHARACTERS}")
            _check_characters("context", text)
        return tuple(text for text in texts if text.strip())


def _check_characters(name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise OptionError(f"{name}: contains half of a character")


def _parse(name: str, value: Any, types: Mapping[str, type]) -> str | int | bool | tuple[str, ...]:
    if name not in types:
        raise OptionError(f"unknown option {name[:50]!r}; the options are {', '.join(types)}")
    if types[name] is str:
        if not isinstance(value, str):
            raise OptionError(f"{name}: the value must be a text")
        return value
    if types[name] is tuple:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise OptionError(f"{name}: the value must be a text or a list of texts")
        return tuple(texts)
    if types[name] is bool:
        if not isinstance(value, bool) and value not in ("true", "false"):
            raise OptionError(f"{name}: the value must be true or false")
        return value in (True, "true")
    return _parse_number(name, value)


def _parse_number(name: str, value: Any) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value, is_number = int(value), True
    if not is_number or not 0 <= value < 10**9:
        raise OptionError(f"{name}: the value must be a whole number")
    return value
