"""What is served is decoded as what is trained on, without what only cleaning asks for."""

import io
import json

import numpy as np
import pytest
from PIL import Image as Pillow

from ml.contracts import Raw
from ml.modalities import MODALITIES

CONTEXT = "The old mill stands at the river."
ITEMS = {
    "text": [b"A  text &amp; more", b"", b"\0"],
    "text-pair": [json.dumps({"source": "two  dogs", "target": "zwei Hunde"}).encode(), b"two dogs", b""],
    "question": [json.dumps({"question": "What  stands?", "context": CONTEXT, "answers": {"text": ["mill"], "answer_start": [8]}}).encode(), b"[]"],
    "tagged": [json.dumps({"words": ["Anna", "left"], "tags": ["B-PER", "O"]}).encode(), b"Anna left Rome", b""],
}


def picture() -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", MODALITIES)
def test_the_array_and_the_reason_are_those_of_training(name):
    chosen = MODALITIES[name]
    modality = chosen(chosen.Options(size=16, channels=3) if name == "image" else chosen.Options(max_length=16, vocabulary=100))
    decoded = 0
    for data in ITEMS.get(name, [picture(), b"no picture"]):
        trained, served = modality.decode(Raw(data)), modality.decode(Raw(data), served=True)
        assert served.reason == trained.reason and (served.array is None) == (trained.array is None)
        if trained.array is not None:
            np.testing.assert_array_equal(served.array, trained.array)
            assert trained.content and not served.content and not served.facts
            decoded += 1
    assert 0 < decoded < len(ITEMS.get(name, [0, 0]))
