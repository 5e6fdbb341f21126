"""What pictures are called: full captions, which determine a picture, and bare keywords, which leave it to the seed."""

from __future__ import annotations

import re
from collections import defaultdict

from weights_tools.training.emoji import EmojiSet
from weights_tools.training.layouts import COLOURS, Scene

MIN_MEMBERS = 5
# Per layout the ways to say it, the plain one first. {a}, {b} are names, {an_a} has an article, {many_a} is a plural.
_WORDINGS: dict[str, tuple[str, ...]] = {
    "single": ("{a}", "{an_a}", "{a} on a white background"),
    "colour": ("{a}", "{an_a}"),
    "large": ("large {a}", "a large {a}", "a big {a}", "a close-up of {an_a}"),
    "small": ("small {a}", "a small {a}", "a little {a}", "a tiny {a}"),
    "beside": (
        "{a} and {b}",
        "{an_a} and {an_b}",
        "{a} next to {b}",
        "{an_a} beside {an_b}",
        "{a} to the left of {b}",
        "{b} to the right of {a}",
    ),
    "above": ("{a} above {b}", "{an_a} above {an_b}", "{a} over {b}", "{b} below {a}", "{an_b} under {an_a}"),
    "larger": ("large {a} and small {b}", "a large {a} and a small {b}", "a big {a} next to a little {b}"),
    "two": ("two {a}", "two {many_a}", "2 {many_a}", "{a} and {a}"),
    "three": ("three {a}", "three {many_a}", "3 {many_a}"),
    "four": ("four {a}", "four {many_a}", "4 {many_a}"),
}
_ON_COLOUR = "{} on a {} background"
_ON_COLOUR_TOO = ("{} on {} background", "{} in front of {} background", "{} against {} background")
# Words around a caption that change nothing.
_FILLERS = (
    "a picture of {}",
    "a photo of {}",
    "a photograph of my {}",
    "a drawing of {}",
    "an image of {}",
    "an emoji of {}",
    "my {}",
    "the {}",
)
_KEYWORD_WORDINGS = ("{}", "{an}", "a picture of {an}", "a photo of {an}", "a drawing of {an}", "some {}", "my {}")


def wordings(emoji: EmojiSet, scene: Scene) -> list[str]:
    """Captions of a scene; each determines it, and the first is the plain one, with which pictures are evaluated."""
    a, b = emoji.names[scene.emoji[0]], emoji.names[scene.emoji[-1]]
    many = plural(a) if plural(a) not in emoji.names else a  # there are eye and eyes
    words = {"a": a, "b": b, "an_a": with_article(a), "an_b": with_article(b), "many_a": many}
    said = [wording.format(**words) for wording in _WORDINGS[scene.layout]]
    if scene.colour:
        plain = said[0]
        said = [_ON_COLOUR.format(wording, scene.colour) for wording in said]
        said += [wording.format(plain, with_article(scene.colour)) for wording in _ON_COLOUR_TOO]
    return list(dict.fromkeys([*said, *(filler.format(said[0]) for filler in _FILLERS)]))


def keyword_wordings(keyword: str) -> list[str]:
    """Captions that leave the choice among a keyword's emoji to the seed; the first is the bare word."""
    return [wording.format(keyword, an=with_article(keyword)) for wording in _KEYWORD_WORDINGS]


def bare_keywords(emoji: EmojiSet) -> dict[str, tuple[int, ...]]:
    """Keywords that have `MIN_MEMBERS` emoji or more, and these: words that name neither an emoji nor a colour."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, keywords in enumerate(emoji.keywords):
        for keyword in keywords:
            members[keyword].append(index)
    taken = {*emoji.names, *COLOURS}
    return {
        keyword: tuple(found)
        for keyword, found in sorted(members.items())
        if len(found) >= MIN_MEMBERS and keyword not in taken and re.fullmatch("[a-z -]{3,}", keyword)
    }


def with_article(words: str) -> str:
    """`a` or `an` before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(words: str) -> str:
    """The usual plural of the last word."""
    if words.endswith("s"):
        return words
    if words.endswith(("ch", "sh", "x")):
        return f"{words}es"
    if words.endswith("y") and words[-2:-1] not in "aeiou":
        return f"{words[:-1]}ies"
    return f"{words}s"
