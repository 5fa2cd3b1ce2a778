"""The default model's training wordings and its held-out prompts: complete, unambiguous and kept apart."""

import csv
import string
from collections import Counter
from pathlib import Path

import pytest

from foley_ray.data.captions import MANNERS, read_captions, wordings_of

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "default_model"
METADATA = ROOT.parent / "shared" / "data" / "foley" / "metadata.csv"
DCASE = {"dog_bark", "footstep", "gunshot", "keyboard", "moving_motor_vehicle", "rain", "sneeze_cough"}
ARTICLES = {"a", "an", "the", "some"}
MAX_WORDS = 20  # far below CLIP's 75 tokens for everyday words
PAPER_PROMPTS = {
    "dog_bark": "a dog bark",
    "footstep": "foot steps",
    "gunshot": "gun shot",
    "keyboard": "someone using keyboard",
    "moving_motor_vehicle": "a moving motor",
    "rain": "rain",
    "sneeze_cough": "a man cough",
}


@pytest.fixture(scope="module")
def training() -> dict[str, tuple[str, ...]]:
    """All wordings of each class, whatever they are kept for."""
    captions = read_captions(JOB / "captions.yaml")
    classes = dict.fromkeys(name.partition("/")[0] for name in captions)
    return {name: wordings_of(captions, name) for name in classes}


def test_no_list_is_kept_for_what_nothing_is():
    kept = {name.partition("/")[2] for name in read_captions(JOB / "captions.yaml")}
    assert kept == {"", *MANNERS}


@pytest.fixture(scope="module")
def prompts() -> dict[str, tuple[str, ...]]:
    return read_captions(JOB / "eval_prompts.yaml")


def normal(text: str) -> str:
    """Without case, punctuation, articles and spacing ("A gun shot." is "gunshot"): equal means the same prompt."""
    words = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
    return "".join(word for word in words if word not in ARTICLES)


def shared_between_classes(wordings: dict[str, tuple[str, ...]]) -> dict[str, set[str]]:
    owners: dict[str, set[str]] = {}
    for name, texts in wordings.items():
        for text in texts:
            owners.setdefault(normal(text), set()).add(name)
    return {text: names for text, names in owners.items() if len(names) > 1}


def rows() -> list[dict[str, str]]:
    if not METADATA.is_file():
        pytest.skip(f"the foley set is not beside the repository: no {METADATA}")
    with METADATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "same"),
    [("A Dog bark!", "dog bark"), ("gun-shot", "a gun shot"), ("  rain   on the roof.", "rain on roof")],
)
def test_normal_ignores_case_punctuation_articles_and_spacing(text, same):
    assert normal(text) == normal(same)


def test_normal_keeps_different_prompts_apart():
    assert normal("dogs barking") != normal("dog barking")


def test_seven_classes_have_twenty_different_prompts(prompts):
    assert set(prompts) == DCASE
    assert {name: len({normal(text) for text in texts}) for name, texts in prompts.items()} == dict.fromkeys(DCASE, 20)
    assert all(len(texts) == 20 for texts in prompts.values())


def test_no_prompt_is_trained_on(training, prompts):
    seen = {normal(text) for texts in training.values() for text in texts}
    assert [text for texts in prompts.values() for text in texts if normal(text) in seen] == []


def test_dcase_classes_have_many_wordings_and_the_papers_prompt(training):
    assert {name: len(training[name]) for name in DCASE if not 60 <= len(training[name]) <= 100} == {}
    assert {name: text for name, text in PAPER_PROMPTS.items() if text not in training[name]} == {}


def test_prompt_words_are_mostly_known(training, prompts):
    """The text tower starts from scratch: a word it never met says nothing to it."""
    for name, texts in prompts.items():
        known = {word for text in training[name] for word in text.lower().replace(",", " ").split()}
        words = [word for text in texts for word in text.lower().replace(",", " ").split()]
        assert sum(word in known for word in words) >= 0.9 * len(words), name


def test_no_wording_belongs_to_two_classes(training, prompts):
    both = {name: training.get(name, ()) + prompts.get(name, ()) for name in training.keys() | prompts.keys()}
    assert shared_between_classes(both) == {}


@pytest.mark.parametrize("name", ["captions.yaml", "eval_prompts.yaml"])
def test_wordings_are_short_clean_and_unrepeated(name):
    for label, texts in read_captions(JOB / name).items():
        assert [text for text in texts if not normal(text) or text != " ".join(text.split())] == [], label
        assert [text for text in texts if len(text.split()) > MAX_WORDS] == [], label
        assert [text for text, count in Counter(texts).items() if count > 1] == [], label


def test_every_dataset_class_has_wordings(training):
    assert set(training) == {row["class"] for row in rows()}


def test_no_prompt_is_a_caption_of_the_dataset(prompts):
    seen = {normal(row["caption"]) for row in rows()}
    assert [text for texts in prompts.values() for text in texts if normal(text) in seen] == []


def test_no_wording_is_another_classs_dataset_caption(training, prompts):
    classes: dict[str, set[str]] = {}
    for row in rows():
        classes.setdefault(normal(row["caption"]), set()).add(row["class"])
    wordings = [(name, text) for source in (training, prompts) for name, texts in source.items() for text in texts]
    assert [(name, text) for name, text in wordings if classes.get(normal(text), {name}) != {name}] == []
