"""Small data and recipes that tests train on: pictures, and texts for every head."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image


def draw(folder: Path, classes: int = 3, each: int = 40, side: int = 16, seed: int = 0) -> Path:
    """Noise in `folder`/class*/, of a colour that tells the class."""
    random = np.random.default_rng(seed)
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = random.integers(0, 128, (side, side, 3))
            pixels[..., k % 3] += random.integers(60, 110)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class{k}" / f"{number:03d}.png")
    return folder


def write_recipe(path: Path, data: Path, /, **changes) -> Path:
    """A recipe that trains for seconds."""
    content = {
        "name": "tiny",
        "data": {"source": {"name": "image-folder", "options": {"path": str(data)}}, "workers": 1},
        "backbone": {"name": "small-cnn", "options": {"width": 0.25}},
        "pretraining": {"objective": "denoising", "fit": {"epochs": 3, "batch_size": 32}},
        "finetuning": {"fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}},
        "evaluation": {"bootstrap": 100, "mistakes": 4},
        "compute": {"threads": 1},
    }
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return path


TEXT = {
    "backbone": {"name": "text-cnn", "options": {"width": 16}},
    "pretraining": {"objective": "masked-language", "fit": {"epochs": 3, "batch_size": 32}},
    "finetuning": {"fit": {"epochs": 8, "batch_size": 32, "learning_rate": 0.02}},
}


def write_texts(path: Path, rows: int = 120, seed: int = 0) -> Path:
    """A CSV of texts in which some words tell the class, of two."""
    random = np.random.default_rng(seed)
    words = {"salt": ["flour", "oven", "sugar", "butter", "bowl"], "sea": ["harbour", "sail", "mast", "storm", "crew"]}
    common = ["the", "and", "with", "of", "in", "on", "a", "then", "quickly", "slowly", "never", "always", "some", "many"]
    lines = ["text,label"]
    for row in range(rows):
        label = ("salt", "sea")[row % 2]
        lines.append(" ".join(random.choice(words[label] if random.random() < 0.4 else common) for _ in range(15)) + f",{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_stories(folder: Path) -> dict:
    """Texts without labels in files named after their parts."""
    random = np.random.default_rng(0)
    words = ["the", "sun", "moon", "sea", "rises", "sets", "over", "under", "a", "hill", "and", "then"]
    for name, rows in (("train", 60), ("validation", 10), ("test", 10)):
        lines = [" ".join(random.choice(words, random.integers(4, 30))) for _ in range(rows)]
        (folder / f"{name}.csv").write_text("\n".join(["text", *lines]) + "\n")
    return {"name": "text-table", "options": {"path": str(folder)}}


def write_pairs(folder: Path) -> dict:
    """Numbers in words of two languages."""
    numbers = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"}
    rows = [f"{a} and {b} or {a},{x} und {y} oder {x}" for a, x in numbers.items() for b, y in numbers.items()]
    (folder / "pairs.csv").write_text("\n".join(["source,target", *rows]) + "\n")
    return {"name": "text-pairs", "options": {"path": str(folder)}}


def write_questions(folder: Path) -> dict:
    """Questions about who lives where, some about somebody who is not told of; contexts longer than a model reads at once."""
    lines = []
    for number in range(40):
        context = " ".join(f"The {one} lives in house{(number * 7 + place) % 50}." for place, one in enumerate(("smith", "miller", "baker", "tailor", "cook")))
        name = ("smith", "miller", "baker", "tailor", "cook", "king")[number % 6]
        start = context.find(f"The {name} lives in ")
        answer = context[start:].split(".")[0].rpartition(" ")[2] if start >= 0 else ""
        answers = {"text": [answer], "answer_start": [context.index(answer, start)]} if answer else {"text": [], "answer_start": []}
        lines.append(json.dumps({"id": f"q{number}", "question": f"Where does the {name} live?", "context": context, "answers": answers}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": "squad", "options": {"path": str(folder)}}


def write_tagged(folder: Path) -> dict:
    """Sentences with a tag for each word, by which names can be told."""
    random, lines = np.random.default_rng(0), []
    tags = {"Anna": "B-PER", "Otto": "B-PER", "Rome": "B-LOC", "Oslo": "B-LOC"} | dict.fromkeys(["saw", "left", "and", "then", "slowly", "for", "again"], "O")
    for _ in range(50):
        lines += [f"{word} {tags[word]}" for word in random.choice(list(tags), random.integers(3, 14))] + [""]
    (folder / "sentences.conll").write_text("\n".join(lines) + "\n")
    return {"name": "tagged-text", "options": {"path": str(folder)}}


# For each head without classes: what writes its data, and what a recipe changes for it.
HEADS_WITHOUT_CLASSES = {
    "language-model": (write_stories, {"name": "text", "options": {"max_length": 16, "vocabulary": 60}}, "gpt", {}, "causal-language", {"written": 4}),
    "translation": (write_pairs, {"name": "text-pair", "options": {"max_length": 12, "vocabulary": 300}}, "bart", {}, "span-corruption", {}),
    "answering": (write_questions, {"name": "question", "options": {"max_length": 24, "stride": 8, "vocabulary": 200}}, "bert", {"size": "tiny"}, "masked-language", {}),
    "embedding": (write_pairs, {"name": "text-pair", "options": {"max_length": 12, "vocabulary": 300}}, "text-cnn", {"width": 16}, "pairs", {}),
    "tagging": (write_tagged, {"name": "tagged", "options": {"max_length": 16, "vocabulary": 100}}, "bert", {"size": "tiny"}, "masked-language", {}),
}
