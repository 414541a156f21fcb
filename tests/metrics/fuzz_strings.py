"""Random caption-like lines for comparing tokenizers, deterministic per seed."""

from __future__ import annotations

import random


def _split(words: str) -> list[str]:
    return words.split()


_WORDS = _split(
    "a an the man woman dog dogs riding red grass it he they people Two Three three old New York street sign colour "
    "grey black-and-white t-shirt T-shirts x-ray mother-in-law e-mail ice-cream OK TV BMX iPod McDonald's NASA cafe no "
    "in on of at with and or but is are was holding front skate-board re-do co-op CD-ROM three-year-old"
)
_CONTRACTIONS = _split(
    "it's It's IT'S he'd I'm we're they've she'll don't Don't DON'T can't cannot Cannot won't isn't ain't aren't "
    "couldn't've y'all o'clock O'Neil 'tis 'Twas 'em 'n' rock'n'roll ma'am dogs' boss's children's gonna gotta wanna "
    "lemme gimme let's who's that'd there're dont im its 1990's A's it’s don’t I’d o’clock John’s ‘em d'Artagnan"
)
_ABBREVIATIONS = _split(
    "Mr. Mrs. Ms. Dr. St. Jr. vs. etc. e.g. i.e. a.m. p.m. A.M. P.M. U.S. U.S.A. U.K. D.C. No. no. Co. Inc. Ltd. Ave. "
    "Rd. Ft. ft. in. lb. lbs. oz. approx. Jan. Sept. Dec. Mon. Prof. Ph.D. J.R. J. Capt. Sgt. Gov. Sen. Calif. Fla. "
    "N.Y. Fig. fig. pp. Vol. al. est. Mt. sq. dept. Univ. a.k.a. R.I.P. w.c. B.C. a.b"
)
_NUMBERS = [
    *_split(
        "1 2 3 10 12 100 1000 1,000 10,000 1,234,567 2.5 0.5 .5 3.14 1/2 3/4 1/3 ½ 1½ ¼ 10:30 7:45pm 5pm 5p.m. 1990s "
        "'90s 90's 1st 2nd 3rd 24th 11/12/2013 2013-11-12 12-11-13 555-1234 1-800-555-1234 555.555.1234 -5 +3 10-15 "
        "5'10\" 6' 3\" 4x4 20/20 16:9 2-3 3D 3-D #1 #5 No.1 747 B-52 F-16 U2 1-2-3 2x 100% 50-50 24/7 9/11"
    ),
    "(555) 555-1234",
    "555 555 1234",
    "2 1/2",
    "6' 3\"",
]
_UNITS = _split(
    "$5 $5.00 $1,000 £3 €4 5¢ 5€ 5kg 35mm 6ft 6ft. 12oz 20mph 10km 5°C 20° 30cm 5lbs 100W 5% 5k 10K US$5 ¥100"
)
_ADDRESSES = _split(
    "www.flickr.com http://www.foo.com http://foo.com/a/b.html?x=1&y=2 https://a.co flickr.com Amazon.com foo.org/x "
    "me@foo.com john.smith@mail.co.uk @handle @john_smith #tag #throwback youtube.com/watch?v=1 img_1.jpg a.png"
)
_JOINED = _split(
    "and/or w/ w/o he/she A/C b&w B&W AT&T Q&A R&B rock&roll foo_bar a+b 1+1 a=b c++ <b> </b> <3 :) :-) :( ;) :D *wow* "
    "&amp; &quot; sh*t what?! yes!! wow!!! end.The grass.A a,b red,white"
)
_PUNCTUATION = _split(
    ". , ; : ! ? ... .. .... … - -- --- – — ' \" '' `` ` “ ” ‘ ’ « » ( ) [ ] { } / & * # % + = @ ~ ^ _ | \\ < > $"
)
_ACCENTS = _split("café naïve résumé Zürich São piñata jalapeño crêpe façade El-Niño Beyoncé façade's über Ångström")
_EMOJI = [
    *_split("😀 ❤ ❤️ 👍🏽 ☺ ™ ® © ★ • → ✓ 🇺🇸 👨‍👩‍👧 ° ×"),
    "\u00a0",
    "\u200b",
]

_POOLS = (_CONTRACTIONS, _ABBREVIATIONS, _NUMBERS, _UNITS, _ADDRESSES, _JOINED, _ACCENTS)
_CHARACTERS = "aabcdeinorstAEMS0125...,,''\"\"--()[]/!?:;&$%#@*+=_ <>`’‘“”–—…é½°"


def make_fuzzed_lines(count: int, captions: list[str], seed: int = 0) -> list[str]:
    """Returns `count` lines: 50% modified captions, 40% concatenated fragments, 10% random characters."""
    rng = random.Random(seed)
    generators = [_modify_caption] * 5 + [_join_fragments] * 4 + [_make_random_characters]
    return [" ".join(rng.choice(generators)(rng, captions).splitlines()).strip() for _ in range(count)]


def _modify_caption(rng: random.Random, captions: list[str]) -> str:
    words = rng.choice(captions).split()
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(words) + 1)
        kind = rng.random()
        if kind < 0.45:
            words.insert(position, rng.choice(rng.choice(_POOLS)))
        elif kind < 0.6:
            words.insert(position, rng.choice((*_PUNCTUATION, *_EMOJI)))
        elif kind < 0.9 and words:
            position = rng.randrange(len(words))
            mark = rng.choice(_PUNCTUATION)
            word = words[position]
            words[position] = rng.choice(
                (word + mark, mark + word, mark + word + mark, f'"{word}"', f"({word})", f"'{word}'", f"“{word}”")
            )
        elif words:
            position = rng.randrange(len(words))
            words[position] = rng.choice((words[position].upper(), words[position].title(), words[position] + "'s"))
    return " ".join(words)


def _join_fragments(rng: random.Random, captions: list[str]) -> str:
    del captions
    parts: list[str] = []
    for _ in range(rng.randint(2, 9)):
        pool = rng.choice((_WORDS, _WORDS, *_POOLS, _PUNCTUATION, _EMOJI))
        parts.append(rng.choice(pool))
        if rng.random() < 0.8:
            parts.append(" ")
        elif rng.random() < 0.5:
            parts.append(rng.choice(_PUNCTUATION))
    return "".join(parts)


def _make_random_characters(rng: random.Random, captions: list[str]) -> str:
    del captions
    return "".join(rng.choice(_CHARACTERS) for _ in range(rng.randint(1, 14)))
