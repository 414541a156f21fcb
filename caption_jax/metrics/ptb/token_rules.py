"""Token patterns of the PTB tokenizer, one rule per kind of token.

The rules were derived from the outputs of the reference tokenizer, and the tests compare the two. At each position of a
line the longest match wins, and the first rule in a tie, so the order matters only between patterns that can match the
same text. A pattern with a group named `token` uses lookahead: the whole match counts towards its length, but only the
group becomes the token.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from caption_jax.metrics.ptb.characters import LETTERS, MARKS

_ACCENT = "&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = f"(?:[{LETTERS}{MARKS}\u00ad]|{_ACCENT})"
_LETTER_FIRST = f"[{LETTERS}{MARKS}\u00ad&]"
_WORD = f"[{LETTERS}\\d]"
_LETTER_OR_DIGIT = f"(?:[{LETTERS}{MARKS}\u00ad\\d]|{_ACCENT})"
_DASH = "[-\u058a\u2010\u2011]"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_APOSTROPHE = "(?:['’\x92]|&apos;)"
_APOSTROPHE_LIKE = "(?:['’\x92`‘‛\x91]|&apos;)"

# Words joined by hyphens or underscores; a part may have a prefix, as in d'Artagnan, l'eau and O'Neil.
_PART = f"(?:[dDoOlL]{_APOSTROPHE_LIKE}{_WORD}{{2,}}|{_WORD}+)"
_COMPOUND = f"{_PART}(?:{_HYPHEN}{_PART})*"
_PLAIN = f"{_LETTER}{_LETTER_OR_DIGIT}*"
_DOTTED = f"{_PLAIN}(?:[.!?]{_PLAIN})+"
_DOTTED_COMPOUND = f"[A-Za-z0-9][A-Za-z0-9.,]*(?:{_DASH}(?:(?:[A-Za-z]\\.){{2,}}|[A-Za-z0-9]+))+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_NUMBER = r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)"

_BLANK = r" \t\n\r\f\v"
_NOT_IN_URL = rf"{_BLANK}\"(){{}}<>|"
_NOT_IN_MAIL = rf"{_NOT_IN_URL}\u00a0"
_PATH = rf"(?:/[^{_BLANK}\"()<>|]+[^{_NOT_IN_URL}.!?,\-])?"

# Abbreviations keep their period. The following can also end a sentence.
_FINAL_ABBREVIATIONS = (
    "al ala apr ariz assn asst aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec dept esq est etc "
    "ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont natl neb nev "
    "nov oct okla penn plc pp?t[ey]s? rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed "
    "wis wisc wyo ph\\.d ed\\.d"
)
# The following precede a name or continue the sentence.
_OTHER_ABBREVIATIONS = (
    "adj adm adv alex assoc atty ave brig capt cf cie cmdr col cpl det dr drs elec ens ft gen gov govs hon "
    "insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg pfc ph pres prof pvt rep reps rev "
    "sen sens sfc sgt spc st ste supt treas vs wm"
)
_CAPITALISED_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH"
# After "plan b.", one of these words, capitalised, starts a new sentence, so the period is a separate token.
_SENTENCE_STARTS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more "
    "now once one other our she since so some such that the their then there these they this we what when "
    "while yet you mr\\. ms\\."
)
_BEFORE_NUMBERS = "art ca figs? nos? op pp prop"
_FILE_ENDINGS = (
    "bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps py sql "
    "tar txt wav x xml zip"
)


class Rule(NamedTuple):
    """A tokenization rule.

    Attributes:
        kind: how the matched text is normalised; see `tokens.py`.
        first: characters the token can start with, so that the rule is skipped at all other positions.
        pattern: the token's pattern.
    """

    kind: str
    first: re.Pattern[str]
    pattern: re.Pattern[str]


def _any_of(names: str) -> str:
    return "(?:" + "|".join(names.split()) + ")"


def _rule(kind: str, first: str, pattern: str, *, any_case: bool = False) -> Rule:
    return Rule(kind, re.compile(first), re.compile(pattern, re.IGNORECASE | re.ASCII if any_case else 0))


def _look_ahead(token: str, ahead: str) -> str:
    return f"(?P<token>{token}){ahead}"


_STARTS = _any_of(f"{_SENTENCE_STARTS.title()} {_SENTENCE_STARTS.upper()}")
_EYES = r"['^x=~<>\-]"

RULES: tuple[Rule, ...] = (
    # Single words split in two; the second part is tokenized separately.
    _rule("word", "[cC]", _look_ahead("can", "not"), any_case=True),
    _rule("word", "[gGwW]", _look_ahead("gon|wan", "na"), any_case=True),
    _rule("word", "[gG]", _look_ahead("got", "ta"), any_case=True),
    _rule("word", "[lLgG]", _look_ahead("lem|gim", "me"), any_case=True),
    _rule("word", "'", _look_ahead("'t", "(?:is|was)"), any_case=True),
    # Contractions.
    _rule("word", "[A-Za-z]", _look_ahead("[A-Za-z]*[A-MO-Za-mo-z]", f"[nN]{_APOSTROPHE_LIKE}[tT]")),
    _rule("contraction", "[nN]", f"n{_APOSTROPHE_LIKE}t", any_case=True),
    _rule("word", _LETTER_FIRST, _look_ahead(f"{_LETTER}+", "['’\x92](?:[msd]|re|ve|ll)"), any_case=True),
    _rule(
        "contraction",
        "['’\x92&]",
        r"'(?:[msd]|re|ve|ll)(?![A-Za-z])|(?:[’\x92]|&apos;)(?:[msd]|re|ve|ll)",
        any_case=True,
    ),
    _rule("word", "['’\x92&]", rf"{_APOSTROPHE}(?:em|till?|cause)", any_case=True),
    _rule("word", "['’\x92&]", f"{_APOSTROPHE}n{_APOSTROPHE}|[’\x92]n|'n(?=\\s)", any_case=True),
    _rule("word", "['’\x92&]", rf"{_APOSTROPHE}(?:[2-9]0s|\d\d(?=\s))", any_case=True),
    # Words with an inner, leading or trailing apostrophe.
    _rule("word", "[djlyDJLY]", f"[djl]{_APOSTROPHE}|y{_APOSTROPHE}(?={_LETTER})", any_case=True),
    _rule("word", "[oOsS]", f"(?:ol|somethin){_APOSTROPHE}", any_case=True),
    _rule("word", "[cClLsSeEnN]", "c'mon|e'er|li'l|cap['’]n|s'mores|ev'ry|nor'easter", any_case=True),
    _rule("word", "[A-Zn]", f"[A-HJ-XZn]{_APOSTROPHE_LIKE}{_LETTER}{{2,}}"),
    _rule("word", _LETTER_FIRST, f"{_LETTER}+[aeiouyAEIOUY]{_APOSTROPHE_LIKE}[aeiouA-Z]{_LETTER}*"),
    _rule("word", "[oO]", f"o{_APOSTROPHE_LIKE}o", any_case=True),
    # Words, numbers and combinations of both.
    _rule("word", _LETTER_FIRST, _PLAIN),
    _rule("word", _WORD, _COMPOUND),
    _rule("word", _LETTER_FIRST, _DOTTED),
    _rule("word", "[A-Za-z]", _ACRONYM + r"|[A-Za-z]\."),
    _rule("word", "[A-Za-z]", _look_ahead("[A-Za-z]", rf"\.[\s\u00a0]+(?:{_STARTS}|</?[A-Za-z][\w:.-]*>)[\s\u00a0]")),
    _rule("word", "[A-Za-z]", _look_ahead(f"(?!P?PT)(?i:{_any_of(_FINAL_ABBREVIATIONS)})\\.", r"[\s\S]{0,2}")),
    _rule("word", "[A-Za-z]", f"(?!MFG|MTG)(?i:{_any_of(_OTHER_ABBREVIATIONS)})\\."),
    _rule("word", "[ADILMOPTW]", _look_ahead(f"{_any_of(_CAPITALISED_STATES)}\\.", r"[\s\S]{0,2}")),
    _rule("word", "[acfnopACFNOP]", _look_ahead(f"{_any_of(_BEFORE_NUMBERS)}\\.", r"[\s\u00a0]?\d"), any_case=True),
    _rule(
        "word",
        f"{_WORD}|{_LETTER_FIRST}",
        _look_ahead(f"(?:{_PLAIN}|{_COMPOUND}|{_DOTTED}|{_DOTTED_COMPOUND})\\.", "[,;:\u3001]"),
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
    _rule("word", "[hH]", rf"https?://[^{_NOT_IN_URL}]+[^{_NOT_IN_URL}.!?,\-]", any_case=True),
    _rule("word", "[wW]", rf"www\.(?:[^{_NOT_IN_URL}.!?,]+\.)+[A-Za-z]{{2,4}}{_PATH}", any_case=True),
    _rule("word", r"[^\"(){}|'`!$,-_]", rf"(?:[^{_BLANK}\"(){{}}|'`!$,-_]+\.)+(?i:com|net|org|edu){_PATH}"),
    _rule(
        "word",
        _WORD,
        _look_ahead(rf"{_WORD}+(?:\.{_WORD}+)*\.{_any_of(_FILE_ENDINGS)}", r"(?=[\s.?!,])"),
        any_case=True,
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
    _rule("entity", "&", r"&(?:amp|lt|gt|nbsp|mdash|ndash|md);|&(?:quot|apos);", any_case=True),
    _rule("word", "&", r"&(?:[LU]R|Q[CLR]|ODQ|CDQ|#39);"),
    _rule("quotes", "[‘’‚‛“”„‟«»‹›`\x91-\x94']", "[‘’‚‛“”„‟«»‹›`\x91-\x94]{1,2}|''"),
    _rule("dashes", "-", "-+"),
    _rule("dots", r"\.", r"\.{3,5}"),
    _rule("word", "[¹²³⁰⁴-⁹₀-₉]", "[¹²³⁰⁴-⁹]+|[₀-₉]+"),
    _rule("word", r"[!?*#@_<>\\]", r"[!?]+|\*+|#+|@+|_+|<<|>>|\\\*"),
)
