"""Token patterns of the PTB tokenizer, one rule per kind of token.

The rules were derived from the output of the reference tokenizer, and the tests compare both tokenizers. At each
position of a line, the longest match is used. If several rules have matches of that length, the first one is used, so
the order matters only for patterns that can match the same text. In a pattern with a group named `token`, the group is
the token, and the rest of the match is lookahead, which counts towards the length of the match.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from caption_jax.metrics.ptb.characters import LETTERS, MARKS

_ACCENT = "&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = f"(?:[{LETTERS}{MARKS}\u00ad]|{_ACCENT})"
_LETTER_FIRST = f"[{LETTERS}{MARKS}\u00ad&]"
_ALPHANUMERIC = f"[{LETTERS}\\d]"
_LETTER_OR_DIGIT = f"(?:[{LETTERS}{MARKS}\u00ad\\d]|{_ACCENT})"
_DASH = "[-\u058a\u2010\u2011]"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_APOSTROPHE = "(?:['’\x92]|&apos;)"
_APOSTROPHE_LIKE = "(?:['’\x92`‘‛\x91]|&apos;)"

# Words joined by hyphens or underscores; a part may have a prefix, as in d'Artagnan, l'eau and O'Neil.
_PART = f"(?:[dDoOlL]{_APOSTROPHE_LIKE}{_ALPHANUMERIC}{{2,}}|{_ALPHANUMERIC}+)"
_COMPOUND = f"{_PART}(?:{_HYPHEN}{_PART})*"
_SIMPLE_WORD = f"{_LETTER}{_LETTER_OR_DIGIT}*"
_DOTTED = f"{_SIMPLE_WORD}(?:[.!?]{_SIMPLE_WORD})+"
_DOTTED_COMPOUND = f"[A-Za-z0-9][A-Za-z0-9.,]*(?:{_DASH}(?:(?:[A-Za-z]\\.){{2,}}|[A-Za-z0-9]+))+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_NUMBER = r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)"

_WHITESPACE = r" \t\n\r\f\v"
_NOT_IN_URL = rf"{_WHITESPACE}\"(){{}}<>|"
_NOT_IN_MAIL = rf"{_NOT_IN_URL}\u00a0"
_PATH = rf"(?:/[^{_WHITESPACE}\"()<>|]+[^{_NOT_IN_URL}.!?,\-])?"

# Abbreviations keep their period. The following can also end a sentence.
_FINAL_ABBREVIATIONS = (
    "al ala apr ariz assn asst aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec dept esq est etc "
    "ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont natl neb nev "
    "nov oct okla penn plc pp?t[ey]s? rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed "
    "wis wisc wyo ph\\.d ed\\.d"
)
# The following precede a name or occur inside a sentence.
_OTHER_ABBREVIATIONS = (
    "adj adm adv alex assoc atty ave brig capt cf cie cmdr col cpl det dr drs elec ens ft gen gov govs hon "
    "insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg pfc ph pres prof pvt rep reps rev "
    "sen sens sfc sgt spc st ste supt treas vs wm"
)
_CAPITALISED_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
# These words start a new sentence if they are capitalised and follow "plan b.", so the period is a separate token.
_SENTENCE_STARTS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more "
    "now once one other our she since so some such that the their then there these they this we what when "
    "while yet you mr\\. ms\\."
)
_NUMBER_ABBREVIATIONS = "art ca figs? nos? op pp prop"
_FILE_ENDINGS = (
    "bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py sql "
    "tar txt wav x xml zip"
)


class Rule(NamedTuple):
    """A tokenization rule.

    Attributes:
        kind: kind of token, which determines how its text is normalised; see `tokens.py`.
        first: matches the first character of the token. The rule is skipped at all other positions.
        pattern: matches the token.
    """

    kind: str
    first: re.Pattern[str]
    pattern: re.Pattern[str]


def _any_of(patterns: str) -> str:
    return "(?:" + "|".join(patterns.split()) + ")"


def _rule(kind: str, first: str, pattern: str, *, ignore_case: bool = False) -> Rule:
    return Rule(kind, re.compile(first), re.compile(pattern, re.IGNORECASE | re.ASCII if ignore_case else 0))


def _look_ahead(token: str, lookahead: str) -> str:
    return f"(?P<token>{token}){lookahead}"


_STARTS = _any_of(f"{_SENTENCE_STARTS.title()} {_SENTENCE_STARTS.upper()}")
_EYES = r"['^x=~<>\-]"

RULES: tuple[Rule, ...] = (
    # Words that are split in two. The second part is tokenized separately.
    _rule("word", "[cC]", _look_ahead("can", "not"), ignore_case=True),
    _rule("word", "[gGwW]", _look_ahead("gon|wan", "na"), ignore_case=True),
    _rule("word", "[gG]", _look_ahead("got", "ta"), ignore_case=True),
    _rule("word", "[lLgG]", _look_ahead("lem|gim", "me"), ignore_case=True),
    _rule("word", "'", _look_ahead("'t", "(?:is|was)"), ignore_case=True),
    # Contractions.
    _rule("word", "[A-Za-z]", _look_ahead("[A-Za-z]*[A-MO-Za-mo-z]", f"[nN]{_APOSTROPHE_LIKE}[tT]")),
    _rule("contraction", "[nN]", f"n{_APOSTROPHE_LIKE}t", ignore_case=True),
    _rule("word", _LETTER_FIRST, _look_ahead(f"{_LETTER}+", "['’\x92](?:[msd]|re|ve|ll)"), ignore_case=True),
    _rule(
        "contraction",
        "['’\x92&]",
        r"'(?:[msd]|re|ve|ll)(?![A-Za-z])|(?:[’\x92]|&apos;)(?:[msd]|re|ve|ll)",
        ignore_case=True,
    ),
    _rule("word", "['’\x92&]", rf"{_APOSTROPHE}(?:em|till?|cause)", ignore_case=True),
    _rule("word", "['’\x92&]", f"{_APOSTROPHE}n{_APOSTROPHE}|[’\x92]n|'n(?=\\s)", ignore_case=True),
    _rule("word", "['’\x92&]", rf"{_APOSTROPHE}(?:[2-9]0s|\d\d(?=\s))", ignore_case=True),
    # Words with an inner, leading or trailing apostrophe.
    _rule("word", "[djlyDJLY]", f"[djl]{_APOSTROPHE}|y{_APOSTROPHE}(?={_LETTER})", ignore_case=True),
    _rule("word", "[oOsS]", f"(?:ol|somethin){_APOSTROPHE}", ignore_case=True),
    _rule("word", "[cClLsSeEnN]", "c'mon|e'er|li'l|cap['’]n|s'mores|ev'ry|nor'easter", ignore_case=True),
    _rule("word", "[A-Zn]", f"[A-HJ-XZn]{_APOSTROPHE_LIKE}{_LETTER}{{2,}}"),
    _rule("word", _LETTER_FIRST, f"{_LETTER}+[aeiouyAEIOUY]{_APOSTROPHE_LIKE}[aeiouA-Z]{_LETTER}*"),
    _rule("word", "[oO]", f"o{_APOSTROPHE_LIKE}o", ignore_case=True),
    # Words, numbers and combinations of both.
    _rule("word", _LETTER_FIRST, _SIMPLE_WORD),
    _rule("word", _ALPHANUMERIC, _COMPOUND),
    _rule("word", _LETTER_FIRST, _DOTTED),
    _rule("word", "[A-Za-z]", _ACRONYM + r"|[A-Za-z]\."),
    _rule("word", "[A-Za-z]", _look_ahead("[A-Za-z]", rf"\.[\s\u00a0]+(?:{_STARTS}|</?[A-Za-z][\w:.-]*>)[\s\u00a0]")),
    _rule("word", "[A-Za-z]", _look_ahead(f"(?!P?PT)(?i:{_any_of(_FINAL_ABBREVIATIONS)})\\.", r"[\s\S]{0,2}")),
    _rule("word", "[A-Za-z]", f"(?!MFG|MTG)(?i:{_any_of(_OTHER_ABBREVIATIONS)})\\."),
    _rule("word", "[ADILMOPTW]", _look_ahead(f"{_any_of(_CAPITALISED_STATES)}\\.", r"[\s\S]{0,2}")),
    _rule(
        "word",
        "[acfnopACFNOP]",
        _look_ahead(f"{_any_of(_NUMBER_ABBREVIATIONS)}\\.", r"[\s\u00a0]?\d"),
        ignore_case=True,
    ),
    _rule(
        "word",
        f"{_ALPHANUMERIC}|{_LETTER_FIRST}",
        _look_ahead(f"(?:{_SIMPLE_WORD}|{_COMPOUND}|{_DOTTED}|{_DOTTED_COMPOUND})\\.", "[,;:\u3001]"),
    ),
    _rule("word", "[A-Za-z0-9]", _DOTTED_COMPOUND),
    _rule("word", "[A-Za-z0-9]", r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule("ampersand", "[A-Z]", r"[A-Z]+(?:(?:\+|&(?:[aA][mM][pP];)?)[A-Z]+)+"),
    _rule("word", "[cCfF]", r"[cC]\+\+|[cCfF]#"),
    _rule("word", "[A-Z]", r"[A-Z]+\$"),
    _rule("number", r"[-+.,:\d]", _NUMBER),
    _rule("number", r"\d", r"(?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4}"),
    _rule("number", r"\d", r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(
        "number",
        r"[(+\d]",
        r"(?:\(\d{2,3}\)[ \u00a0]?|\+{0,2}(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5}",
    ),
    # Email addresses, URLs, markup, emoticons.
    _rule(
        "word",
        "[<A-Za-z0-9]",
        rf"<?[A-Za-z0-9][^{_NOT_IN_MAIL}]*@(?:[^{_NOT_IN_MAIL}.]+\.)*[^{_NOT_IN_MAIL}.]+>?",
    ),
    _rule("word", "[hH]", rf"https?://[^{_NOT_IN_URL}]+[^{_NOT_IN_URL}.!?,\-]", ignore_case=True),
    _rule("word", "[wW]", rf"www\.(?:[^{_NOT_IN_URL}.!?,]+\.)+[A-Za-z]{{2,4}}{_PATH}", ignore_case=True),
    _rule("word", r"[^\"(){}|'`!$,-_]", rf"(?:[^{_WHITESPACE}\"(){{}}|'`!$,-_]+\.)+(?i:com|net|org|edu){_PATH}"),
    _rule(
        "word",
        _ALPHANUMERIC,
        _look_ahead(rf"{_ALPHANUMERIC}+(?:\.{_ALPHANUMERIC}+)*\.{_any_of(_FILE_ENDINGS)}", r"(?=[\s.?!,])"),
        ignore_case=True,
    ),
    _rule("word", "[@#]", rf"@[A-Za-z_][A-Za-z0-9_]*|#{_LETTER}+"),
    _rule("markup", "<", r"<[!?][A-Za-z-][^>\n]*>"),
    _rule(
        "markup",
        "<",
        r"<(?:/[A-Za-z][A-Za-z0-9_:.-]*[ \t]*|[A-Za-z][A-Za-z0-9_:.-]*"
        r"(?:[ \t]+[A-Za-z][A-Za-z0-9_:.-]*(?:[ \t]*=[ \t]*(?:'[^'\n]*'|\"[^\"\n]*\"))?)*[ \t]*/?[ \t]*)>",
    ),
    _rule("emoticon", "[<>:;=]", r"[<>]?[:;=][-'*o]?[()DOPdp@|\[\]\\{](?![A-Za-z0-9])"),
    _rule("emoticon", _EYES, rf"{_EYES}_{_EYES}"),
    _rule("emoticon", r"\(", rf"\((?:{_EYES}[_.]?{_EYES}|['^x=~<>]-[<>=^`x~])\)"),
    # Entities, quotes and punctuation.
    _rule("entity", "&", r"&(?:amp|lt|gt|nbsp|mdash|ndash|md);|&(?:quot|apos);", ignore_case=True),
    _rule("word", "&", r"&(?:[LU]R|Q[CLR]|ODQ|CDQ|#39);"),
    _rule("quotes", "[‘’‚‛“”„‟«»‹›`\x91-\x94']", "[‘’‚‛“”„‟«»‹›`\x91-\x94]{1,2}|''"),
    _rule("dashes", "-", "-+"),
    _rule("dots", r"\.", r"\.{3,5}"),
    _rule("word", "[¹²³⁰⁴-⁹₀-₉]", "[¹²³⁰⁴-⁹]+|[₀-₉]+"),
    _rule("word", r"[!?*#@_<>\\]", r"[!?]+|\*+|#+|@+|_+|<<|>>|\\\*"),
)
