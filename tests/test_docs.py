"""What README and docs say of the built-in model is so."""

import re
from pathlib import Path

import pytest

from mdrt import png, prompts

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "built-in-model.md"]
CONCEPTS = ROOT / "docs" / "built-in-model-concepts.md"
PICTURES = [
    (page.parent / file, prompt)
    for page in PAGES
    for prompt, file in re.findall(r"!\[([^\]]*)\]\((\S+\.png)\)", page.read_text(encoding="utf-8"))
]


def listed(heading):
    _, _, section = CONCEPTS.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    return re.split("; |\n\n", section.partition("\n## ")[0].strip())


@pytest.mark.parametrize(("path", "prompt"), PICTURES, ids=lambda value: getattr(value, "stem", ""))
def test_pictures_show_their_prompts(path, prompt):
    made = png.read(path)["mdrt"]
    assert (made["prompt"], made["seed"], made["num_inference_steps"], made["model"]) == (prompt, 0, 1, "emoji.mdrt")


def test_lists():
    names, keywords = listed("Names"), listed("Keywords")
    assert len({*names, *keywords}) == len(names) + len(keywords)
    for page in [*PAGES, CONCEPTS]:
        assert f"{len(names):,} " in page.read_text(encoding="utf-8")
    assert f"{len(keywords)} keywords" in PAGES[1].read_text(encoding="utf-8")


def test_quality_is_judged_by_prompts_that_the_model_knows():
    names = listed("Names")
    for prompt in prompts.read(ROOT / "tests" / "data" / "prompts.txt"):
        assert set(re.sub(" on an? [a-z]+ background$", "", prompt).split(" and ")) <= set(names), prompt
