"""The emoji of a font with their names and keywords, packed once into one file that all later stages read.

Pictures come from the bitmaps of Noto Color Emoji (Google, Apache-2.0 and OFL-1.1), names and keywords from the
English annotations of the Unicode CLDR (Unicode licence): Debian's fonts-noto-color-emoji and unicode-cldr-core.
"""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdrt.errors import FileError, InvalidArgumentError
from mdrt.files import replacing
from weights_tools.training.stage import Context

FILE_NAME = "emoji.npz"
SPRITE_SIZE = (136, 128)  # width, height of the font's bitmaps
_VARIATION = "\ufe0f"  # asks for the coloured form of a character; neither font nor annotations need it
# Keywords that the annotations lack, from the labels of CLDR.
_LABELS = {
    "animal-amphibian": ("animal",),
    "animal-bird": ("animal", "bird"),
    "animal-bug": ("animal", "insect"),
    "animal-mammal": ("animal", "mammal"),
    "animal-marine": ("animal", "sea animal"),
    "animal-reptile": ("animal", "reptile"),
    "cat-face": ("cat",),
    "clothing": ("clothing",),
    "drink": ("drink",),
    "emotion": ("emotion",),
    "face-negative": ("face", "sad face"),
    "face-positive": ("face", "happy face"),
    "face-sick": ("face", "sick face"),
    "food-asian": ("food", "asian food"),
    "food-fruit": ("food", "fruit"),
    "food-prepared": ("food", "meal"),
    "food-sweet": ("food", "sweet"),
    "food-vegetable": ("food", "vegetable"),
    "game": ("game",),
    "geometric": ("geometric",),
    "musical-instrument": ("musical instrument",),
    "person-fantasy": ("person", "fantasy"),
    "person-role": ("person", "worker"),
    "person-sport": ("person", "sport"),
    "place-building": ("building",),
    "plant-flower": ("plant", "flower"),
    "plant-other": ("plant",),
    "sky & weather": ("sky", "weather"),
    "sport": ("sport",),
    "tool": ("tool",),
    "transport-air": ("vehicle", "aircraft"),
    "transport-ground": ("vehicle",),
    "transport-water": ("vehicle", "boat"),
    "zodiac": ("zodiac",),
}
_RESPELLED = str.maketrans({":": None, "\u201c": None, "\u201d": None, "\u2019": "'"})


@dataclass(frozen=True)
class PackConfig:
    """Where Debian's packages put the font, the annotations and the labels."""

    font: str = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    annotations: tuple[str, ...] = (
        "/usr/share/unicode/cldr/common/annotations/en.xml",
        "/usr/share/unicode/cldr/common/annotationsDerived/en.xml",
    )
    labels: str = "/usr/share/unicode/cldr/common/properties/labels.txt"


@dataclass(frozen=True)
class EmojiSet:
    """Emoji by index: `names` (unique in meaning, not always in picture), `keywords` of each, and PNG files.

    Pictures are RGBA, 136 x 128 pixels, not premultiplied.
    """

    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    pngs: tuple[bytes, ...]
    _sprites: dict[tuple[int, float], NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Image.Image:
        """The picture as the font has it, RGBA."""
        picture = Image.new("RGBA", SPRITE_SIZE)
        picture.paste(Image.open(io.BytesIO(self.pngs[index])).convert("RGBA"))
        return picture

    def sprite(self, index: int, width: float) -> NDArray[np.uint8]:
        """The picture resized by Lanczos to `width` pixels (rounded down): (height, width, 4) uint8, kept for later."""
        key = (index, width)
        if key not in self._sprites:
            scale = width / SPRITE_SIZE[0]
            size = (max(1, int(SPRITE_SIZE[0] * scale)), max(1, int(SPRITE_SIZE[1] * scale)))
            self._sprites[key] = np.asarray(self.image(index).resize(size, Image.Resampling.LANCZOS))
        return self._sprites[key]

    def subset(self, names: Sequence[str]) -> EmojiSet:
        """The emoji with these names, in this order.

        Raises:
            InvalidArgumentError: a name that no emoji has.
        """
        for name in names:
            if name not in self.names:
                raise InvalidArgumentError(f"there is no emoji called {name!r}; the pack has names like 'red apple'")
        chosen = [self.names.index(name) for name in names]
        return EmojiSet(tuple(names), tuple(self.keywords[k] for k in chosen), tuple(self.pngs[k] for k in chosen))


def run(context: Context) -> None:
    """The stage `pack`: reads font and annotations, writes emoji.npz."""
    config = context.config(PackConfig)
    annotations: dict[str, dict[str, Any]] = {}
    for path in config.annotations:
        _read_annotations(Path(path), annotations)
    _read_labels(Path(config.labels), annotations)
    bitmaps = _read_font(Path(config.font), annotations)
    chosen = [characters for characters in annotations if characters in bitmaps and _usable(annotations[characters])]
    emoji = EmojiSet(
        tuple(annotations[characters]["name"].translate(_RESPELLED).lower() for characters in chosen),
        tuple(tuple(_keywords(annotations[characters])) for characters in chosen),
        tuple(bitmaps[characters] for characters in chosen),
    )
    write_emoji(context.folder / FILE_NAME, emoji)
    context.say(f"{len(emoji)} emoji in {context.folder / FILE_NAME}")


def write_emoji(path: Path, emoji: EmojiSet) -> None:
    """Writes the pack: an .npz of `png` (all PNG files in a row), `ends` (where each ends) and `text` (JSON)."""
    text = json.dumps({"names": emoji.names, "keywords": emoji.keywords}, ensure_ascii=False)
    with replacing(path) as file:
        np.savez_compressed(
            file,
            png=np.frombuffer(b"".join(emoji.pngs), np.uint8),
            ends=np.cumsum([len(png) for png in emoji.pngs]),
            text=np.frombuffer(text.encode(), np.uint8),
        )


def read_emoji(path: Path) -> EmojiSet:
    """Reads what `write_emoji` wrote.

    Raises:
        FileError: the file is missing or is no such pack.
    """
    try:
        with np.load(path) as arrays:
            png, ends, text = arrays["png"].tobytes(), arrays["ends"].tolist(), json.loads(arrays["text"].tobytes())
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{path} is not a pack of emoji; make one with the stage pack ({error})") from error
    pngs = tuple(png[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return EmojiSet(tuple(text["names"]), tuple(map(tuple, text["keywords"])), pngs)


def read_training_emoji(folder: Path, concepts: Sequence[str] = ()) -> EmojiSet:
    """The pack in the folder of a run, or of it the emoji with these names; errors as `read_emoji` and `subset`."""
    emoji = read_emoji(folder / FILE_NAME)
    return emoji.subset(concepts) if concepts else emoji


def _usable(annotation: Mapping[str, Any]) -> bool:
    """Emoji that differ from others only by skin tone, flags and key caps are left out."""
    name = annotation.get("name", "flag")
    return "skin tone" not in name and not name.startswith(("flag", "keycap"))


def _keywords(annotation: Mapping[str, Any]) -> list[str]:
    words = [*annotation.get("keywords", []), *annotation.get("labels", [])]
    return list(dict.fromkeys(word.lower() for word in words if word.isascii()))


def _read_annotations(path: Path, annotations: dict[str, dict[str, Any]]) -> None:
    """Adds `name` and `keywords` by characters."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise FileError(f"cannot read {path}: {error}; install unicode-cldr-core or name its files") from error
    for element in root.iter("annotation"):
        entry = annotations.setdefault(element.get("cp", "").replace(_VARIATION, ""), {})
        if element.get("type") == "tts":
            entry["name"] = element.text
        else:
            entry["keywords"] = [word.strip() for word in (element.text or "").split("|")]


def _read_labels(path: Path, annotations: dict[str, dict[str, Any]]) -> None:
    """Adds `labels` by characters. Lines are like `[abx-z{sequence}] ; Animals & Nature ; animal-bird`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error}; install unicode-cldr-core or name its files") from error
    for line in lines:
        characters, *labels = (part.strip() for part in line.split("#")[0].split(";"))
        for member in _members(characters) if labels else ():
            annotations.setdefault(member, {}).setdefault("labels", []).extend(_LABELS.get(labels[-1], ()))


def _members(unicode_set: str) -> Iterator[str]:
    """The characters and sequences of a set such as `[abx-z{sequence}]`."""
    for sequence, first, last in re.findall(r"\{(.+?)\}|(.)(?:-(.))?", unicode_set[1:-1].replace(_VARIATION, "")):
        if sequence:
            yield sequence
        else:
            yield from map(chr, range(ord(first), ord(last or first) + 1))


def _read_font(path: Path, wanted: Mapping[str, Any]) -> dict[str, bytes]:
    """The PNG bitmaps of character sequences: through the character map, and the ligatures for more than one."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        font = TTFont(path)
    except (OSError, TTLibError) as error:
        raise FileError(f"cannot read {path}: {error}; install fonts-noto-color-emoji or name the font") from error
    bitmaps = {
        name: bytes(glyph.imageData)
        for strike in font["CBDT"].strikeData
        for name, glyph in strike.items()
        if hasattr(glyph, "imageData")
    }
    ligatures = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            substitution = table.ExtSubTable if table.LookupType == 7 else table
            if substitution.LookupType == 4:
                for first, entries in substitution.ligatures.items():
                    ligatures.update({(first, *entry.Component): entry.LigGlyph for entry in entries})
    characters_to_glyph = font.getBestCmap()
    found = {}
    for characters in wanted:
        glyphs = tuple(characters_to_glyph.get(ord(character)) for character in characters)
        glyph = glyphs[0] if len(glyphs) == 1 else ligatures.get(glyphs)
        if glyph in bitmaps:
            found[characters] = bitmaps[glyph]
    return found
